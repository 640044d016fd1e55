#include "model/cache.h"

#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "core/loan.h"
#include "core/lock.h"

#define CONTEXTS 2 /* that are kept: the prompt's and the negative one */

struct sid_prepared {
    sid_context given;
    size_t users;
    float *copy;      /* of the given numbers, on the host */
    void *block;      /* the keys' memory */
    sid_tensor *keys; /* by transformer */
};

struct sid_cache {
    sid_runner *runner;
    const sid_unet *unet;
    /* What follows is guarded by SID_LOCK_STATE. */
    sid_prepared *contexts[CONTEXTS]; /* the last ones used, the latest first */
    float *times[SID_TRAIN_STEPS];    /* what the ResNets add at a timestep; NULL until asked for */
};

static sid_memory *memory_of(const sid_cache *cache) { return &cache->runner->backend->memory; }

/* ---- time ---- */

typedef struct {
    const sid_unet *unet;
    float *time;
    sid_planes waves;
} time_arguments;

static int run_time(sid_exec *exec, const void *arguments) {
    const time_arguments *a = arguments;
    return sid_unet_time(exec, a->unet, a->time, &a->waves);
}

static int compute_time(sid_cache *cache, float *time, int timestep) {
    size_t count = sid_unet_wave_count(cache->unet);
    sid_exec outside = {.backend = cache->runner->backend};
    sid_loan loan = {0};
    float *waves = malloc(count * sizeof *waves);
    if (!waves) return sid_fail(SID_EMEMORY, "out of memory");
    sid_unet_waves(waves, count, timestep);
    int status = sid_loan_open(&loan, &outside, waves, count * sizeof *waves, 1);
    time_arguments arguments = {cache->unet, time, {loan.block, 1, count, 1, 1}};
    if (status == SID_OK) status = sid_run(cache->runner, 0, run_time, &arguments);
    sid_loan_close(&loan, &outside, 0);
    free(waves);
    return status;
}

int sid_cache_time(sid_cache *cache, const float **time, int timestep) {
    sid_lock(SID_LOCK_STATE);
    *time = cache->times[timestep];
    sid_unlock(SID_LOCK_STATE);
    if (*time) return SID_OK;

    float *row;
    SID_TRY(sid_memory_floats(memory_of(cache), &row, sid_unet_time_size(cache->unet), "a timestep's embedding"));
    int status = compute_time(cache, row, timestep);
    if (status == SID_OK) {
        sid_lock(SID_LOCK_STATE);
        if (!cache->times[timestep]) {
            cache->times[timestep] = row;
            row = NULL;
        }
        *time = cache->times[timestep];
        sid_unlock(SID_LOCK_STATE);
    }
    sid_memory_give(memory_of(cache), row);
    return status;
}

/* ---- context ---- */

const sid_tensor *sid_prepared_keys(const sid_prepared *prepared) { return prepared->keys; }

static size_t count_of(const sid_cache *cache, const sid_context *context) {
    return context->n * context->tokens * sid_unet_context_size(cache->unet);
}

static void prepared_free(const sid_cache *cache, sid_prepared *p) {
    if (!p) return;
    sid_memory_give(memory_of(cache), p->block);
    free(p->copy);
    free(p->keys);
    free(p);
}

static int prepared_allocate(const sid_cache *cache, sid_prepared **prepared, const sid_context *given) {
    size_t count = sid_unet_transformers(cache->unet), channels = 0, size = count_of(cache, given);
    sid_dtype dtype = cache->runner->backend->dtype;
    sid_prepared *p = *prepared = calloc(1, sizeof *p);
    if (!p) return sid_fail(SID_EMEMORY, "out of memory");
    for (size_t i = 0; i < count; i++) channels += 2 * sid_unet_transformer_channels(cache->unet, i);
    p->given = *given;
    p->copy = malloc(size * sizeof *p->copy);
    p->keys = calloc(count, sizeof *p->keys);
    if (!p->copy || !p->keys) return sid_fail(SID_EMEMORY, "out of memory for a context");
    memcpy(p->copy, given->data, size * sizeof *p->copy);
    size_t bytes = given->n * given->tokens * channels * sid_dtype_size(dtype);
    SID_TRY(memory_of(cache)->take(memory_of(cache), &p->block, bytes, "a context's keys and values"));
    char *next = p->block;
    for (size_t i = 0; i < count; i++) {
        size_t width = 2 * sid_unet_transformer_channels(cache->unet, i);
        p->keys[i] = sid_dense(next, dtype, given->n, 1, given->tokens, width);
        next += given->n * given->tokens * width * sid_dtype_size(dtype);
    }
    return SID_OK;
}

