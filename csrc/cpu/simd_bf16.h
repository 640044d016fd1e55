/* Vectors of pairs of bfloat16, kept as 32-bit words in a vec: what AVX512_BF16 adds to simd.h. */
#ifndef SID_CPU_SIMD_BF16_H
#define SID_CPU_SIMD_BF16_H

#include "cpu/simd.h"

/* Returns c + a.low * b.low + a.high * b.high. */
SID_INLINE vec v_dot_pairs(vec c, vec a, vec b) {
    return _mm512_dpbf16_ps(c, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}

/* Does what v_to_bf16() does in one instruction. */
SID_INLINE void v_store_bf16(uint16_t *p, vec x) { _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(x)); }

/* Returns words of 16-bit values, low[i] in the low half and high[i] in the high half. */
SID_INLINE vec v_interleave(__m512i low_then_high) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, low_then_high));
}

/* Stores words of x (low half) and y (high half), rounded to bfloat16. */
SID_INLINE void v_store_pair(float *p, vec x, vec y) { v_store(p, v_interleave((__m512i)_mm512_cvtne2ps_pbh(y, x))); }

#endif
