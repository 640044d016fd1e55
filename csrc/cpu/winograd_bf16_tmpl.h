/* The transforms of Winograd's F(2x2, 3x3), as in winograd_tmpl.h, but with a whole tile in registers. */
#ifndef SID_CPU_WINOGRAD_BF16_TMPL_H
#define SID_CPU_WINOGRAD_BF16_TMPL_H

#include "cpu/kernels.h"
#include "cpu/simd_bf16.h"

/* The rows and columns of an output tile: sid_winograd_side(SID_BF16), as the literal that register arrays need. */
#define OUTPUT 2
#define INPUT (OUTPUT + 2)
#define EACH _Pragma("GCC unroll 16") for

SIMD vec load_pixel(const void *map, sid_dtype dtype, size_t at) {
    return dtype == SID_F32 ? v_load((const float *)map + at) : v_from_bf16((const uint16_t *)map + at);
}

/* B^T x and A^T x of vectors that are `step` apart, in place. */
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
        size_t y = p.y + i / INPUT - 1, x = p.x + i % INPUT - 1; /* wraps around to huge numbers above and left */
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

/* dtype is that of the maps, passed as a constant. */
SIMD void output_tile(const sid_winograd_maps *maps, const sid_winograd_grid *g, const float *m, size_t tile,
                      sid_dtype dtype) {
    const size_t channels = maps->channels;
    const void *residual = maps->residual;
    sid_tile_place p = sid_place_of(g, tile, OUTPUT);
    for (size_t c = 0; c < channels; c += SID_LANES) {
        vec d[INPUT * INPUT], added = v_load(maps->bias + c);
        EACH(size_t i = 0; i < INPUT * INPUT; i++) d[i] = v_load(m + (i * g->count + tile) * channels + c);
        EACH(size_t x = 0; x < INPUT; x++) transform_output(d + x, INPUT);
        EACH(size_t y = 0; y < OUTPUT; y++) transform_output(d + y * INPUT, 1);
        EACH(size_t i = 0; i < OUTPUT * OUTPUT; i++) {
            size_t y = p.y + i / OUTPUT, x = p.x + i % OUTPUT, at = ((p.n * g->h + y) * g->w + x) * channels + c;
            if (y >= g->h || x >= g->w) continue;
            vec sum = v_add(d[i / OUTPUT * INPUT + i % OUTPUT], added);
            if (residual) sum = v_add(sum, load_pixel(residual, dtype, at));
            if (maps->relu) sum = v_max(sum, v_set(0));
            if (dtype == SID_F32) v_store((float *)maps->dst + at, sum);
            else v_store_bf16((uint16_t *)maps->dst + at, sum);
        }
    }
}

/* These pass either dtype as a constant. */
SID_TARGET static void input_tile_of(void *v, size_t tile, const sid_winograd_grid *g, const void *src, sid_dtype dtype,
                                     size_t channels) {
    if (dtype == SID_F32) input_tile(v, tile, g, src, SID_F32, channels);
    else input_tile(v, tile, g, src, SID_BF16, channels);
}
SID_TARGET static void output_tile_of(const sid_winograd_maps *maps, const sid_winograd_grid *g, const float *m,
                                      size_t tile) {
    if (maps->dtype == SID_F32) output_tile(maps, g, m, tile, SID_F32);
    else output_tile(maps, g, m, tile, SID_BF16);
}

WINOGRAD_KERNELS(bf16, input_tile_of, output_tile_of)

static void fill_winograd(sid_kernels *kernels) {
    kernels->winograd_input[SID_BF16] = winograd_input_bf16;
    kernels->winograd_output[SID_BF16] = winograd_output_bf16;
}

#endif
