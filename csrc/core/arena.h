/* Memory of a backend: single blocks, and one buffer per run with bump allocation.
 *
 * A run goes through the model twice: first with a measuring arena, which hands out no memory, only counts, while the
 * backend creates what it needs; then with a buffer of exactly the peak that was counted. See core/run.h. */
#ifndef SID_CORE_ARENA_H
#define SID_CORE_ARENA_H

#include "core/tensor.h"

/* Where a backend's memory comes from. Blocks are aligned to SID_ALIGN. */
typedef struct sid_memory {
    int (*take)(struct sid_memory *memory, void **block, size_t size,
                const char *what);                        /* what: its name in the error text */
    void (*give)(struct sid_memory *memory, void *block); /* may be called while work that uses it is in flight */
    int is_host; /* whether the host may read and write it, so that nothing has to be copied across */
} sid_memory;

#define SID_ALIGN 256

/* Takes count float32 numbers, which sid_memory_give() gives back. */
int sid_memory_floats(sid_memory *memory, float **block, size_t count, const char *what);
/* Takes memory for the data of planes whose other members are set. */
int sid_memory_planes(sid_memory *memory, sid_planes *planes, const char *what);
void sid_memory_give(sid_memory *memory, void *block); /* block may be NULL */

typedef struct {
    sid_memory *memory;
    char *base;
    size_t size, used, peak;
    int measuring;
} sid_arena;

static inline int sid_measuring(const sid_arena *arena) { return arena->measuring; }

/* Opens an arena of `size` bytes, the peak of a measuring one. */
int sid_arena_open(sid_arena *arena, sid_memory *memory, size_t size);
void sid_arena_close(sid_arena *arena);

/* Sets *block to `size` bytes aligned to SID_ALIGN, or to NULL while measuring. */
int sid_arena_take(sid_arena *arena, void **block, size_t size);

int sid_arena_floats(sid_arena *arena, float **block, size_t count);

/* Takes memory for the data of planes whose other members are set. */
int sid_arena_planes(sid_arena *arena, sid_planes *planes);

/* Makes *t a dense tensor in the arena. */
int sid_arena_tensor(sid_arena *arena, sid_tensor *t, sid_dtype dtype, size_t n, size_t h, size_t w, size_t c);

/* Everything taken since the mark is free again after the release. */
static inline size_t sid_arena_mark(const sid_arena *arena) { return arena->used; }
static inline void sid_arena_release(sid_arena *arena, size_t mark) { arena->used = mark; }

#endif
