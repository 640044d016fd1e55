// Convolutions that cuDNN has no good algorithm for, or none: those with few outputs or outputs of another dtype, and
// the last step of a convolution of a doubled image.
#include "sid.cuh"

// ---- each warp has a pixel, whose channels its lanes share, and SID_CU_CONV_OUTPUTS outputs from `first` on ----

template <int N> SID_DEVICE void add_tap(float *sums, const sid_cu_conv_direct &p, i64 src, int tap, int first) {
    float x[N], w[N];
    for (int c = threadIdx.x % SID_CU_WARP * N; c < p.in; c += SID_CU_WARP * N) {
        load_some<N>(x, p.src, SID_T, src + c);
#pragma unroll
        for (int o = 0; o < SID_CU_CONV_OUTPUTS; o++) {
            if (first + o >= p.out) continue;
            load_some<N>(w, p.weights, SID_T, ((i64)(first + o) * p.kernel * p.kernel + tap) * p.in + c);
            for (int k = 0; k < N; k++) sums[o] += x[k] * w[k];
        }
    }
}

template <int N> SID_DEVICE void add_taps(float *sums, const sid_cu_conv_direct &p, i64 pixel, int first) {
    int x = (int)(pixel % p.width) * p.stride - p.pad, y = (int)(pixel / p.width % p.height) * p.stride - p.pad;
    i64 image = pixel / p.width / p.height * p.in_height;
    for (int tap = 0; tap < p.kernel * p.kernel; tap++) {
        int row = y + tap / p.kernel, column = x + tap % p.kernel;
        if (row < 0 || row >= p.in_height || column < 0 || column >= p.in_width) continue;
        add_tap<N>(sums, p, ((image + row) * p.in_width + column) * p.in, tap, first);
    }
}

SID_KERNEL(conv_direct, sid_cu_conv_direct, SID_CU_THREADS) {
    i64 pixel = (i64)blockIdx.x * (SID_CU_THREADS / SID_CU_WARP) + threadIdx.x / SID_CU_WARP;
    int lane = threadIdx.x % SID_CU_WARP, first = blockIdx.y * SID_CU_CONV_OUTPUTS;
    float sums[SID_CU_CONV_OUTPUTS] = {};
    if (pixel >= p.pixels) return;
    if (p.vector) add_taps<SID_CU_VECTOR>(sums, p, pixel, first);
    else add_taps<1>(sums, p, pixel, first);
#pragma unroll
    for (int o = 0; o < SID_CU_CONV_OUTPUTS; o++) {
        float y = warp_sum(sums[o]);
        if (lane != o || first + o >= p.out) continue;
        i64 i = pixel * p.out + first + o;
        if (p.bias) y += p.bias[first + o];
        if (p.residual) y += load(p.residual, p.residual_dtype, i);
        if (p.relu) y = y < 0 ? 0 : y; // a NaN stays a NaN
        store(p.dst, p.dst_dtype, i, y);
    }
}

// ---- a doubled image: pixel (2i + p, 2j + q) is phase 2p + q of pixel (i + p, j + q) ----

template <int N> SID_DEVICE void unfold_some(const sid_cu_unfold &p) {
    i64 i = (i64)blockIdx.x * SID_CU_THREADS + threadIdx.x;
    if (i >= p.count) return;
    int steps = p.out / N, channel = (int)(i % steps) * N;
    i64 pixel = i / steps;
    int x = (int)(pixel % (2 * p.width)), y = (int)(pixel / (2 * p.width) % (2 * p.height));
    i64 image = pixel / (2 * p.width) / (2 * p.height);
    i64 from = (image * (p.height + 1) + y / 2 + y % 2) * (p.width + 1) + x / 2 + x % 2;
    float values[N];
    load_some<N>(values, p.y, SID_T, (from * 4 + y % 2 * 2 + x % 2) * p.out + channel);
    for (int k = 0; k < N && p.bias; k++) values[k] += p.bias[channel + k];
    store_some<N>(p.dst, SID_T, pixel * p.out + channel, values);
}

SID_KERNEL(unfold, sid_cu_unfold, SID_CU_THREADS) {
    if (p.vector) unfold_some<SID_CU_VECTOR>(p);
    else unfold_some<1>(p);
}
