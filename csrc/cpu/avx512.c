/* The kernels for AVX-512: attention in float32, from and to either dtype. */
#include "cpu/kernels.h"

#if defined(__x86_64__)

#define HAS_FMA
#define LANES 16
#ifdef __clang__
#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif
#include "cpu/norm.h"
#include "cpu/pointwise.h"
#include "cpu/simd.h"

#define ROWS 8
#define GROUP 1
#define PAIR 1
#define KEY_BLOCK 64
#define MULTIPLY_ADD(c, a, b) v_fma(a, b, c)
#define EXP2 v_exp2
#include "cpu/attention_tile.h"

ATTENTION(attention_f32, SID_F32)
ATTENTION(attention_bf16, SID_BF16)

void sid_kernels_avx512(sid_kernels *kernels) {
    FILL_ATTENTION(kernels, SID_F32, attention_f32);
    FILL_ATTENTION(kernels, SID_BF16, attention_bf16);
    fill_norms(kernels);
    fill_pointwise(kernels);
    kernels->onednn_products = 1;
}

#endif
