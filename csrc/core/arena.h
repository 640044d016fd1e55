/* One buffer per run with bump allocation.
 *
 * A run goes through the model twice: first with a measuring arena, which hands out no memory, only counts,
 * while the backend creates its primitives; then with a buffer of exactly the peak that was counted. */
#ifndef SID_CORE_ARENA_H
#define SID_CORE_ARENA_H

#include "core/tensor.h"

typedef struct {
    char *base; /* NULL: measuring */
    size_t size, used, peak;
} sid_arena;

#define SID_ALIGN 64

static inline int sid_measuring(const sid_arena *arena) { return arena->base == NULL; }

/* Gives a measured arena its buffer (arena->peak bytes) and starts it anew. */
int sid_arena_open(sid_arena *arena);
void sid_arena_close(sid_arena *arena);

/* *block: size bytes aligned to SID_ALIGN; NULL while measuring. */
int sid_arena_take(sid_arena *arena, void **block, size_t size);

int sid_arena_floats(sid_arena *arena, float **block, size_t count);

/* A dense tensor in the arena. */
int sid_arena_tensor(sid_arena *arena, sid_tensor *t, sid_dtype dtype, size_t n, size_t h, size_t w, size_t c);

/* Everything taken since the mark is free again after the release. */
static inline size_t sid_arena_mark(const sid_arena *arena) { return arena->used; }
static inline void sid_arena_release(sid_arena *arena, size_t mark) { arena->used = mark; }

#endif
