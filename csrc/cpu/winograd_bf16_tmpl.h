/* The transforms of Winograd's F(2x2, 3x3), as in winograd_tmpl.h, but with a whole tile in registers. */
#ifndef SID_CPU_WINOGRAD_BF16_TMPL_H
#define SID_CPU_WINOGRAD_BF16_TMPL_H

#include "cpu/kernels.h"
#include "cpu/simd_bf16.h"

/* The rows and columns of an output tile: sid_winograd_side(SID_BF16), as the literal that register arrays need. */
#define SID_OUTPUT 2
#define SID_INPUT (SID_OUTPUT + 2)
#define SID_EACH _Pragma("GCC unroll 16") for

SID_INLINE vec load_pixel(const void *map, sid_dtype dtype, size_t at) {
    return dtype == SID_F32 ? v_load((const float *)map + at) : v_from_bf16((const uint16_t *)map + at);
}

/* B^T x and A^T x of vectors that are `step` apart, in place. */
SID_INLINE void transform_input(vec *x, size_t step) {
    vec a = x[0], b = x[step], c = x[2 * step], d = x[3 * step];
    x[0] = v_sub(a, c);
    x[step] = v_add(b, c);
    x[2 * step] = v_sub(c, b);
    x[3 * step] = v_sub(b, d);
}
SID_INLINE void transform_output(vec *x, size_t step) {
    vec a = x[0], b = x[step], c = x[2 * step], d = x[3 * step];
    x[0] = v_add(a, v_add(b, c));
    x[step] = v_sub(v_sub(b, c), d);
}

SID_INLINE void input_tile(uint16_t *v, size_t tile, const sid_winograd_grid *g, const void *src, sid_dtype dtype,
                           size_t channels) {
    sid_tile_place p = sid_place_of(g, tile, SID_OUTPUT);
    size_t from[SID_INPUT * SID_INPUT];
    int inside[SID_INPUT * SID_INPUT];
    for (size_t i = 0; i < SID_INPUT * SID_INPUT; i++) {
        size_t y = p.y + i / SID_INPUT - 1,
               x = p.x + i % SID_INPUT - 1; /* wraps around to huge numbers above and left */
        inside[i] = y < g->h && x < g->w;
        from[i] = ((p.n * g->h + y) * g->w + x) * channels;
    }
    for (size_t c = 0; c < channels; c += SID_LANES) {
        vec d[SID_INPUT * SID_INPUT];
        SID_EACH(size_t i = 0; i < SID_INPUT * SID_INPUT; i++)
            d[i] = inside[i] ? load_pixel(src, dtype, from[i] + c) : v_set(0);
        SID_EACH(size_t x = 0; x < SID_INPUT; x++) transform_input(d + x, SID_INPUT);
        SID_EACH(size_t y = 0; y < SID_INPUT; y++) transform_input(d + y * SID_INPUT, 1);
        SID_EACH(size_t i = 0; i < SID_INPUT * SID_INPUT; i++)
            v_store_bf16(v + (i * g->count + tile) * channels + c, d[i]);
    }
}

/* dtype is that of the maps, passed as a constant. */
SID_INLINE void output_tile(const sid_winograd_maps *maps, const sid_winograd_grid *g, const float *m, size_t tile,
                            sid_dtype dtype) {
    const size_t channels = maps->channels;
    const void *residual = maps->residual;
    sid_tile_place p = sid_place_of(g, tile, SID_OUTPUT);
    for (size_t c = 0; c < channels; c += SID_LANES) {
        vec d[SID_INPUT * SID_INPUT], added = v_load(maps->bias + c);
        SID_EACH(size_t i = 0; i < SID_INPUT * SID_INPUT; i++) d[i] = v_load(m + (i * g->count + tile) * channels + c);
        SID_EACH(size_t x = 0; x < SID_INPUT; x++) transform_output(d + x, SID_INPUT);
        SID_EACH(size_t y = 0; y < SID_OUTPUT; y++) transform_output(d + y * SID_INPUT, 1);
        SID_EACH(size_t i = 0; i < SID_OUTPUT * SID_OUTPUT; i++) {
            size_t y = p.y + i / SID_OUTPUT, x = p.x + i % SID_OUTPUT,
                   at = ((p.n * g->h + y) * g->w + x) * channels + c;
            if (y >= g->h || x >= g->w) continue;
            vec sum = v_add(d[i / SID_OUTPUT * SID_INPUT + i % SID_OUTPUT], added);
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

SID_WINOGRAD_KERNELS(bf16, input_tile_of, output_tile_of)

static void fill_winograd(sid_kernels *kernels) {
    kernels->winograd_input[SID_BF16] = winograd_input_bf16;
    kernels->winograd_output[SID_BF16] = winograd_output_bf16;
}

#endif
