/* The transforms of Winograd's minimal filtering: F(4x4, 3x3) takes 36 products for an input tile of 6x6 instead of
 * 144, and F(2x2, 3x3) takes 16 products for an input tile of 4x4 instead of 36.
 *
 * The polynomials of the large tiles are evaluated at 0, +-s, +-1/s and infinity with s = sqrt(2), which of the
 * usual choices loses the least in float32. Those of the small tiles are evaluated at 0, 1, -1 and infinity, which
 * takes additions only: the transformed tiles are rounded to bfloat16 and lose little more than their maps did. Each
 * instruction set's file includes this and defines SID_TARGET. */
#ifndef SID_CPU_WINOGRAD_TMPL_H
#define SID_CPU_WINOGRAD_TMPL_H

#include "cpu/floats.h"
#include "cpu/kernels.h"

#include <string.h>

#define SID_WIDTH 16     /* channels processed at a time */
#define SID_MOST_INPUT 6 /* rows and columns of an input tile: two more than an output tile's */

#define SID_SQRT2 1.41421356f
#define SID_SQRT1_2 0.70710678f

/* B^T x of F(4, 3), in place, for six vectors that are `step` apart. */
SID_INLINE void six_inputs(float *x, size_t step) {
    float *x0 = x, *x1 = x + step, *x2 = x1 + step, *x3 = x2 + step, *x4 = x3 + step, *x5 = x4 + step;
#pragma omp simd
    for (size_t i = 0; i < SID_WIDTH; i++) {
        float even1 = x4[i] - 0.5f * x2[i], odd1 = SID_SQRT2 * (x3[i] - 0.5f * x1[i]);
        float even2 = x4[i] - 2 * x2[i], odd2 = SID_SQRT1_2 * (x3[i] - 2 * x1[i]);
        x0[i] = x0[i] - 2.5f * x2[i] + x4[i];
        x5[i] = x1[i] - 2.5f * x3[i] + x5[i];
        x1[i] = even1 + odd1;
        x2[i] = even1 - odd1;
        x3[i] = even2 + odd2;
        x4[i] = even2 - odd2;
    }
}

/* B^T x of F(2, 3), in place, for four vectors. */
SID_INLINE void four_inputs(float *x, size_t step) {
    float *x0 = x, *x1 = x + step, *x2 = x1 + step, *x3 = x2 + step;
#pragma omp simd
    for (size_t i = 0; i < SID_WIDTH; i++) {
        float first = x1[i], second = x2[i];
        x0[i] -= second;
        x1[i] = first + second;
        x2[i] = second - first;
        x3[i] = first - x3[i];
    }
}

/* A^T x of F(4, 3): six vectors become four, in the place of the first four. */
SID_INLINE void six_outputs(float *x, size_t step) {
    float *x0 = x, *x1 = x + step, *x2 = x1 + step, *x3 = x2 + step, *x4 = x3 + step, *x5 = x4 + step;
#pragma omp simd
    for (size_t i = 0; i < SID_WIDTH; i++) {
        float sum1 = x1[i] + x2[i], difference1 = SID_SQRT2 * (x1[i] - x2[i]);
        float sum2 = x3[i] + x4[i], difference2 = SID_SQRT1_2 * (x3[i] - x4[i]);
        x0[i] += sum1 + sum2;
        x1[i] = difference1 + difference2;
        x2[i] = 2 * sum1 + 0.5f * sum2;
        x3[i] = 2 * difference1 + 0.5f * difference2 + x5[i];
    }
}

/* A^T x of F(2, 3): four vectors become two. */
SID_INLINE void four_outputs(float *x, size_t step) {
    float *x0 = x, *x1 = x + step, *x2 = x1 + step, *x3 = x2 + step;
#pragma omp simd
    for (size_t i = 0; i < SID_WIDTH; i++) {
        float sum = x1[i] + x2[i], difference = x1[i] - x2[i];
        x0[i] += sum;
        x1[i] = difference - x3[i];
    }
}

/* These transform one line of a tile. */
SID_INLINE void transform_input(float *x, size_t step, size_t output) {
    if (output == 4) six_inputs(x, step);
    else four_inputs(x, step);
}
SID_INLINE void transform_output(float *x, size_t step, size_t output) {
    if (output == 4) six_outputs(x, step);
    else four_outputs(x, step);
}

/* Transforms one tile of the grid to the dtype `tiles`. It is inlined with that dtype as a constant, so that the
 * loops over a tile are unrolled. */
