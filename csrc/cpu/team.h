/* OpenMP's threads: how many there really are, and what a fork leaves of them.
 *
 * oneDNN divides a product by the number of threads when its primitive is created, and computes only a part of it
 * where fewer run it. A team may be smaller than was asked for: OMP_THREAD_LIMIT, OMP_MAX_ACTIVE_LEVELS, OMP_DYNAMIC
 * and omp_set_dynamic() limit it, and within another parallel region it is one thread. So primitives are created for
 * the team that the calling thread gets, and are run only by a team of that size. The project's own kernels divide
 * their work by loops that OpenMP shares out, whatever the team. */
#ifndef SID_CPU_TEAM_H
#define SID_CPU_TEAM_H

/* The calling thread's own settings. */
typedef struct {
    int threads, dynamic;
} sid_team;

/* Returns the threads that a parallel region of the calling thread has if `threads` are asked for between enter and
 * leave. */
int sid_team_size(int threads);

/* Asks for exactly that many threads; leave restores the thread's own settings. */
sid_team sid_team_enter(int size);
void sid_team_leave(const sid_team *before);

/* From now on forks end the forking thread's team, which the child would wait for. Once is enough. */
int sid_team_open(void);

#endif
