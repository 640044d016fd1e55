/* Runs of a model: one function, called once to measure and once to compute. */
#ifndef SID_CORE_RUN_H
#define SID_CORE_RUN_H

#include "core/backend.h"

/* What a run does, with operations of core/ops.h. It is called with equal arguments in every pass. */
typedef int (*sid_pass)(sid_exec *exec, const void *arguments);

/* What the runs of one model share; threads may run at the same time. */
typedef struct {
    sid_backend *backend;
    sid_arena idle; /* the last run's buffer, for the next; guarded by SID_LOCK_STATE */
} sid_runner;

void sid_runner_close(sid_runner *runner);
size_t sid_runner_idle(sid_runner *runner); /* bytes of scratch that wait for the next run */

/* Measures, takes the scratch, begins, computes and ends. The key is that of begin() in core/backend.h. */
int sid_run(sid_runner *runner, uint64_t key, sid_pass pass, const void *arguments);
/* Only measures how many bytes of scratch a run takes. */
int sid_run_scratch(sid_runner *runner, size_t *bytes, sid_pass pass, const void *arguments);

/* Extends a key, which at first stands for the function, by facts that runs have to agree in. The result is never 0. */
uint64_t sid_run_key(uint64_t key, const void *facts, size_t size);

#endif
