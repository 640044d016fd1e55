#include "core/arena.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "core/err.h"

/* Buffers are mapped rather than malloc()ed: they go back to the system when closed, and can have huge pages. */
int sid_arena_open(sid_arena *arena) {
    size_t size = arena->peak ? arena->peak : SID_ALIGN;
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return sid_fail(SID_EMEMORY, "out of memory: a run of this size needs %zu MiB of scratch", size >> 20);
    madvise(base, size, MADV_HUGEPAGE);
    *arena = (sid_arena){.base = base, .size = size};
    return SID_OK;
}

void sid_arena_close(sid_arena *arena) {
    if (arena->base) munmap(arena->base, arena->size);
    *arena = (sid_arena){0};
}

int sid_arena_take(sid_arena *arena, void **block, size_t size) {
    size_t padded = (size + SID_ALIGN - 1) & ~(size_t)(SID_ALIGN - 1);
    if (padded < size || arena->used + padded < padded)
        return sid_fail(SID_EVALUE, "a tensor of %zu bytes is too large", size);
    *block = NULL;
    if (!sid_measuring(arena)) {
        if (arena->used + padded > arena->size)
            return sid_fail(SID_EINTERNAL, "the arena of %zu bytes was measured too small", arena->size);
        *block = arena->base + arena->used;
    }
    arena->used += padded;
    if (arena->used > arena->peak) arena->peak = arena->used;
    return SID_OK;
}

int sid_arena_floats(sid_arena *arena, float **block, size_t count) {
    void *memory;
    SID_TRY(sid_arena_take(arena, &memory, count * sizeof **block));
    *block = memory;
    return SID_OK;
}

int sid_arena_tensor(sid_arena *arena, sid_tensor *t, sid_dtype dtype, size_t n, size_t h, size_t w, size_t c) {
    size_t count = n, factors[] = {h, w, c, sid_dtype_size(dtype)};
    for (size_t i = 0; i < 4; i++)
        if (__builtin_mul_overflow(count, factors[i], &count))
            return sid_fail(SID_EVALUE, "a tensor of %zu x %zu x %zu x %zu is too large", n, h, w, c);
    void *data;
    SID_TRY(sid_arena_take(arena, &data, count));
    *t = sid_dense(data, dtype, n, h, w, c);
    return SID_OK;
}
