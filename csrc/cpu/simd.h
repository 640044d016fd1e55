/* Vectors of float32 for the attention kernels. The including file defines SID_LANES (8 for AVX2 with FMA and F16C,
 * 16 for AVX-512 F, BW, DQ and VL) and SID_TARGET, the attribute that every function here and there has. */
#ifndef SID_CPU_SIMD_H
#define SID_CPU_SIMD_H

#include "cpu/exp2.h"

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#if SID_LANES == 16

typedef __m512 vec;

SID_INLINE vec v_set(float x) { return _mm512_set1_ps(x); }
SID_INLINE vec v_load(const float *p) { return _mm512_loadu_ps(p); }
SID_INLINE void v_store(float *p, vec x) { _mm512_storeu_ps(p, x); }
SID_INLINE vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
SID_INLINE vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
SID_INLINE vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
SID_INLINE vec v_div(vec a, vec b) { return _mm512_div_ps(a, b); }
SID_INLINE vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); }
SID_INLINE vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
/* For each lane: a > b ? x : y. */
SID_INLINE vec v_if_greater(vec a, vec b, vec x, vec y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}
SID_INLINE int v_any_greater(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }

/* x is split into a whole number and a fraction f, then 2^f is scaled by 2^whole; -infinity has the fraction 0 and
 * the power 0. */
SID_INLINE vec v_fraction(vec x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
SID_INLINE vec v_times_power(vec p, vec x) { return _mm512_scalef_ps(p, x); }

/* Transposes the 16 x 16 matrix whose rows are r[0] .. r[15]. */
SID_INLINE void v_transpose(vec r[16]) {
    vec t[16];
    /* Each quarter of t[i + j] gets element j of four rows, for the columns of that quarter. */
    for (int i = 0; i < 16; i += 4) {
        vec a = _mm512_unpacklo_ps(r[i], r[i + 1]), b = _mm512_unpackhi_ps(r[i], r[i + 1]);
        vec c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm512_shuffle_ps(a, c, 0x44), t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm512_shuffle_ps(b, d, 0x44), t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    for (int j = 0; j < 4; j++) { /* transposes the 4 x 4 quarters */
        vec a = _mm512_shuffle_f32x4(t[j], t[4 + j], 0x88), b = _mm512_shuffle_f32x4(t[j], t[4 + j], 0xdd);
        vec c = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0x88), d = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0xdd);
        r[j] = _mm512_shuffle_f32x4(a, c, 0x88), r[8 + j] = _mm512_shuffle_f32x4(a, c, 0xdd);
        r[4 + j] = _mm512_shuffle_f32x4(b, d, 0x88), r[12 + j] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}

/* These load and store the first count < SID_LANES elements; the remaining lanes of a load are 0. */
SID_INLINE vec v_load_part(const float *p, size_t count) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
}
SID_INLINE void v_store_part(float *p, vec x, size_t count) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), x);
}

SID_INLINE vec v_widen(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
SID_INLINE vec v_from_bf16(const uint16_t *p) { return v_widen(_mm256_loadu_si256((const __m256i *)p)); }
SID_INLINE vec v_from_bf16_part(const uint16_t *p, size_t count) {
    return v_widen(_mm256_maskz_loadu_epi16((__mmask16)((1u << count) - 1), p));
}
/* Rounds to nearest, ties to even. */
SID_INLINE __m256i v_bf16(vec x) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
SID_INLINE void v_to_bf16(uint16_t *p, vec x) { _mm256_storeu_si256((__m256i *)p, v_bf16(x)); }
SID_INLINE void v_to_bf16_part(uint16_t *p, vec x, size_t count) {
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << count) - 1), v_bf16(x));
}

#elif SID_LANES == 8

typedef __m256 vec;

