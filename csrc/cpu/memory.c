/* The CPU's memory is the host's: this takes and gives back blocks of it, and moves numbers between and within them. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core/err.h"
#include "cpu/memory.h"

#define LEAST_MAPPED ((size_t)1 << 20)

/* What precedes every block, in SID_ALIGN bytes of its own. */
typedef struct {
    size_t mapped; /* bytes including the header; 0 if they are from malloc */
} header;

/* Large blocks are mapped rather than allocated by malloc(): they return to the system when they are given back, and
 * can have huge pages. */
static void *map(size_t size) {
    void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return NULL;
    madvise(start, size, MADV_HUGEPAGE);
    return start;
}

static int take(sid_memory *memory, void **block, size_t size, const char *what) {
    (void)memory;
    void *start = NULL;
    size_t all = size + SID_ALIGN;
    *block = NULL;
    if (all >= LEAST_MAPPED) start = map(all);
    else if (posix_memalign(&start, SID_ALIGN, all) != 0) start = NULL;
    if (all < size || !start)
        return sid_fail(SID_EMEMORY, "out of memory: %s would take %zu MiB", what, (size + (1 << 20) - 1) >> 20);
    ((header *)start)->mapped = all >= LEAST_MAPPED ? all : 0;
    *block = (char *)start + SID_ALIGN;
    return SID_OK;
}

static void give(sid_memory *memory, void *block) {
    (void)memory;
    void *start = (char *)block - SID_ALIGN;
    size_t mapped = ((const header *)start)->mapped;
    if (mapped) munmap(start, mapped);
    else free(start);
}

const sid_memory sid_cpu_memory = {.take = take, .give = give, .is_host = 1};

int sid_cpu_move(sid_exec *exec, void *to, const void *from, size_t size) {
    (void)exec;
    memcpy(to, from, size);
    return SID_OK;
}

int sid_cpu_zero(sid_exec *exec, void *block, size_t size) {
    (void)exec;
    memset(block, 0, size);
    return SID_OK;
}

int sid_cpu_floats_open(sid_backend *backend, float **floats, size_t parts, const sid_weight *const *weights) {
    size_t count = 0;
    for (size_t i = 0; i < parts; i++) count += sid_weight_count(weights[i]);
    SID_TRY(sid_memory_floats(&backend->memory, floats, count, "a norm's weights"));
    float *next = *floats;
    int status = SID_OK;
    for (size_t i = 0; i < parts && status == SID_OK; next += sid_weight_count(weights[i++]))
        status = sid_weight_floats(next, weights[i]);
    if (status == SID_OK) return SID_OK;
    sid_memory_give(&backend->memory, *floats);
    *floats = NULL;
    return status;
}

int sid_cpu_mix(sid_exec *exec, float *z, const float *p, size_t count, double up, double down, double a, double b) {
    if (sid_measuring(&exec->arena)) return SID_OK;
    for (size_t i = 0; i < count; i++) z[i] = (float)(up * z[i] + down * (a * p[i] + b * z[i]));
    return SID_OK;
}

/* Returns the index at which a row of the window begins in the given plane. */
static size_t window_row(const sid_window *w, size_t plane, size_t row) {
    return (plane * w->height + w->top + row) * w->width + w->left;
}

int sid_cpu_tile_take(sid_exec *exec, float *tile, const float *planes, const sid_window *w) {
    if (sid_measuring(&exec->arena)) return SID_OK;
    for (size_t plane = 0; plane < w->planes; plane++)
        for (size_t y = 0; y < w->rows; y++, tile += w->columns)
            memcpy(tile, planes + window_row(w, plane, y), w->columns * sizeof *tile);
    return SID_OK;
}

int sid_cpu_tile_add(sid_exec *exec, float *planes, const float *tile, const sid_window *w, const float *row_shares,
                     const float *column_shares) {
    if (sid_measuring(&exec->arena)) return SID_OK;
    for (size_t plane = 0; plane < w->planes; plane++)
        for (size_t y = 0; y < w->rows; y++, tile += w->columns) {
            float *to = planes + window_row(w, plane, y);
            for (size_t x = 0; x < w->columns; x++) to[x] += row_shares[y] * column_shares[x] * tile[x];
        }
    return SID_OK;
}
