/* The 16-bit formats and float32, on the host. */
#ifndef SID_CORE_FLOATS_H
#define SID_CORE_FLOATS_H

#include "core/tensor.h"

typedef union {
    uint32_t bits;
    float number;
} sid_word;

static inline float sid_from_bf16(uint16_t value) { return (sid_word){(uint32_t)value << 16}.number; }

/* Rounds to nearest, ties to even; a NaN stays a NaN. */
static inline uint16_t sid_to_bf16(float value) {
    sid_word u = {.number = value};
    if ((u.bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((u.bits >> 16) | 0x40);
    return (uint16_t)((u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16);
}

/* This is exact, also for denormals, infinities and NaNs. Masks take the place of branches, so that compilers vectorize
 * loops of it. */
static inline float sid_from_f16(uint16_t half) {
    const sid_word smallest_normal = {113u << 23}; /* 2^-14 */
    uint32_t magnitude = half & 0x7fff, shifted = magnitude << 13, sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t is_denormal = -(uint32_t)(magnitude < 0x400), is_special = -(uint32_t)(magnitude >= 0x7c00);
    uint32_t normal = shifted + (112u << 23) + (is_special & (112u << 23));
    sid_word denormal = {shifted + smallest_normal.bits};
    denormal.number -= smallest_normal.number;
    return (sid_word){(denormal.bits & is_denormal) | (normal & ~is_denormal) | sign}.number;
}

/* Rounds to nearest, ties to even; a NaN stays a NaN, and what is too large becomes infinite. Adding a large number
 * makes the processor round a denormal half at the right bit. */
static inline uint16_t sid_to_f16(float value) {
    const sid_word denormal_magic = {126u << 23}; /* 0.5: its last bit is worth 2^-24, as a denormal half's is */
    sid_word u = {.number = value};
    uint32_t sign = u.bits >> 16 & 0x8000, magnitude = u.bits & 0x7fffffff;
    sid_word denormal = {magnitude};
    denormal.number += denormal_magic.number;
    uint32_t small = denormal.bits - denormal_magic.bits;
    uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    uint32_t is_small = -(uint32_t)(magnitude < 113u << 23), is_large = -(uint32_t)(magnitude >= 0x477ff000);
    uint32_t is_nan = -(uint32_t)(magnitude > 0x7f800000);
    uint32_t half = (small & is_small) | (normal & ~is_small);
    half = (0x7c00 & is_large) | (half & ~is_large);
    return (uint16_t)(half | (0x200 & is_nan) | sign);
}

static inline float sid_load(const void *data, sid_dtype dtype, size_t i) {
    if (dtype == SID_F32) return ((const float *)data)[i];
    uint16_t bits = ((const uint16_t *)data)[i];
    return dtype == SID_BF16 ? sid_from_bf16(bits) : sid_from_f16(bits);
}

static inline void sid_store(void *data, sid_dtype dtype, size_t i, float value) {
    if (dtype == SID_F32) ((float *)data)[i] = value;
    else ((uint16_t *)data)[i] = dtype == SID_BF16 ? sid_to_bf16(value) : sid_to_f16(value);
}

#endif
