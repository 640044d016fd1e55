// Attention in float16 and bfloat16 for heads of up to 160 channels: flash attention by tensor cores.
//
// -DSID_DP=16, 32, 48, 64, 80, 96, 128, 160 is the head size, rounded up; the actual one is a parameter. Each warp has
// 16 queries, whose channels stay in registers; while it works on one tile of keys and values, the next is on its way
// to shared memory.
#include "attention.cuh"

#define KEYS (SID_DP >= 96 ? 32 : 64)
#define WIDTH (SID_DP + 8) // keeps the rows of a matrix in different banks

// Loads the lane's parts of the warp's queries straight from memory: they are needed once.
SID_DEVICE void load_queries(u32 (*parts)[4], const sid_cu_attention &p, int first) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < SID_DP / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int query = first + lane / 4 + i % 2 * 8, channel = k * 16 + lane % 4 * 2 + i / 2 * 8;
            const u16 *q =
                (const u16 *)p.q + ((i64)blockIdx.z * p.queries + query) * p.q_stride + blockIdx.y * p.head_size;
            u32 low = query < p.queries && channel < p.head_size ? q[channel] : 0;
            u32 high = query < p.queries && channel + 1 < p.head_size ? q[channel + 1] : 0;
            parts[k][i] = low | high << 16;
        }
}

template <int THREADS>
SID_DEVICE void fetch_tile(const sid_cu_attention &p, key_tile tile, u16 *keys, u16 *values, float *key_logits) {
    const sid_cu_source &s = p.source[tile.source];
    const u16 *k = (const u16 *)s.k + key_offset(s, s.k_stride) + blockIdx.y * p.head_size;
    const u16 *v = (const u16 *)s.v + key_offset(s, s.v_stride) + blockIdx.y * p.head_size;
    fetch<KEYS, SID_DP, WIDTH, THREADS>(keys, k, s.k_stride, tile.first, s.tokens, 0, p.head_size, p.vector);
    fetch<KEYS, SID_DP, WIDTH, THREADS>(values, v, s.v_stride, tile.first, s.tokens, 0, p.head_size, p.vector);
    if (threadIdx.x < KEYS) key_logits[threadIdx.x] = key_logit(p, tile, threadIdx.x);
}

// keys, values and key_logits have room for two tiles each.
template <int WARPS> SID_DEVICE void attend(const sid_cu_attention &p, u16 *keys, u16 *values, float *key_logits) {
    int block = blockIdx.x * WARPS * 16, end = block + WARPS * 16, first = block + threadIdx.x / 32 * 16;
    u32 query[SID_DP / 16][4];
    queries<SID_DP> q;
    load_queries(query, p, first);
    start(&q, first);
    key_tile tile = next_tile(p, {0, -KEYS}, KEYS, end);
    if (tile.source < p.sources) fetch_tile<WARPS * 32>(p, tile, keys, values, key_logits);
    for (int stage = 0; tile.source < p.sources; stage = 1 - stage) {
        key_tile next = next_tile(p, tile, KEYS, end);
        copies_wait();
        __syncthreads(); // the tile is complete, and all threads are done with the previous one
        if (next.source < p.sources) {
            int other = 1 - stage;
            fetch_tile<WARPS * 32>(p, next, keys + other * KEYS * WIDTH, values + other * KEYS * WIDTH,
                                   key_logits + other * KEYS);
        }
        float logits[KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < SID_DP / 16; k++)
            add_logits<KEYS, WIDTH>(logits, query[k], keys + stage * KEYS * WIDTH + k * 16);
        weigh<KEYS>(p, &q, logits, tile, key_logits + stage * KEYS);
        add_values<KEYS, SID_DP, WIDTH>(&q, logits, values + stage * KEYS * WIDTH);
        tile = next;
    }
    finish(p, &q, blockIdx.y, 0);
}

SID_KERNEL(attention_64, sid_cu_attention, 128) {
    SID_SHARED(u16, keys, 2 * KEYS * WIDTH);
    SID_SHARED(u16, values, 2 * KEYS * WIDTH);
    SID_SHARED(float, key_logits, 2 * KEYS);
    attend<4>(p, keys, values, key_logits);
}

SID_KERNEL(attention_128, sid_cu_attention, 256) {
    SID_SHARED(u16, keys, 2 * KEYS * WIDTH);
    SID_SHARED(u16, values, 2 * KEYS * WIDTH);
    SID_SHARED(float, key_logits, 2 * KEYS);
    attend<8>(p, keys, values, key_logits);
}
