// What the kernels share: types, conversions, and the few instructions that CUDA C has no name for. Nothing else is
// included, so NVRTC needs no headers of NVIDIA's. tests/native/cuda/emu.h has the second half of this file for a CPU.
//
// -DSID_T=0, 1, 2 is the dtype of the backend: float32, bfloat16 or float16. -DSID_ARCH=75, 80, ... is the device's
// architecture.
#pragma once
#include "params.h"

typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#ifndef SID_EMULATED

#define SID_DEVICE static __device__ __forceinline__
#define SID_KERNEL(name, parameters, threads) \
    extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ parameters p)
#define SID_SHARED(type, name, count) __shared__ __align__(16) type name[count]

struct alignas(16) vector16 {
    u32 words[4];
};

SID_DEVICE float half_to_float(u16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

SID_DEVICE u16 float_to_half(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

SID_DEVICE u32 float_bits(float x) { return __float_as_uint(x); }
SID_DEVICE float bits_float(u32 x) { return __uint_as_float(x); }

// Returns 2^x to 2 units in the last place; results below the normal numbers are 0.
SID_DEVICE float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

SID_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

// Returns two numbers side by side in the backend's 16-bit dtype, the first in the lower half.
SID_DEVICE u32 pack_pair(float first, float second) {
    u32 pair;
#if SID_T == 1
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#elif SID_ARCH >= 80
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
#else
    pair = float_to_half(first) | (u32)float_to_half(second) << 16;
#endif
    return pair;
}

// Computes c (16 x 8) += a (16 x 8 or 16) b (8 or 16 x 8) of the backend's 16-bit dtype, in float32, by the 32 lanes of
// a warp together. With g = lane / 4 and t = lane % 4, a lane has c = (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t +
// 1); a = pairs of columns from (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8) on; b = pairs of rows from (2t, g),
// (2t + 8, g) on.
SID_DEVICE void multiply_8(float *c, const u32 *a, const u32 *b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

#if SID_T == 1
#define SID_MMA_TYPES "bf16.bf16"
#else
#define SID_MMA_TYPES "f16.f16"
#endif
SID_DEVICE void multiply_16(float *c, const u32 *a, const u32 *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." SID_MMA_TYPES
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Loads four 8 x 8 matrices of 16-bit numbers from shared memory; lane 8 i + j gives the address of row j of matrix i.
// A lane gets the pair of columns from (lane / 4, lane % 4 * 2) of each; transposed, the pair of rows from (lane % 4 *
// 2, lane / 4).
SID_DEVICE void load_matrices(u32 *r, const u16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}

SID_DEVICE void load_matrices_transposed(u32 *r, const u16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}

// Starts to copy 16 bytes to shared memory, or zeros where there is nothing to copy. All copies that a thread started
// are visible to it after copies_wait(), and to the others after a barrier. Before sm_80 the copy is complete at once.
SID_DEVICE void copy_start(void *shared, const void *global, bool exists) {
#if SID_ARCH >= 80
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(shared)),
                 "l"(global), "r"(exists ? 16 : 0)
                 : "memory");
#else
    *(vector16 *)shared = exists ? *(const vector16 *)global : vector16{};
#endif
}

SID_DEVICE void copies_wait() {
#if SID_ARCH >= 80
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

#endif

// Computes c += a b of depth 16; sm_75 has only float16 of depth 8.
SID_DEVICE void multiply(float *c, const u32 *a, const u32 *b) {
#if SID_ARCH >= 80
    multiply_16(c, a, b);
#else
    multiply_8(c, a, b);
    multiply_8(c, a + 2, b + 1);
#endif
}

// ---- numbers of any dtype; where the dtype is a constant, there is no branch ----

SID_DEVICE float bfloat_to_float(u16 x) { return bits_float((u32)x << 16); }

// Rounds to nearest, ties to even; a NaN stays a NaN.
SID_DEVICE u16 float_to_bfloat(float x) {
    u32 bits = float_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return (u16)(bits >> 16 | 0x40);
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

SID_DEVICE float widen(u16 x, int dtype) { return dtype == SID_CU_BF16 ? bfloat_to_float(x) : half_to_float(x); }
SID_DEVICE u16 narrow(float x, int dtype) { return dtype == SID_CU_BF16 ? float_to_bfloat(x) : float_to_half(x); }

SID_DEVICE float load(const void *data, int dtype, i64 i) {
    return dtype == SID_CU_F32 ? ((const float *)data)[i] : widen(((const u16 *)data)[i], dtype);
}

SID_DEVICE void store(void *data, int dtype, i64 i, float x) {
    if (dtype == SID_CU_F32) ((float *)data)[i] = x;
    else ((u16 *)data)[i] = narrow(x, dtype);
}

// Loads N numbers from number i on: one, or a vector whose address is a multiple of 16 bytes.
template <int N> SID_DEVICE void load_some(float *x, const void *data, int dtype, i64 i) {
    if (N == 1) {
        x[0] = load(data, dtype, i);
    } else if (dtype == SID_CU_F32) {
        for (int half = 0; half < 2; half++) {
            vector16 v = *(const vector16 *)((const float *)data + i + 4 * half);
            for (int k = 0; k < 4; k++) x[4 * half + k] = bits_float(v.words[k]);
        }
    } else {
        vector16 v = *(const vector16 *)((const u16 *)data + i);
        for (int k = 0; k < 8; k++) x[k] = widen((u16)(v.words[k / 2] >> 16 * (k % 2)), dtype);
    }
}

template <int N> SID_DEVICE void store_some(void *data, int dtype, i64 i, const float *x) {
    if (N == 1) {
        store(data, dtype, i, x[0]);
    } else if (dtype == SID_CU_F32) {
        for (int half = 0; half < 2; half++) {
            vector16 v;
            for (int k = 0; k < 4; k++) v.words[k] = float_bits(x[4 * half + k]);
            *(vector16 *)((float *)data + i + 4 * half) = v;
        }
    } else {
        vector16 v;
        for (int k = 0; k < 4; k++) v.words[k] = narrow(x[2 * k], dtype) | (u32)narrow(x[2 * k + 1], dtype) << 16;
        *(vector16 *)((u16 *)data + i) = v;
    }
}

// ---- operations of a warp: every lane gets the result ----

SID_DEVICE float warp_sum(float x) {
    for (int mask = 16; mask; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

SID_DEVICE float silu(float x) { return x / (1 + expf(-x)); }
