/* The passes that only move or scale elements. Included by each instruction set's file, which defines TARGET. */
#ifndef SID_CPU_POINTWISE_H
#define SID_CPU_POINTWISE_H

#include "cpu/floats.h"
#include "cpu/kernels.h"

#include <string.h>

#define SPAN (4 * CHUNK) /* elements of a thread's turn */

TARGET static void combine_span(void *dst, sid_dtype dst_dtype, float a, const void *x, sid_dtype x_dtype, float b,
                                const void *y, sid_dtype y_dtype, size_t begin, size_t end) {
    float x_buffer[CHUNK], y_buffer[CHUNK], buffer[CHUNK];
    for (size_t first = begin; first < end; first += CHUNK) {
        size_t count = end - first < CHUNK ? end - first : CHUNK;
        const float *from = read_floats(x_buffer, x, x_dtype, first, count);
        float *to = floats_of(buffer, dst, dst_dtype, first);
        if (y) {
            const float *other = read_floats(y_buffer, y, y_dtype, first, count);
#pragma omp simd
            for (size_t i = 0; i < count; i++) to[i] = FMA(a, from[i], b * other[i]);
        } else {
#pragma omp simd
            for (size_t i = 0; i < count; i++) to[i] = a * from[i];
        }
        write_floats(dst, dst_dtype, first, count, to);
    }
}

static void combine(void *dst, sid_dtype dst_dtype, float a, const void *x, sid_dtype x_dtype, float b, const void *y,
                    sid_dtype y_dtype, size_t count, int threads) {
#pragma omp parallel for num_threads(threads)
    for (size_t first = 0; first < count; first += SPAN)
        combine_span(dst, dst_dtype, a, x, x_dtype, b, y, y_dtype, first, count - first < SPAN ? count : first + SPAN);
}

TARGET static void convert_span(void *dst, sid_dtype dst_dtype, const void *src, sid_dtype src_dtype, size_t begin,
                                size_t end) {
    float buffer[CHUNK];
    for (size_t first = begin; first < end; first += CHUNK) {
        size_t count = end - first < CHUNK ? end - first : CHUNK;
        const float *x = read_floats(buffer, src, src_dtype, first, count);
        if (dst_dtype == SID_F32) memcpy((float *)dst + first, x, count * sizeof *x);
        else write_floats(dst, dst_dtype, first, count, x);
    }
}

static void convert(void *dst, sid_dtype dst_dtype, const void *src, sid_dtype src_dtype, size_t count, int threads) {
#pragma omp parallel for num_threads(threads)
    for (size_t first = 0; first < count; first += SPAN)
        convert_span(dst, dst_dtype, src, src_dtype, first, count - first < SPAN ? count : first + SPAN);
}

static void from_planes(void *dst, sid_dtype dtype, const float *planes, size_t n, size_t h, size_t w, size_t c,
                        float factor, int threads) {
#pragma omp parallel for num_threads(threads)
    for (size_t row = 0; row < n * h; row++)
        for (size_t x = 0; x < w; x++)
            for (size_t channel = 0; channel < c; channel++)
                sid_store(dst, dtype, (row * w + x) * c + channel,
                          factor * planes[((row / h * c + channel) * h + row % h) * w + x]);
}

static void to_planes(float *planes, const void *src, sid_dtype dtype, size_t n, size_t h, size_t w, size_t c,
                      size_t src_stride, float factor, int threads) {
#pragma omp parallel for num_threads(threads)
    for (size_t row = 0; row < n * h; row++)
        for (size_t channel = 0; channel < c; channel++)
            for (size_t x = 0; x < w; x++)
                planes[((row / h * c + channel) * h + row % h) * w + x] =
                    factor * sid_load(src, dtype, (row * w + x) * src_stride + channel);
}

static void fill_pointwise(sid_kernels *kernels) {
    kernels->combine = combine;
    kernels->convert = convert;
    kernels->from_planes = from_planes;
    kernels->to_planes = to_planes;
}

#endif