typedef struct {
    const sid_unet *unet;
    sid_tensor given;
    sid_tensor *keys;
} context_arguments;

static int run_context(sid_exec *exec, const void *arguments) {
    const context_arguments *a = arguments;
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor context;
    SID_TRY(sid_new_like(exec, &context, &a->given, a->given.c));
    SID_TRY(sid_combine(exec, &context, 1, &a->given, 0, NULL));
    SID_TRY(sid_unet_context(exec, a->unet, a->keys, &context));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

static int compute_context(const sid_cache *cache, const sid_prepared *p) {
    const sid_context *given = &p->given;
    sid_exec outside = {.backend = cache->runner->backend};
    sid_loan loan;
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): sid_fail() never returns SID_OK. */
    int status = sid_loan_open(&loan, &outside, p->copy, count_of(cache, given) * sizeof *p->copy, 1);
    sid_tensor lent = sid_dense(loan.block, SID_F32, given->n, 1, given->tokens, sid_unet_context_size(cache->unet));
    if (status == SID_OK)
        status = sid_run(cache->runner, 0, run_context, &(context_arguments){cache->unet, lent, p->keys});
    sid_loan_close(&loan, &outside, 0);
    return status;
}

static int matches(const sid_cache *cache, const sid_prepared *p, const sid_context *given) {
    return p && p->given.n == given->n && p->given.tokens == given->tokens &&
           memcmp(p->copy, given->data, count_of(cache, given) * sizeof *given->data) == 0;
}

/* The next three functions are called with the lock held. This one counts a user less and frees p with the last one,
 * unless the cache holds it. */
static void drop(const sid_cache *cache, sid_prepared *p) {
    if (--p->users) return;
    for (size_t i = 0; i < CONTEXTS; i++)
        if (cache->contexts[i] == p) return;
    prepared_free(cache, p);
}

/* Finds the cache's context that matches, and counts one user more; NULL where none matches. */
static sid_prepared *find(const sid_cache *cache, const sid_context *given) {
    for (size_t i = 0; i < CONTEXTS; i++) {
        if (!matches(cache, cache->contexts[i], given)) continue;
        cache->contexts[i]->users++;
        return cache->contexts[i];
    }
    return NULL;
}

/* Makes p the first of the contexts. Where it is a new one, the oldest goes. */
static void keep(sid_cache *cache, sid_prepared *p) {
    size_t place = 0;
    while (place + 1 < CONTEXTS && cache->contexts[place] != p) place++;
    sid_prepared *oldest = cache->contexts[place];
    memmove(cache->contexts + 1, cache->contexts, place * sizeof *cache->contexts);
    cache->contexts[0] = p;
    if (oldest && oldest != p && oldest->users == 0) prepared_free(cache, oldest);
}

int sid_cache_context(sid_cache *cache, sid_prepared **prepared, const sid_context *given) {
    sid_lock(SID_LOCK_STATE);
    *prepared = find(cache, given);
    if (*prepared) keep(cache, *prepared);
    sid_unlock(SID_LOCK_STATE);
    if (*prepared) return SID_OK;

    int status = prepared_allocate(cache, prepared, given);
    if (status == SID_OK) status = compute_context(cache, *prepared);
    if (status != SID_OK) {
        prepared_free(cache, *prepared);
        return status;
    }
    sid_lock(SID_LOCK_STATE);
    (*prepared)->users = 1;
    keep(cache, *prepared);
    sid_unlock(SID_LOCK_STATE);
    return SID_OK;
}

void sid_cache_release(sid_cache *cache, sid_prepared *prepared) {
    sid_lock(SID_LOCK_STATE);
    drop(cache, prepared);
    sid_unlock(SID_LOCK_STATE);
}

/* ---- life ---- */

int sid_cache_open(sid_cache **cache, sid_runner *runner, const sid_unet *unet) {
    sid_cache *c = *cache = calloc(1, sizeof *c);
    if (!c) return sid_fail(SID_EMEMORY, "out of memory");
    c->runner = runner;
    c->unet = unet;
    return SID_OK;
}

void sid_cache_close(sid_cache **cache) {
    sid_cache *c = *cache;
    if (!c) return;
    for (size_t t = 0; t < SID_TRAIN_STEPS; t++) sid_memory_give(memory_of(c), c->times[t]);
    for (size_t i = 0; i < CONTEXTS; i++) prepared_free(c, c->contexts[i]);
    free(c);
    *cache = NULL;
}
