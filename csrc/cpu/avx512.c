/* The kernels for AVX-512: attention that computes in float32 and reads and writes either dtype. */
#include "cpu/kernels.h"

#if defined(__x86_64__)

#define SID_HAS_FMA
#define SID_LANES 16
#ifdef __clang__
#define SID_TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define SID_TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif
#define SID_ROWS 8
#define SID_GROUP 1
#define SID_PAIR 1
#define SID_KEY_BLOCK 64
#define SID_MULTIPLY_ADD(c, a, b) v_fma(a, b, c)
#define SID_EXP2 v_exp2
#include "cpu/norm_tmpl.h"
#include "cpu/pointwise_tmpl.h"
#include "cpu/simd.h"

#include "cpu/attention_tmpl.h"

SID_ATTENTION(attention_f32, SID_F32)
SID_ATTENTION(attention_bf16, SID_BF16)

void sid_kernels_avx512(sid_kernels *kernels) {
    SID_FILL_ATTENTION(kernels, SID_F32, attention_f32);
    SID_FILL_ATTENTION(kernels, SID_BF16, attention_bf16);
    fill_norms(kernels);
    fill_pointwise(kernels);
    kernels->onednn_products = 1;
}

#endif
