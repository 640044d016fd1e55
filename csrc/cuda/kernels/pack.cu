// Converts the weights of convolutions from their stored form to the layout and dtype that are used, with a thread for
// each number. This runs once for each model, so it is as simple as possible.
#include "sid.cuh"

SID_KERNEL(pack_conv, sid_cu_pack, SID_CU_THREADS) {
    i64 i = (i64)blockIdx.x * SID_CU_THREADS + threadIdx.x;
    if (i >= p.count) return;
    i64 out = i / p.in / p.taps;
    int tap = (int)(i / p.in % p.taps), in = (int)(i % p.in);
    store(p.dst, p.dst_dtype, i, load(p.src, p.src_dtype, (out * p.in + in) * p.taps + tap));
}

// The range of rows, or columns, of a 3 x 3 kernel that fall on the same pixel of the image that is doubled. Even
// pixels of the result see their upper neighbour by row 0 and their own by rows 1 and 2; odd ones see their own by rows
// 0 and 1, and the lower one by row 2.
SID_DEVICE int first_of(int phase, int tap) { return tap == 0 ? 0 : phase == 0 ? 1 : 2; }
SID_DEVICE int end_of(int phase, int tap) { return tap == 1 ? 3 : phase == 0 ? 1 : 2; }

// dst is (4 phases, out, 2, 2, in), with phase 2p + q for the pixels (2i + p, 2j + q).
SID_KERNEL(pack_doubling, sid_cu_pack, SID_CU_THREADS) {
    i64 i = (i64)blockIdx.x * SID_CU_THREADS + threadIdx.x;
    if (i >= p.count) return;
    int in = (int)(i % p.in), tap = (int)(i / p.in % 4);
    i64 row = i / p.in / 4, outs = p.count / p.in / 16, out = row % outs;
    int phase = (int)(row / outs);
    float sum = 0;
    for (int y = first_of(phase / 2, tap / 2); y < end_of(phase / 2, tap / 2); y++)
        for (int x = first_of(phase % 2, tap % 2); x < end_of(phase % 2, tap % 2); x++)
            sum += load(p.src, p.src_dtype, (out * p.in + in) * 9 + y * 3 + x);
    store(p.dst, p.dst_dtype, i, sum);
}
