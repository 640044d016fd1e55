/* What the tests call by ctypes: one kernel of one level, with scratch of exactly the size that it asked for. */
#include "cpu/kernels.h"

#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define GUARD 64

/* Takes memory that is dirty and whose end is watched; NULL if there is none. */
static char *take(size_t size) {
    char *memory = aligned_alloc(SID_ALIGN, (size + GUARD + SID_ALIGN - 1) / SID_ALIGN * SID_ALIGN);
    if (memory) memset(memory, 0xff, size + GUARD);
    return memory;
}
/* Frees memory. Returns whether nothing was written beyond its size. */
static int give_back(char *memory, size_t size) {
    int intact = 1;
    for (size_t i = 0; i < GUARD; i++) intact &= memory[size + i] == (char)0xff;
    free(memory);
    return intact;
}

static sid_kernels level(int isa) {
    sid_kernels kernels;
    sid_kernels_fill(&kernels, (sid_isa)isa);
    return kernels;
}

EXPORT int shim_isa(void) { return (int)sid_cpu_isa(); }
EXPORT const char *shim_isa_name(int isa) { return sid_isa_name((sid_isa)isa); }

/* Returns the sizes of the structures that Python mirrors. */
EXPORT size_t shim_size(int which) {
    const size_t sizes[] = {sizeof(sid_tensor), sizeof(sid_keys), sizeof(sid_attention), sizeof(sid_matmul)};
    return sizes[which];
}

EXPORT int shim_attention(int isa, const sid_tensor *dst, const sid_attention *attention, int threads) {
    sid_kernels kernels = level(isa);
    size_t size = kernels.attention_scratch[dst->dtype](attention, threads);
    char *scratch = take(size);
    if (!scratch) return 0;
    kernels.attention[dst->dtype](dst, attention, scratch, threads);
    return give_back(scratch, size);
}

/* b is NULL, or the second source. */
EXPORT int shim_group_norm(int isa, void *dst, const sid_tensor *a, const sid_tensor *b, const sid_tensor *add,
                           const float *scale, const float *shift, size_t groups, float eps, int silu, int threads) {
    sid_group_norm norm = {a, b, add, scale, shift, groups, eps, silu};
    size_t size = sid_group_norm_scratch(&norm, threads);
    char *scratch = take(size);
    if (!scratch) return 0;
    level(isa).group_norm(dst, &norm, scratch, threads);
    return give_back(scratch, size);
}

static sid_dtype tiles_of(size_t output) { return output == sid_winograd_side(SID_F32) ? SID_F32 : SID_BF16; }

EXPORT void shim_winograd_input(int isa, void *v, const void *src, int dtype, size_t h, size_t w, size_t first,
                                size_t count, size_t output, size_t channels, int threads) {
    sid_winograd_grid grid = {h, w, first, count};
    level(isa).winograd_input[tiles_of(output)](v, &grid, src, (sid_dtype)dtype, channels, threads);
}

EXPORT void shim_winograd_output(int isa, void *dst, int dtype, const float *m, const float *bias, const void *residual,
                                 size_t h, size_t w, size_t first, size_t count, size_t output, size_t channels,
                                 int relu, int threads) {
    sid_winograd_grid grid = {h, w, first, count};
    sid_winograd_maps maps = {dst, residual, bias, (sid_dtype)dtype, channels, relu};
    level(isa).winograd_output[tiles_of(output)](&maps, &grid, m, threads);
}

/* Returns whether the level has such a kernel. */
EXPORT int shim_matmul(int isa, const sid_matmul *products, size_t count, int threads) {
    sid_kernels kernels = level(isa);
    if (!kernels.onednn_products) kernels.matmul(products, count, threads);
    return !kernels.onednn_products;
}

EXPORT void shim_convert(int isa, void *dst, int dst_dtype, const void *src, int src_dtype, size_t count, int threads) {
    level(isa).convert(dst, (sid_dtype)dst_dtype, src, (sid_dtype)src_dtype, count, threads);
}
