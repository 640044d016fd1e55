/* The transforms of Winograd's minimal filtering F(4x4, 3x3): 36 products an input tile of 6x6 instead of 144.
 *
 * The polynomials are evaluated at 0, +-s, +-1/s and infinity with s = sqrt(2): of the usual choices the one that loses
 * the least in float32. Included by each instruction set's file, which defines TARGET. */
#ifndef SID_CPU_WINOGRAD_TILE_H
#define SID_CPU_WINOGRAD_TILE_H

#include "cpu/floats.h"
#include "cpu/kernels.h"

#include <string.h>

#define INPUT 6 /* rows and columns of an input tile, and of a transformed one */
#define OUTPUT 4
#define WIDTH 16 /* channels at a time */

#define S 1.41421356f
#define T 0.70710678f

/* Six vectors, `step` apart, in place: B^T x. */
TARGET static inline void transform_input_line(float *x, size_t step) {
    float *x0 = x, *x1 = x + step, *x2 = x1 + step, *x3 = x2 + step, *x4 = x3 + step, *x5 = x4 + step;
#pragma omp simd
    for (size_t i = 0; i < WIDTH; i++) {
        float even1 = x4[i] - 0.5f * x2[i], odd1 = S * (x3[i] - 0.5f * x1[i]);
        float even2 = x4[i] - 2 * x2[i], odd2 = T * (x3[i] - 2 * x1[i]);
        x0[i] = x0[i] - 2.5f * x2[i] + x4[i];
        x5[i] = x1[i] - 2.5f * x3[i] + x5[i];
        x1[i] = even1 + odd1;
        x2[i] = even1 - odd1;
        x3[i] = even2 + odd2;
        x4[i] = even2 - odd2;
    }
}

/* Six vectors to four, in the first four's place: A^T x. */
TARGET static inline void transform_output_line(float *x, size_t step) {
    float *x0 = x, *x1 = x + step, *x2 = x1 + step, *x3 = x2 + step, *x4 = x3 + step, *x5 = x4 + step;
#pragma omp simd
    for (size_t i = 0; i < WIDTH; i++) {
        float sum1 = x1[i] + x2[i], difference1 = S * (x1[i] - x2[i]);
        float sum2 = x3[i] + x4[i], difference2 = T * (x3[i] - x4[i]);
        x0[i] += sum1 + sum2;
        x1[i] = difference1 + difference2;
        x2[i] = 2 * sum1 + 0.5f * sum2;
        x3[i] = 2 * difference1 + 0.5f * difference2 + x5[i];
    }
}

/* A tile's place: its sample, and its first output pixel. */
typedef struct {
    size_t n, y, x;
} tile_place;

static tile_place place_of(const sid_winograd_grid *g, size_t tile) {
    size_t columns = (g->w + OUTPUT - 1) / OUTPUT, rows = (g->h + OUTPUT - 1) / OUTPUT;
    return (tile_place){tile / columns / rows, tile / columns % rows * OUTPUT, tile % columns * OUTPUT};
}

TARGET static void input_tile(float *v, size_t v_step, const sid_winograd_grid *g, const void *src, sid_dtype dtype,
                              size_t channels, tile_place p) {
    float d[INPUT * INPUT * WIDTH];
    for (size_t c = 0; c < channels; c += WIDTH) {
        for (size_t i = 0; i < INPUT * INPUT; i++) {
            size_t y = p.y + i / INPUT - 1, x = p.x + i % INPUT - 1; /* wraps around to huge above and left */
            float *to = d + i * WIDTH;
            if (y < g->h && x < g->w) {
                const float *from = read_floats(to, src, dtype, ((p.n * g->h + y) * g->w + x) * channels + c, WIDTH);
                if (from != to) memcpy(to, from, WIDTH * sizeof *to);
            } else {
                memset(to, 0, WIDTH * sizeof *to);
            }
        }
        for (size_t x = 0; x < INPUT; x++) transform_input_line(d + x * WIDTH, INPUT * WIDTH);
        for (size_t y = 0; y < INPUT; y++) transform_input_line(d + y * INPUT * WIDTH, WIDTH);
        for (size_t i = 0; i < INPUT * INPUT; i++) memcpy(v + i * v_step + c, d + i * WIDTH, WIDTH * sizeof *d);
    }
}

/* dst[at ..] = result + bias + residual[at ..], or its positive part, WIDTH channels of one pixel. */
TARGET static inline void store_pixel(void *dst, sid_dtype dtype, size_t at, const float *result, const float *bias,
                                      const void *residual, int relu) {
    float sum[WIDTH], buffer[WIDTH];
#pragma omp simd
    for (size_t i = 0; i < WIDTH; i++) sum[i] = result[i] + bias[i];
    if (residual) {
        const float *more = read_floats(buffer, residual, dtype, at, WIDTH);
#pragma omp simd
        for (size_t i = 0; i < WIDTH; i++) sum[i] += more[i];
    }
    if (relu) {
#pragma omp simd
        for (size_t i = 0; i < WIDTH; i++) sum[i] = sum[i] > 0 ? sum[i] : 0;
    }
    if (dtype == SID_F32) memcpy((float *)dst + at, sum, sizeof sum);
    else write_floats(dst, dtype, at, WIDTH, sum);
}

TARGET static void output_tile(void *dst, sid_dtype dtype, const sid_winograd_grid *g, const float *m, size_t m_step,
                               size_t channels, const float *bias, const void *residual, int relu, tile_place p) {
    float d[INPUT * INPUT * WIDTH];
    for (size_t c = 0; c < channels; c += WIDTH) {
        for (size_t i = 0; i < INPUT * INPUT; i++) memcpy(d + i * WIDTH, m + i * m_step + c, WIDTH * sizeof *d);
        for (size_t x = 0; x < INPUT; x++) transform_output_line(d + x * WIDTH, INPUT * WIDTH);
        for (size_t y = 0; y < OUTPUT; y++) transform_output_line(d + y * INPUT * WIDTH, WIDTH);
        for (size_t y = 0; y < OUTPUT && p.y + y < g->h; y++)
            for (size_t x = 0; x < OUTPUT && p.x + x < g->w; x++)
                store_pixel(dst, dtype, ((p.n * g->h + p.y + y) * g->w + p.x + x) * channels + c,
                            d + (y * INPUT + x) * WIDTH, bias + c, residual, relu);
    }
}

static void winograd_input(float *v, const sid_winograd_grid *g, const void *src, sid_dtype dtype, size_t channels,
                           int threads) {
#pragma omp parallel for num_threads(threads)
    for (size_t i = 0; i < g->count; i++)
        input_tile(v + i * channels, g->count * channels, g, src, dtype, channels, place_of(g, g->first + i));
}

static void winograd_output(void *dst, sid_dtype dtype, const sid_winograd_grid *g, const float *m, size_t channels,
                            const float *bias, const void *residual, int relu, int threads) {
#pragma omp parallel for num_threads(threads)
    for (size_t i = 0; i < g->count; i++)
        output_tile(dst, dtype, g, m + i * channels, g->count * channels, channels, bias, residual, relu,
                    place_of(g, g->first + i));
}

static void fill_winograd(sid_kernels *kernels) {
    kernels->winograd_input = winograd_input;
    kernels->winograd_output = winograd_output;
}

#undef S
#undef T
#endif
