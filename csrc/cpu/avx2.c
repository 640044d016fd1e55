/* The kernels for AVX2 with FMA and F16C: attention in float32, and the templates of generic.c compiled for these
 * instructions. */
#include "cpu/kernels.h"

#if defined(__x86_64__)

#define SID_HAS_FMA
#define SID_MATMUL_ROWS 6
#define SID_LANES 8
#define SID_TARGET __attribute__((target("avx2,fma,f16c")))
#define SID_ROWS 4
#define SID_GROUP 1
#define SID_PAIR 1
#define SID_KEY_BLOCK 64
#define SID_MULTIPLY_ADD(c, a, b) v_fma(a, b, c)
#define SID_EXP2 v_exp2
#include "cpu/norm_tmpl.h"
#include "cpu/pointwise_tmpl.h"
#include "cpu/simd.h"
#include "cpu/winograd_tmpl.h"

#include "cpu/matmul_tmpl.h"

#include "cpu/attention_tmpl.h"

SID_ATTENTION(attention_f32, SID_F32)

void sid_kernels_avx2(sid_kernels *kernels) {
    SID_FILL_ATTENTION(kernels, SID_F32, attention_f32);
    fill_norms(kernels);
    fill_pointwise(kernels);
    fill_winograd(kernels);
    kernels->matmul = matmul;
}

#endif
