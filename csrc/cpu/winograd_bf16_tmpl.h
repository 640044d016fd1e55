/* The transforms of Winograd's F(2x2, 3x3), as in winograd_tmpl.h, with a whole tile in registers. */
#ifndef SID_CPU_WINOGRAD_BF16_TMPL_H
#define SID_CPU_WINOGRAD_BF16_TMPL_H

#include "cpu/kernels.h"
#include "cpu/simd_bf16.h"

#define INPUT 4 /* rows and columns of an input tile */
#define OUTPUT 2
#define EACH _Pragma("GCC unroll 16") for

SIMD vec load_pixel(const void *map, sid_dtype dtype, size_t at) {
    return dtype == SID_F32 ? v_load((const float *)map + at) : v_from_bf16((const uint16_t *)map + at);
}

/* B^T x, A^T x of vectors `step` apart, in place. */
SIMD void transform_input(vec *x, size_t step) {
    vec a = x[0], b = x[step], c = x[2 * step], d = x[3 * step];
    x[0] = v_sub(a, c);
    x[step] = v_add(b, c);
    x[2 * step] = v_sub(c, b);
    x[3 * step] = v_sub(b, d);
}
SIMD void transform_output(vec *x, size_t step) {
    vec a = x[0], b = x[step], c = x[2 * step], d = x[3 * step];
    x[0] = v_add(a, v_add(b, c));
    x[step] = v_sub(v_sub(b, c), d);
}

SIMD void input_tile(uint16_t *v, size_t tile, const sid_winograd_grid *g, const void *src, sid_dtype dtype,
                     size_t channels) {
    sid_tile_place p = sid_place_of(g, tile, OUTPUT);
    size_t from[INPUT * INPUT];
    int inside[INPUT * INPUT];
    for (size_t i = 0; i < INPUT * INPUT; i++) {
        size_t y = p.y + i / INPUT - 1, x = p.x + i % INPUT - 1; /* wraps around to huge above and left */
        inside[i] = y < g->h && x < g->w;
        from[i] = ((p.n * g->h + y) * g->w + x) * channels;
    }
    for (size_t c = 0; c < channels; c += SID_LANES) {
        vec d[INPUT * INPUT];
        EACH(size_t i = 0; i < INPUT * INPUT; i++) d[i] = inside[i] ? load_pixel(src, dtype, from[i] + c) : v_set(0);
        EACH(size_t x = 0; x < INPUT; x++) transform_input(d + x, INPUT);
        EACH(size_t y = 0; y < INPUT; y++) transform_input(d + y * INPUT, 1);
        EACH(size_t i = 0; i < INPUT * INPUT; i++) v_store_bf16(v + (i * g->count + tile) * channels + c, d[i]);
    }
}

SIMD void output_tile(void *dst, sid_dtype dtype, const sid_winograd_grid *g, const float *m, size_t tile,
                      size_t channels, const float *bias, const void *residual, int relu) {
    sid_tile_place p = sid_place_of(g, tile, OUTPUT);
    for (size_t c = 0; c < channels; c += SID_LANES) {
        vec d[INPUT * INPUT], added = v_load(bias + c);
        EACH(size_t i = 0; i < INPUT * INPUT; i++) d[i] = v_load(m + (i * g->count + tile) * channels + c);
        EACH(size_t x = 0; x < INPUT; x++) transform_output(d + x, INPUT);
        EACH(size_t y = 0; y < OUTPUT; y++) transform_output(d + y * INPUT, 1);
        EACH(size_t i = 0; i < OUTPUT * OUTPUT; i++) {
            size_t y = p.y + i / OUTPUT, x = p.x + i % OUTPUT, at = ((p.n * g->h + y) * g->w + x) * channels + c;
            if (y >= g->h || x >= g->w) continue;
            vec sum = v_add(d[i / OUTPUT * INPUT + i % OUTPUT], added);
            if (residual) sum = v_add(sum, load_pixel(residual, dtype, at));
            if (relu) sum = v_max(sum, v_set(0));
            if (dtype == SID_F32) v_store((float *)dst + at, sum);
            else v_store_bf16((uint16_t *)dst + at, sum);
        }
    }
}

/* Either dtype as a constant. */
SID_TARGET static void input_tile_of(void *v, size_t tile, const sid_winograd_grid *g, const void *src, sid_dtype dtype,
                                     size_t channels) {
    if (dtype == SID_F32) input_tile(v, tile, g, src, SID_F32, channels);
    else input_tile(v, tile, g, src, SID_BF16, channels);
}
SID_TARGET static void output_tile_of(void *dst, sid_dtype dtype, const sid_winograd_grid *g, const float *m,
                                      size_t tile, size_t channels, const float *bias, const void *residual, int relu) {
    if (dtype == SID_F32) output_tile(dst, SID_F32, g, m, tile, channels, bias, residual, relu);
    else output_tile(dst, SID_BF16, g, m, tile, channels, bias, residual, relu);
}

WINOGRAD_KERNELS(2, input_tile_of, output_tile_of)

static void fill_winograd(sid_kernels *kernels) {
    kernels->winograd_input[SID_BF16] = winograd_input_2;
    kernels->winograd_output[SID_BF16] = winograd_output_2;
}

#endif
