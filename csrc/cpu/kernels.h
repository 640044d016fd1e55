/* The table of the CPU's own kernels. It is filled with the plain C ones, then overwritten by the best that the CPU
 * has. */
#ifndef SID_CPU_KERNELS_H
#define SID_CPU_KERNELS_H

#include "core/backend.h"
#include "cpu/winograd_grid.h"

/* dst (rows, out) = activation(src (rows, in) weights + bias) * factor + residual, all in float32. bias, factor and
 * residual may be NULL, and residual may be dst. The weights are [panels][in][SID_MATMUL_PANEL], padded with columns
 * of zeros. */
#define SID_MATMUL_PANEL 16
typedef struct {
    size_t rows, in, out;
    float *dst;
    const float *src, *weights, *bias, *factor, *residual;
    size_t dst_stride, src_stride, factor_stride, residual_stride;
    sid_activation activation;
} sid_matmul;

/* dst = a * x + b * y, accumulated in float32; y may be NULL. */
typedef struct {
    void *dst;
    const void *x, *y;
    sid_dtype dst_dtype, x_dtype, y_dtype;
    float a, b;
} sid_combination;

/* The levels are ordered: each includes those before it. */
typedef enum {
    SID_ISA_GENERIC,
    SID_ISA_AVX2,        /* with FMA and F16C */
    SID_ISA_AVX512,      /* F, BW, DQ, VL */
    SID_ISA_AVX512_BF16, /* native bfloat16 dot products */
    SID_ISA_AMX,         /* bfloat16 tiles, which the operating system permits */
    SID_ISA_COUNT
} sid_isa;

typedef struct {
    sid_isa isa;
    /* Returns the bytes of scratch that attention() needs. Both are indexed by the backend's dtype. */
    size_t (*attention_scratch[2])(const sid_attention *attention, int threads);
    void (*attention[2])(const sid_tensor *dst, const sid_attention *attention, void *scratch, int threads);
    /* dst is dense; the scratch has sid_group_norm_scratch() bytes. */
    void (*group_norm)(void *dst, const sid_group_norm *norm, void *scratch, int threads);
    /* dst and src have rows of c elements with strides of their own. */
    void (*layer_norm)(const sid_tensor *dst, const sid_tensor *src, const float *scale, const float *shift, float eps,
                       int threads);
    void (*combine)(const sid_combination *combination, size_t count, int threads); /* of `count` elements */
    void (*from_planes)(const sid_tensor *dst, const sid_planes *planes, const sid_curve *curve, int threads);
    void (*to_planes)(const sid_planes *planes, const sid_tensor *src, const sid_curve *curve, int threads);
    /* Both are indexed by the dtype of the transformed tiles, whose size is sid_winograd_side(). This one fills v
     * [elements][count][channels] with the transformed input tiles of src (n, h, w, channels); channels is a
     * multiple of 16. */
    void (*winograd_input[2])(void *v, const sid_winograd_grid *grid, const void *src, sid_dtype dtype, size_t channels,
                              int threads);
    /* Transforms the tiles m [elements][count][channels] back and adds bias and residual. */
    void (*winograd_output[2])(const sid_winograd_maps *maps, const sid_winograd_grid *grid, const float *m,
                               int threads);
    /* Whether oneDNN does what matmul() does, and faster: then weights are packed for oneDNN. */
    int onednn_products;
    /* Computes products of one shape. Every element is summed in one order, whatever the threads and the rows around
     * it. */
    void (*matmul)(const sid_matmul *products, size_t count, int threads);
    /* Converts `count` elements of weights from any stored dtype to float32 or bfloat16, before they are packed. */
    void (*convert)(void *dst, sid_dtype dst_dtype, const void *src, sid_dtype src_dtype, size_t count, int threads);
} sid_kernels;

size_t sid_group_norm_scratch(const sid_group_norm *norm, int threads);

/* Returns the best level that this CPU and its operating system support. */
sid_isa sid_cpu_isa(void);
const char *sid_isa_name(sid_isa isa);

/* Fills in the kernels of a level, which the CPU must support. */
void sid_kernels_fill(sid_kernels *kernels, sid_isa isa);

/* Each of these overwrites the entries that it improves on. */
void sid_kernels_generic(sid_kernels *kernels);
void sid_kernels_avx2(sid_kernels *kernels);
void sid_kernels_avx512(sid_kernels *kernels);
void sid_kernels_avx512_bf16(sid_kernels *kernels);
void sid_kernels_amx(sid_kernels *kernels);

#endif
