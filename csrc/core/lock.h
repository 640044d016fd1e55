/* The engine's locks. They belong to the process, so that a fork can wait for them: even where another thread was at
 * work, the child finds no lock held and nothing half changed. */
#ifndef SID_CORE_LOCK_H
#define SID_CORE_LOCK_H

typedef enum {
    SID_LOCK_STATE,    /* what a model remembers from run to run */
    SID_LOCK_PRODUCTS, /* primitives and packed weights, and the library's own caches of them */
    SID_LOCKS
} sid_lock_name;

/* One thread at a time holds a lock, for a short time; a thread that holds one takes no other. */
void sid_lock(sid_lock_name name);
void sid_unlock(sid_lock_name name);

/* Makes forks wait for the locks; calling it once is enough. */
int sid_locks_open(void);

#endif
