/* The engine's locks. They are the process's, so that a fork can wait for them: the child of a process in which another
 * thread was at work finds none held, and nothing half changed. */
#ifndef SID_CORE_LOCK_H
#define SID_CORE_LOCK_H

typedef enum {
    SID_LOCK_STATE,    /* what a model remembers from run to run */
    SID_LOCK_PRODUCTS, /* primitives and packed weights, and the library's own caches of them */
    SID_LOCKS
} sid_lock_name;

/* Held by one thread at a time, for short; a thread that holds one takes no other. */
void sid_lock(sid_lock_name name);
void sid_unlock(sid_lock_name name);

/* Has forks wait from now on; once is enough. */
int sid_locks_open(void);

#endif