SID_INLINE vec v_set(float x) { return _mm256_set1_ps(x); }
SID_INLINE vec v_load(const float *p) { return _mm256_loadu_ps(p); }
SID_INLINE void v_store(float *p, vec x) { _mm256_storeu_ps(p, x); }
SID_INLINE vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
SID_INLINE vec v_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
SID_INLINE vec v_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
SID_INLINE vec v_div(vec a, vec b) { return _mm256_div_ps(a, b); }
SID_INLINE vec v_max(vec a, vec b) { return _mm256_max_ps(a, b); }
SID_INLINE vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
SID_INLINE vec v_if_greater(vec a, vec b, vec x, vec y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
SID_INLINE int v_any_greater(vec a, vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }

SID_INLINE vec v_fraction(vec x) {
    x = _mm256_max_ps(_mm256_set1_ps(-127), x);
    return _mm256_sub_ps(x, _mm256_floor_ps(x));
}
/* Results below the smallest normal number are 0. */
SID_INLINE vec v_times_power(vec p, vec x) {
    __m256 normal = _mm256_cmp_ps(x, _mm256_set1_ps(-126), _CMP_NLT_UQ);
    __m256i whole = _mm256_cvtps_epi32(_mm256_floor_ps(x));
    __m256i scaled = _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(whole, 23));
    return _mm256_and_ps(_mm256_castsi256_ps(scaled), normal);
}

SID_INLINE void v_transpose(vec r[8]) {
    vec t[8];
    for (int i = 0; i < 8; i += 4) {
        vec a = _mm256_unpacklo_ps(r[i], r[i + 1]), b = _mm256_unpackhi_ps(r[i], r[i + 1]);
        vec c = _mm256_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm256_shuffle_ps(a, c, 0x44), t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm256_shuffle_ps(b, d, 0x44), t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    for (int j = 0; j < 4; j++) {
        r[j] = _mm256_permute2f128_ps(t[j], t[4 + j], 0x20);
        r[4 + j] = _mm256_permute2f128_ps(t[j], t[4 + j], 0x31);
    }
}

SID_INLINE vec v_load_part(const float *p, size_t count) {
    float all[8] = {0};
    for (size_t i = 0; i < count; i++) all[i] = p[i];
    return v_load(all);
}
SID_INLINE void v_store_part(float *p, vec x, size_t count) {
    float all[8];
    v_store(all, x);
    for (size_t i = 0; i < count; i++) p[i] = all[i];
}

SID_INLINE vec v_from_bf16(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
SID_INLINE void v_to_bf16(uint16_t *p, vec x) {
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i high = _mm256_srli_epi32(rounded, 16);
    high = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(high));
}
SID_INLINE vec v_from_bf16_part(const uint16_t *p, size_t count) {
    uint16_t all[8] = {0};
    for (size_t i = 0; i < count; i++) all[i] = p[i];
    return v_from_bf16(all);
}
SID_INLINE void v_to_bf16_part(uint16_t *p, vec x, size_t count) {
    uint16_t all[8];
    v_to_bf16(all, x);
    for (size_t i = 0; i < count; i++) p[i] = all[i];
}

#endif

/* Returns 2^x for x below 127, and 0 for -infinity. */
SID_INLINE vec v_exp2(vec x) {
    vec f = v_fraction(x);
    vec p = v_fma(f, v_set(SID_EXP2_C5), v_set(SID_EXP2_C4));
    p = v_fma(f, p, v_set(SID_EXP2_C3));
    p = v_fma(f, p, v_set(SID_EXP2_C2));
    p = v_fma(f, p, v_set(SID_EXP2_C1));
    return v_times_power(v_fma(f, p, v_set(1)), x);
}

/* Returns the same to a relative error of 9e-5, for results that are rounded to bfloat16. */
SID_INLINE vec v_exp2_short(vec x) {
    vec f = v_fraction(x);
    vec p = v_fma(f, v_set(SID_EXP2_SHORT_C3), v_set(SID_EXP2_SHORT_C2));
    p = v_fma(f, p, v_set(SID_EXP2_SHORT_C1));
    return v_times_power(v_fma(f, p, v_set(1)), x);
}

#endif
