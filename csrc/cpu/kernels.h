/* The table of the CPU's own kernels: filled with the plain C ones, overwritten by the best that the CPU has. */
#ifndef SID_CPU_KERNELS_H
#define SID_CPU_KERNELS_H

#include "core/backend.h"
#include "cpu/winograd_grid.h"

/* dst (rows, out) = activation(src (rows, in) weights + bias) * factor + residual, all in float32. bias, factor and
 * residual may be NULL, residual may be dst. weights: [panels][in][SID_MATMUL_PANEL], the columns that are missing
 * zero. */
#define SID_MATMUL_PANEL 16
typedef struct {
    size_t rows, in, out;
    float *dst;
    const float *src, *weights, *bias, *factor, *residual;
    size_t dst_stride, src_stride, factor_stride, residual_stride;
    sid_activation activation;
} sid_matmul;

/* a * x + b * y, accumulated in float32; y may be NULL. */
typedef struct {
    void *dst;
    const void *x, *y;
    sid_dtype dst_dtype, x_dtype, y_dtype;
    float a, b;
} sid_combination;

/* Ordered: a level includes the ones before it. */
typedef enum {
    SID_ISA_GENERIC,
    SID_ISA_AVX2,        /* with FMA and F16C */
    SID_ISA_AVX512,      /* F, BW, DQ, VL */
    SID_ISA_AVX512_BF16, /* native bfloat16 dot products */
    SID_ISA_AMX,         /* bfloat16 tiles, and the kernel's permission to use them */
    SID_ISA_COUNT
} sid_isa;

typedef struct {
    sid_isa isa;
    /* Scratch bytes that attention() needs; by the backend's dtype. */
    size_t (*attention_scratch[2])(const sid_attention *attention, int threads);
    void (*attention[2])(const sid_tensor *dst, const sid_attention *attention, void *scratch, int threads);
    /* dst dense. scratch: sid_group_norm_scratch() bytes. */
    void (*group_norm)(void *dst, const sid_group_norm *norm, void *scratch, int threads);
    /* dst, src of rows x c with the given strides. */
    void (*layer_norm)(const sid_tensor *dst, const sid_tensor *src, const float *scale, const float *shift, float eps,
                       int threads);
    void (*combine)(const sid_combination *combination, size_t count, int threads); /* count elements */
    void (*from_planes)(const sid_tensor *dst, const sid_planes *planes, const sid_curve *curve, int threads);
    void (*to_planes)(const sid_planes *planes, const sid_tensor *src, const sid_curve *curve, int threads);
    /* By the dtype of the transformed tiles v [elements][count][channels]; sid_winograd_side() gives their size. v: the
     * input tiles of src (n, h, w, channels), transformed; channels a multiple of 16. */
    void (*winograd_input[2])(void *v, const sid_winograd_grid *grid, const void *src, sid_dtype dtype, size_t channels,
                              int threads);
    /* The tiles m [elements][count][channels] transformed back, + bias + residual. */
    void (*winograd_output[2])(const sid_winograd_maps *maps, const sid_winograd_grid *grid, const float *m,
                               int threads);
    /* Whether oneDNN multiplies as matmul() does, and faster: then weights are packed for oneDNN. */
    int onednn_products;
    /* Products of one shape; every element is summed in one order, whatever the threads and the rows around it. */
    void (*matmul)(const sid_matmul *products, size_t count, int threads);
    /* Weights on their way into packing: count elements of any stored dtype to float32 or bfloat16. */
    void (*convert)(void *dst, sid_dtype dst_dtype, const void *src, sid_dtype src_dtype, size_t count, int threads);
} sid_kernels;

size_t sid_group_norm_scratch(const sid_group_norm *norm, int threads);

/* The best level that this CPU and its operating system support. */
sid_isa sid_cpu_isa(void);
const char *sid_isa_name(sid_isa isa); /* "generic", "avx2", "avx512", "avx512_bf16", "amx" */

/* The kernels of a level; the CPU must support it. */
void sid_kernels_fill(sid_kernels *kernels, sid_isa isa);

/* Each overwrites what it does better. */
void sid_kernels_generic(sid_kernels *kernels);
void sid_kernels_avx2(sid_kernels *kernels);
void sid_kernels_avx512(sid_kernels *kernels);
void sid_kernels_avx512_bf16(sid_kernels *kernels);
void sid_kernels_amx(sid_kernels *kernels);

#endif
