/* The kernels for AVX-512 with bfloat16 dot products. */
#include "cpu/kernels.h"

#if defined(__x86_64__)

#define SID_LANES 16
#define SID_TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define SID_ROWS 8
#define SID_GROUP 2
#define SID_PAIR 2
#define SID_KEY_BLOCK 64
#define SID_MULTIPLY_ADD(c, a, b) v_dot_pairs(c, a, b)
#define SID_EXP2 v_exp2_short
#include "cpu/simd.h"
#include "cpu/simd_bf16.h"
#include "cpu/winograd_bf16_tmpl.h"

#include "cpu/attention_tmpl.h"

SID_ATTENTION(attention_bf16, SID_BF16)

void sid_kernels_avx512_bf16(sid_kernels *kernels) {
    SID_FILL_ATTENTION(kernels, SID_BF16, attention_bf16);
    fill_winograd(kernels);
}

#endif
