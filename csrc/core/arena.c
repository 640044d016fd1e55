#include "core/arena.h"

#include "core/err.h"

static int multiply(size_t *count, size_t factor) { return __builtin_mul_overflow(*count, factor, count); }

int sid_memory_floats(sid_memory *memory, float **block, size_t count, const char *what) {
    void *data = NULL;
    *block = NULL;
    if (multiply(&count, sizeof **block)) return sid_fail(SID_EMEMORY, "%s: too large", what);
    SID_TRY(memory->take(memory, &data, count, what));
    *block = data;
    return SID_OK;
}

int sid_memory_planes(sid_memory *memory, sid_planes *planes, const char *what) {
    return sid_memory_floats(memory, &planes->data, sid_planes_count(planes), what);
}

void sid_memory_give(sid_memory *memory, void *block) {
    if (block) memory->give(memory, block);
}

int sid_arena_open(sid_arena *arena, sid_memory *memory, size_t size) {
    void *base;
    *arena = (sid_arena){0};
    SID_TRY(memory->take(memory, &base, size ? size : SID_ALIGN, "the scratch of a run"));
    *arena = (sid_arena){.memory = memory, .base = base, .size = size};
    return SID_OK;
}

void sid_arena_close(sid_arena *arena) {
    if (arena->base) sid_memory_give(arena->memory, arena->base);
    *arena = (sid_arena){0};
}

int sid_arena_take(sid_arena *arena, void **block, size_t size) {
    size_t padded = (size + SID_ALIGN - 1) & ~(size_t)(SID_ALIGN - 1);
    *block = NULL;
    if (padded < size || arena->used + padded < padded)
        return sid_fail(SID_EVALUE, "a tensor of %zu bytes is too large", size);
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

int sid_arena_planes(sid_arena *arena, sid_planes *planes) {
    return sid_arena_floats(arena, &planes->data, sid_planes_count(planes));
}

int sid_arena_tensor(sid_arena *arena, sid_tensor *t, sid_dtype dtype, size_t n, size_t h, size_t w, size_t c) {
    size_t count = n, factors[] = {h, w, c, sid_dtype_size(dtype)};
    for (size_t i = 0; i < 4; i++)
        if (multiply(&count, factors[i]))
            return sid_fail(SID_EVALUE, "a tensor of %zu x %zu x %zu x %zu is too large", n, h, w, c);
    void *data;
    SID_TRY(sid_arena_take(arena, &data, count));
    *t = sid_dense(data, dtype, n, h, w, c);
    return SID_OK;
}
