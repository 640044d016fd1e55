/* Reads and writes runs of elements of any stored dtype as float32, in plain C that compilers vectorize. The
 * including file defines SID_TARGET: empty, or an attribute that selects the instruction set. */
#ifndef SID_CPU_FLOATS_H
#define SID_CPU_FLOATS_H

#include "core/floats.h"
#include "cpu/exp2.h"

/* The elements converted at a time: most rows fit, and the buffer is small beside the first-level cache. */
#define SID_CHUNK 2048

/* Returns src[first .. first + count), count <= SID_CHUNK, as float32: in place, or converted to the buffer. */
SID_TARGET static const float *read_floats(float *buffer, const void *src, sid_dtype dtype, size_t first,
                                           size_t count) {
    if (dtype == SID_F32) return (const float *)src + first;
    const uint16_t *from = (const uint16_t *)src + first;
    if (dtype == SID_BF16) {
#pragma omp simd
        for (size_t i = 0; i < count; i++) buffer[i] = sid_from_bf16(from[i]);
    } else {
#pragma omp simd
        for (size_t i = 0; i < count; i++) buffer[i] = sid_from_f16(from[i]);
    }
    return buffer;
}

/* Returns where to compute dst[first .. first + count) before write_floats(): in place, or in the buffer. */
SID_INLINE float *floats_of(float *buffer, void *dst, sid_dtype dtype, size_t first) {
    return dtype == SID_F32 ? (float *)dst + first : buffer;
}
SID_TARGET static void write_floats(void *dst, sid_dtype dtype, size_t first, size_t count, const float *floats) {
    if (dtype == SID_F32) return;
    uint16_t *to = (uint16_t *)dst + first;
    if (dtype == SID_BF16) {
#pragma omp simd
        for (size_t i = 0; i < count; i++) to[i] = sid_to_bf16(floats[i]);
    } else {
#pragma omp simd
        for (size_t i = 0; i < count; i++) to[i] = sid_to_f16(floats[i]);
    }
}

#endif
