/* Matrix products in float32. Every element is summed in one order, whatever the threads, the batch or its place in it.
 *
 * Rows of src are multiplied by packed panels of SID_MATMUL_PANEL columns, in blocks that stay in the caches. A tile of
 * SID_MATMUL_ROWS x SID_MATMUL_PANEL sums in registers runs through SID_BLOCK_DEPTH elements, for which the panel's
 * part stays in the first-level cache. Each instruction set's file includes this and defines SID_TARGET and
 * SID_MATMUL_ROWS, and SID_LANES where it has included simd.h. */
#ifndef SID_CPU_MATMUL_TMPL_H
#define SID_CPU_MATMUL_TMPL_H

#include "cpu/floats.h"
#include "cpu/kernels.h"

#include <string.h>

#define SID_BLOCK_ROWS 96 /* a multiple of every SID_MATMUL_ROWS */
#define SID_BLOCK_COLUMNS 128
#define SID_BLOCK_DEPTH 320

#ifndef SID_LANES /* vectors of four floats, which every compiler supports */
#define SID_LANES 4
typedef float vec __attribute__((vector_size(16)));
SID_INLINE vec v_set(float x) { return (vec){x, x, x, x}; }
SID_INLINE vec v_load(const float *p) { return (vec){p[0], p[1], p[2], p[3]}; }
SID_INLINE void v_store(float *p, vec x) { memcpy(p, &x, sizeof x); }
SID_INLINE vec v_fma(vec a, vec b, vec c) { return a * b + c; }
#endif
#define SID_VECTORS (SID_MATMUL_PANEL / SID_LANES)

/* Computes sums (rows x SID_MATMUL_PANEL, SID_BLOCK_COLUMNS apart) = [sums +] a (rows x depth) b (depth x
 * SID_MATMUL_PANEL). This is inlined for each number of rows. */