SID_INLINE void input_tile(void *v, size_t tile, const sid_winograd_grid *g, const void *src, sid_dtype dtype,
                           size_t channels, sid_dtype tiles) {
    const size_t output = sid_winograd_side(tiles), input = output + 2;
    sid_tile_place p = sid_place_of(g, tile, output);
    float d[SID_MOST_INPUT * SID_MOST_INPUT * SID_WIDTH];
    for (size_t c = 0; c < channels; c += SID_WIDTH) {
        for (size_t i = 0; i < input * input; i++) {
            size_t y = p.y + i / input - 1, x = p.x + i % input - 1; /* wraps around to huge numbers above and left */
            float *to = d + i * SID_WIDTH;
            if (y < g->h && x < g->w) {
                const float *from =
                    read_floats(to, src, dtype, ((p.n * g->h + y) * g->w + x) * channels + c, SID_WIDTH);
                if (from != to) memcpy(to, from, SID_WIDTH * sizeof *to);
            } else {
                memset(to, 0, SID_WIDTH * sizeof *to);
            }
        }
        for (size_t x = 0; x < input; x++) transform_input(d + x * SID_WIDTH, input * SID_WIDTH, output);
        for (size_t y = 0; y < input; y++) transform_input(d + y * input * SID_WIDTH, SID_WIDTH, output);
        for (size_t i = 0; i < input * input; i++) {
            size_t place = (i * g->count + tile) * channels + c;
            if (tiles == SID_F32) memcpy((float *)v + place, d + i * SID_WIDTH, SID_WIDTH * sizeof *d);
            else write_floats(v, tiles, place, SID_WIDTH, d + i * SID_WIDTH);
        }
    }
}

/* Stores dst[at ..] = result + bias + residual[at ..], or its positive part, for SID_WIDTH channels of one pixel from c
 * on. */
SID_TARGET static inline void store_pixel(const sid_winograd_maps *maps, size_t at, const float *result, size_t c) {
    const float *bias = maps->bias + c;
    float sum[SID_WIDTH], buffer[SID_WIDTH];
#pragma omp simd
    for (size_t i = 0; i < SID_WIDTH; i++) sum[i] = result[i] + bias[i];
    if (maps->residual) {
        const float *more = read_floats(buffer, maps->residual, maps->dtype, at, SID_WIDTH);
#pragma omp simd
        for (size_t i = 0; i < SID_WIDTH; i++) sum[i] += more[i];
    }
    if (maps->relu) {
#pragma omp simd
        for (size_t i = 0; i < SID_WIDTH; i++) sum[i] = sum[i] > 0 ? sum[i] : 0;
    }
    if (maps->dtype == SID_F32) memcpy((float *)maps->dst + at, sum, sizeof sum);
    else write_floats(maps->dst, maps->dtype, at, SID_WIDTH, sum);
}

SID_INLINE void output_tile(const sid_winograd_maps *maps, const sid_winograd_grid *g, const float *m, size_t tile,
                            sid_dtype tiles) {
    const size_t output = sid_winograd_side(tiles), input = output + 2, channels = maps->channels;
    sid_tile_place p = sid_place_of(g, tile, output);
    float d[SID_MOST_INPUT * SID_MOST_INPUT * SID_WIDTH];
    for (size_t c = 0; c < channels; c += SID_WIDTH) {
        for (size_t i = 0; i < input * input; i++)
            memcpy(d + i * SID_WIDTH, m + (i * g->count + tile) * channels + c, SID_WIDTH * sizeof *d);
        for (size_t x = 0; x < input; x++) transform_output(d + x * SID_WIDTH, input * SID_WIDTH, output);
        for (size_t y = 0; y < output; y++) transform_output(d + y * input * SID_WIDTH, SID_WIDTH, output);
        for (size_t y = 0; y < output && p.y + y < g->h; y++)
            for (size_t x = 0; x < output && p.x + x < g->w; x++)
                store_pixel(maps, ((p.n * g->h + p.y + y) * g->w + p.x + x) * channels + c,
                            d + (y * input + x) * SID_WIDTH, c);
    }
}

/* Defines the kernels winograd_input_NAME and winograd_output_NAME for transformed tiles of a dtype. */
#define SID_WINOGRAD(NAME, TILES)                                                                                   \
    SID_TARGET static void input_##NAME(void *v, size_t tile, const sid_winograd_grid *g, const void *src,          \
                                        sid_dtype dtype, size_t channels) {                                         \
        input_tile(v, tile, g, src, dtype, channels, TILES);                                                        \
    }                                                                                                               \
    SID_TARGET static void output_##NAME(const sid_winograd_maps *maps, const sid_winograd_grid *g, const float *m, \
                                         size_t tile) {                                                             \
        output_tile(maps, g, m, tile, TILES);                                                                       \
    }                                                                                                               \
    SID_WINOGRAD_KERNELS(NAME, input_##NAME, output_##NAME)

SID_WINOGRAD(f32, SID_F32)

static void fill_winograd(sid_kernels *kernels) {
    kernels->winograd_input[SID_F32] = winograd_input_f32;
    kernels->winograd_output[SID_F32] = winograd_output_f32;
}

#endif
