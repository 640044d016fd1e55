/* The kernels for AVX2 with FMA and F16C: attention and matrix products in float32; the rest is generic.c's,
 * compiled for these instructions. */
#include "cpu/kernels.h"

#if defined(__x86_64__)

#define HAS_FMA
#define LANES 8
#define TARGET __attribute__((target("avx2,fma,f16c")))
#include "cpu/norm.h"
#include "cpu/pointwise.h"
#include "cpu/simd.h"
#include "cpu/winograd_tile.h"

#define ROWS 6
#include "cpu/matmul_tile.h"
#undef ROWS

#define ROWS 4
#define GROUP 1
#define PAIR 1
#define KEY_BLOCK 64
#define MULTIPLY_ADD(c, a, b) v_fma(a, b, c)
#define EXP2 v_exp2
#include "cpu/attention_tile.h"

ATTENTION(attention_f32, SID_F32)

void sid_kernels_avx2(sid_kernels *kernels) {
    FILL_ATTENTION(kernels, SID_F32, attention_f32);
    fill_norms(kernels);
    fill_pointwise(kernels);
    fill_winograd(kernels);
    kernels->matmul = matmul;
}

#endif