SID_INLINE void multiply_rows(float *sums, const float *a, size_t a_stride, const float *b, size_t depth, int add,
                              const size_t rows) {
    vec acc[SID_MATMUL_ROWS][SID_VECTORS], of_b[SID_VECTORS];
#pragma GCC unroll 8
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (size_t v = 0; v < SID_VECTORS; v++)
            acc[r][v] = add ? v_load(sums + r * SID_BLOCK_COLUMNS + v * SID_LANES) : v_set(0);
    for (size_t k = 0; k < depth; k++) {
#pragma GCC unroll 8
        for (size_t v = 0; v < SID_VECTORS; v++) of_b[v] = v_load(b + k * SID_MATMUL_PANEL + v * SID_LANES);
#pragma GCC unroll 8
        for (size_t r = 0; r < rows; r++) {
            vec of_a = v_set(a[r * a_stride + k]);
#pragma GCC unroll 8
            for (size_t v = 0; v < SID_VECTORS; v++) acc[r][v] = v_fma(of_a, of_b[v], acc[r][v]);
        }
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (size_t v = 0; v < SID_VECTORS; v++) v_store(sums + r * SID_BLOCK_COLUMNS + v * SID_LANES, acc[r][v]);
}

SID_TARGET static void multiply_tile(float *sums, const float *a, size_t a_stride, const float *b, size_t depth,
                                     int add, size_t rows) {
    switch (rows) {
    case 1:
        multiply_rows(sums, a, a_stride, b, depth, add, 1);
        break;
#if SID_MATMUL_ROWS > 2
    case 2:
        multiply_rows(sums, a, a_stride, b, depth, add, 2);
        break;
    case 3:
        multiply_rows(sums, a, a_stride, b, depth, add, 3);
        break;
    case 4:
        multiply_rows(sums, a, a_stride, b, depth, add, 4);
        break;
    case 5:
        multiply_rows(sums, a, a_stride, b, depth, add, 5);
        break;
#endif
    default:
        multiply_rows(sums, a, a_stride, b, depth, add, SID_MATMUL_ROWS);
    }
}

/* Returns x * Phi(x) = max(x, 0) - |x| / 2 * erfc(|x| / sqrt(2)). erfc is approximated as in Abramowitz and Stegun
 * 7.1.26, with an error of at most 1.5e-7. There are no branches, because compilers could not vectorize them. */
SID_INLINE float gelu_erf(float x) {
    float size = __builtin_fabsf(x), z = size * 0.70710678f, t = 1 / SID_FMA(z, 0.3275911f, 1);
    float poly = SID_FMA(t, 1.061405429f, -1.453152027f);
    poly = SID_FMA(t, poly, 1.421413741f);
    poly = SID_FMA(t, poly, -0.284496736f);
    poly = SID_FMA(t, poly, 0.254829592f);
    float rest = 0.5f * size * poly * t * sid_exp2(-SID_LOG2E * z * z);
    return (x > 0 ? x : 0) - rest;
}

/* Computes dst = activation(sums + bias) * factor + residual for count <= SID_BLOCK_COLUMNS elements of one row. */
SID_TARGET static void finish_row(float *dst, float *sums, const float *bias, sid_activation activation,
                                  const float *factor, const float *residual, size_t count) {
    if (bias)
#pragma omp simd
        for (size_t i = 0; i < count; i++) sums[i] += bias[i];
    if (activation == SID_GELU_ERF)
#pragma omp simd
        for (size_t i = 0; i < count; i++) sums[i] = gelu_erf(sums[i]);
    if (activation == SID_GELU_QUICK)
#pragma omp simd
        for (size_t i = 0; i < count; i++) sums[i] = sums[i] / (1 + sid_exp2(-1.702f * SID_LOG2E * sums[i]));
    if (factor)
#pragma omp simd
        for (size_t i = 0; i < count; i++) sums[i] *= factor[i];
    if (residual)
#pragma omp simd
        for (size_t i = 0; i < count; i++) sums[i] += residual[i];
    memcpy(dst, sums, count * sizeof *dst);
}

static size_t at_most(size_t count, size_t most) { return count < most ? count : most; }

/* Computes the block of one product that begins at the given row and column. */
SID_TARGET static void multiply_block(const sid_matmul *p, size_t row, size_t column) {
    float sums[SID_BLOCK_ROWS * SID_BLOCK_COLUMNS] __attribute__((aligned(64)));
    size_t rows = at_most(p->rows - row, SID_BLOCK_ROWS), columns = at_most(p->out - column, SID_BLOCK_COLUMNS);
    for (size_t k = 0; k < p->in; k += SID_BLOCK_DEPTH)
        for (size_t j = 0; j < columns; j += SID_MATMUL_PANEL)
            for (size_t i = 0; i < rows; i += SID_MATMUL_ROWS)
                multiply_tile(sums + i * SID_BLOCK_COLUMNS + j, p->src + (row + i) * p->src_stride + k, p->src_stride,
                              p->weights + (column + j) * p->in + k * SID_MATMUL_PANEL,
                              at_most(p->in - k, SID_BLOCK_DEPTH), k > 0, at_most(rows - i, SID_MATMUL_ROWS));
    for (size_t i = 0; i < rows; i++) {
        size_t y = row + i;
        finish_row(p->dst + y * p->dst_stride + column, sums + i * SID_BLOCK_COLUMNS, p->bias ? p->bias + column : NULL,
                   p->activation, p->factor ? p->factor + y * p->factor_stride + column : NULL,
                   p->residual ? p->residual + y * p->residual_stride + column : NULL, columns);
    }
}

static void matmul(const sid_matmul *products, size_t count, int threads) {
    size_t row_blocks = (products->rows + SID_BLOCK_ROWS - 1) / SID_BLOCK_ROWS;
    size_t blocks = row_blocks * ((products->out + SID_BLOCK_COLUMNS - 1) / SID_BLOCK_COLUMNS);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t i = 0; i < count * blocks; i++) /* neighbouring blocks share their weights */
        multiply_block(&products[i / blocks], i % blocks % row_blocks * SID_BLOCK_ROWS,
                       i % blocks / row_blocks * SID_BLOCK_COLUMNS);
}

#endif
