/* What the functions that launch own kernels share. */
#ifndef SID_CUDA_GRIDS_H
#define SID_CUDA_GRIDS_H

#include "core/err.h"
#include "cuda/kernels/params.h"
#include "cuda/launch.h"

static inline size_t sid_cu_ceil(size_t count, size_t step) { return (count + step - 1) / step; }

/* Returns the grid that has a thread for each of `count` items. */
static inline sid_grid sid_cu_threads(size_t count) {
    return (sid_grid){(unsigned)sid_cu_ceil(count, SID_CU_THREADS), 1, 1, SID_CU_THREADS};
}

/* Whether vectors can be loaded from the address. */
static inline int sid_cu_aligned(const void *data) { return (uintptr_t)data % 16 == 0; }

/* Whether rows of c numbers are whole vectors, wherever they begin. This holds for NULL, which has none. */
static inline int sid_cu_vectors(const sid_tensor *t) {
    return !t || (t->c % SID_CU_VECTOR == 0 && t->stride % SID_CU_VECTOR == 0 && sid_cu_aligned(t->data));
}

static inline sid_cu_matrix sid_cu_rows(const sid_tensor *t) {
    return t ? (sid_cu_matrix){t->data, (int)t->stride, (int)t->dtype} : (sid_cu_matrix){0};
}

/* Finds and launches a kernel. While the arena measures, this only compiles it. */
static inline int sid_cu_run(sid_exec *exec, sid_cu file, const char *name, const char *options, sid_grid grid,
                             const void *parameters, size_t size) {
    const sid_kernel *kernel;
    SID_TRY(sid_kernel_find(sid_cuda_of(exec), &kernel, file, name, options));
    return sid_launch(exec, kernel, grid, parameters, size);
}

#endif
