#include "core/run.h"

#include "core/err.h"
#include "core/lock.h"

void sid_runner_close(sid_runner *runner) { sid_arena_close(&runner->idle); }

size_t sid_runner_idle(sid_runner *runner) {
    sid_lock(SID_LOCK_STATE);
    size_t bytes = runner->idle.size;
    sid_unlock(SID_LOCK_STATE);
    return bytes;
}

int sid_run_scratch(sid_runner *runner, size_t *bytes, sid_pass pass, const void *arguments) {
    sid_exec exec = {.backend = runner->backend, .arena = {.measuring = 1}};
    SID_TRY(pass(&exec, arguments));
    *bytes = exec.arena.peak;
    return SID_OK;
}

/* Takes the idle buffer if it is large enough, else a new one in its place: both at once would take more memory than
 * was predicted. */
static int take_arena(sid_runner *runner, sid_arena *arena, size_t bytes) {
    sid_lock(SID_LOCK_STATE);
    *arena = runner->idle;
    runner->idle = (sid_arena){0};
    sid_unlock(SID_LOCK_STATE);
    if (arena->base && arena->size >= bytes) return SID_OK;
    sid_arena_close(arena);
    return sid_arena_open(arena, &runner->backend->memory, bytes);
}

/* Keeps the larger of the returned and the idle buffer. */
static void return_arena(sid_runner *runner, sid_arena *arena) {
    sid_lock(SID_LOCK_STATE);
    if (arena->size > runner->idle.size) {
        sid_arena swap = runner->idle;
        runner->idle = *arena;
        *arena = swap;
    }
    sid_unlock(SID_LOCK_STATE);
    sid_arena_close(arena);
}

static int compute(sid_exec *exec, uint64_t key, sid_pass pass, const void *arguments, int *again) {
    sid_arena_release(&exec->arena, 0);
    SID_TRY(exec->backend->begin(exec, key));
    return exec->backend->end(exec, pass(exec, arguments), again);
}

int sid_run(sid_runner *runner, uint64_t key, sid_pass pass, const void *arguments) {
    sid_exec exec = {.backend = runner->backend};
    size_t bytes;
    int status, again;
    SID_TRY(sid_run_scratch(runner, &bytes, pass, arguments));
    SID_TRY(take_arena(runner, &exec.arena, bytes));
    do {
        again = 0;
        status = compute(&exec, key, pass, arguments, &again);
    } while (status == SID_OK && again);
    sid_arena_release(&exec.arena, 0);
    return_arena(runner, &exec.arena);
    return status;
}

uint64_t sid_run_key(uint64_t key, const void *facts, size_t size) {
    const unsigned char *bytes = facts;
    for (size_t i = 0; i < size; i++) key = (key ^ bytes[i]) * 0x100000001b3; /* FNV-1a */
    return key ? key : 1;
}
