/* Vectors of pairs of bfloat16, kept as 32-bit words in a vec: what AVX512_BF16 adds to simd.h. */
#ifndef SID_CPU_SIMD_BF16_H
#define SID_CPU_SIMD_BF16_H

#include "cpu/simd.h"

/* c + a.low * b.low + a.high * b.high */
SIMD vec v_dot_pairs(vec c, vec a, vec b) {
    return _mm512_dpbf16_ps(c, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}

/* Words of x (low half) and y (high half), rounded to bfloat16. */
SIMD void v_store_pair(float *p, vec x, vec y) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                                5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(y, x);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(interleave, halves));
}

#endif
