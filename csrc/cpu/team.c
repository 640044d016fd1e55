#include "cpu/team.h"

#include <omp.h>
#include <pthread.h>

#include "core/err.h"

int sid_team_size(int threads) {
    /* Within a parallel region oneDNN itself counts on one thread, even where OpenMP would nest. */
    if (omp_in_parallel() || omp_get_max_active_levels() < 1) return 1;
    int limit = omp_get_thread_limit();
    return threads < limit ? threads : limit;
}

sid_team sid_team_enter(int size) {
    sid_team before = {omp_get_max_threads(), omp_get_dynamic()};
    omp_set_dynamic(0);
    omp_set_num_threads(size);
    return before;
}

void sid_team_leave(const sid_team *before) {
    omp_set_num_threads(before->threads);
    omp_set_dynamic(before->dynamic);
}

/* A thread's team waits for its next parallel region. In the child of a fork, the thread would wait for a team that
 * does not exist there; without one, parent and child each make a new one. */
static void end_team(void) { omp_pause_resource_all(omp_pause_soft); }

static int failure;
static void watch_forks(void) { failure = pthread_atfork(end_team, NULL, NULL); }

int sid_team_open(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    return failure ? sid_fail(SID_EMEMORY, "out of memory") : SID_OK;
}
