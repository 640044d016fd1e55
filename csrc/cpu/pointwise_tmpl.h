/* The passes that only move or scale elements. Each instruction set's file includes this and defines SID_TARGET. */
#ifndef SID_CPU_POINTWISE_TMPL_H
#define SID_CPU_POINTWISE_TMPL_H

#include "cpu/floats.h"
#include "cpu/kernels.h"

#include <math.h>
#include <string.h>

#define SID_SPAN (4 * SID_CHUNK) /* elements that a thread takes at a time */

SID_TARGET static void combine_span(const sid_combination *c, size_t begin, size_t end) {
    const float a = c->a, b = c->b;
    float x_buffer[SID_CHUNK], y_buffer[SID_CHUNK], buffer[SID_CHUNK];
    for (size_t first = begin; first < end; first += SID_CHUNK) {
        size_t count = end - first < SID_CHUNK ? end - first : SID_CHUNK;
        const float *from = read_floats(x_buffer, c->x, c->x_dtype, first, count);
        float *to = floats_of(buffer, c->dst, c->dst_dtype, first);
        if (c->y) {
            const float *other = read_floats(y_buffer, c->y, c->y_dtype, first, count);
#pragma omp simd
            for (size_t i = 0; i < count; i++) to[i] = SID_FMA(a, from[i], b * other[i]);
        } else {
#pragma omp simd
            for (size_t i = 0; i < count; i++) to[i] = a * from[i];
        }
        write_floats(c->dst, c->dst_dtype, first, count, to);
    }
}

static void combine(const sid_combination *c, size_t count, int threads) {
#pragma omp parallel for num_threads(threads)
    for (size_t first = 0; first < count; first += SID_SPAN)
        combine_span(c, first, count - first < SID_SPAN ? count : first + SID_SPAN);
}

SID_TARGET static void convert_span(void *dst, sid_dtype dst_dtype, const void *src, sid_dtype src_dtype, size_t begin,
                                    size_t end) {
    float buffer[SID_CHUNK];
    for (size_t first = begin; first < end; first += SID_CHUNK) {
        size_t count = end - first < SID_CHUNK ? end - first : SID_CHUNK;
        const float *x = read_floats(buffer, src, src_dtype, first, count);
        if (dst_dtype == SID_F32) memcpy((float *)dst + first, x, count * sizeof *x);
        else write_floats(dst, dst_dtype, first, count, x);
    }
}

static void convert(void *dst, sid_dtype dst_dtype, const void *src, sid_dtype src_dtype, size_t count, int threads) {
#pragma omp parallel for num_threads(threads)
    for (size_t first = 0; first < count; first += SID_SPAN)
        convert_span(dst, dst_dtype, src, src_dtype, first, count - first < SID_SPAN ? count : first + SID_SPAN);
}

static inline float curved(float x, const sid_curve *curve) {
    float y = curve->factor * x;
    if (curve->offset != 0) y += curve->offset; /* adding 0 would change the sign of -0 */
    return curve->bound > 0 ? curve->bound * tanhf(y / curve->bound) : y;
}

static void from_planes(const sid_tensor *dst, const sid_planes *p, const sid_curve *curve, int threads) {
#pragma omp parallel for num_threads(threads)
    for (size_t row = 0; row < p->n * p->h; row++)
        for (size_t x = 0; x < p->w; x++)
            for (size_t channel = 0; channel < p->c; channel++)
                sid_store(dst->data, dst->dtype, (row * p->w + x) * p->c + channel,
                          curved(p->data[((row / p->h * p->c + channel) * p->h + row % p->h) * p->w + x], curve));
}

static void to_planes(const sid_planes *p, const sid_tensor *src, const sid_curve *curve, int threads) {
#pragma omp parallel for num_threads(threads)
    for (size_t row = 0; row < p->n * p->h; row++)
        for (size_t channel = 0; channel < p->c; channel++)
            for (size_t x = 0; x < p->w; x++)
                p->data[((row / p->h * p->c + channel) * p->h + row % p->h) * p->w + x] =
                    curved(sid_load(src->data, src->dtype, (row * p->w + x) * src->stride + channel), curve);
}

static void fill_pointwise(sid_kernels *kernels) {
    kernels->combine = combine;
    kernels->convert = convert;
    kernels->from_planes = from_planes;
    kernels->to_planes = to_planes;
}

#endif
