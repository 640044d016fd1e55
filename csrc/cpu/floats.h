/* Runs of elements as float32, whatever they are stored in; plain C that compilers turn into vectors.
 * The including file defines TARGET, empty or an attribute that picks the instruction set. */
#ifndef SID_CPU_FLOATS_H
#define SID_CPU_FLOATS_H

#include "core/tensor.h"
#include "cpu/exp2.h"

#define INLINE TARGET static inline __attribute__((always_inline))

#define CHUNK 2048 /* elements converted at a time: most rows at once, and small beside the first cache */

/* Exact, denormals, infinities and NaNs included. Masks in place of branches, so that compilers make vectors of it. */
INLINE float from_f16(uint16_t half) {
    typedef union {
        uint32_t bits;
        float number;
    } word;
    const word smallest_normal = {113u << 23}; /* 2^-14 */
    uint32_t magnitude = half & 0x7fff, shifted = magnitude << 13, sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t is_denormal = -(uint32_t)(magnitude < 0x400), is_special = -(uint32_t)(magnitude >= 0x7c00);
    uint32_t normal = shifted + (112u << 23) + (is_special & (112u << 23));
    word denormal = {shifted + smallest_normal.bits};
    denormal.number -= smallest_normal.number;
    word result = {(denormal.bits & is_denormal) | (normal & ~is_denormal) | sign};
    return result.number;
}

/* src[first .. first + count), count <= CHUNK: where they are, or converted in the buffer. */
TARGET static const float *read_floats(float *buffer, const void *src, sid_dtype dtype, size_t first, size_t count) {
    if (dtype == SID_F32) return (const float *)src + first;
    const uint16_t *from = (const uint16_t *)src + first;
    if (dtype == SID_BF16) {
#pragma omp simd
        for (size_t i = 0; i < count; i++) buffer[i] = sid_from_bf16(from[i]);
    } else {
#pragma omp simd
        for (size_t i = 0; i < count; i++) buffer[i] = from_f16(from[i]);
    }
    return buffer;
}

/* Where to compute dst[first .. first + count) before write_floats(): in place, or in the buffer. */
INLINE float *floats_of(float *buffer, void *dst, sid_dtype dtype, size_t first) {
    return dtype == SID_F32 ? (float *)dst + first : buffer;
}
TARGET static void write_floats(void *dst, sid_dtype dtype, size_t first, size_t count, const float *floats) {
    if (dtype == SID_F32) return;
    uint16_t *to = (uint16_t *)dst + first;
#pragma omp simd
    for (size_t i = 0; i < count; i++) to[i] = sid_to_bf16(floats[i]);
}

#endif
