#include "core/lock.h"

#include <pthread.h>

#include "core/err.h"

static pthread_mutex_t locks[SID_LOCKS] = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER};

void sid_lock(sid_lock_name name) { pthread_mutex_lock(&locks[name]); }
void sid_unlock(sid_lock_name name) { pthread_mutex_unlock(&locks[name]); }

static void lock_all(void) {
    for (int i = 0; i < SID_LOCKS; i++) sid_lock((sid_lock_name)i);
}
static void unlock_all(void) {
    for (int i = SID_LOCKS; i-- > 0;) sid_unlock((sid_lock_name)i);
}

static int failure;
static void watch_forks(void) { failure = pthread_atfork(lock_all, unlock_all, unlock_all); }

int sid_locks_open(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    return failure ? sid_fail(SID_EMEMORY, "out of memory") : SID_OK;
}
