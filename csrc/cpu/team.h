/* OpenMP's threads: how many there really are, and what a fork leaves of them.
 *
 * oneDNN divides a product by the number of threads when its primitive is created, and computes a part of it where
 * fewer run it. A team may be smaller than was asked for: OMP_THREAD_LIMIT, OMP_MAX_ACTIVE_LEVELS, OMP_DYNAMIC and
 * omp_set_dynamic() say so, and inside of another parallel region it is one thread. So primitives are created for the
 * team that the calling thread gets, and only ever run by one of that size. The project's own kernels divide their work
 * by loops that OpenMP shares out, whatever its team. */
#ifndef SID_CPU_TEAM_H
#define SID_CPU_TEAM_H

/* The settings of the calling thread, which are its own. */
typedef struct {
    int threads, dynamic;
} sid_team;

/* The threads that a parallel region of the calling thread has if `threads` are asked for between enter and leave. */
int sid_team_size(int threads);

/* Asks for that many, all of them; leave gives the thread its own settings back. */
sid_team sid_team_enter(int size);
void sid_team_leave(const sid_team *before);

/* Has forks end the forking thread's team, which the child would wait for, from now on; once is enough. */
int sid_team_open(void);

#endif
