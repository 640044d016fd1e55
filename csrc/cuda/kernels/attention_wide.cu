// Attention in float16 and bfloat16 for heads of any size, such as the VAE's of 512 channels. The queries and keys are
// read in pieces of 64 channels, and a block sums up one slice of the values' channels. The logits are computed once
// for every slice: for 512 channels this takes 2.5 times the multiplications of an attention without slices, and no
// matrix of logits in memory.
#include "attention.cuh"

#define QUERIES SID_CU_WIDE_QUERIES
#define SLICE SID_CU_WIDE_SLICE
#define THREADS (QUERIES * 2)
#define KEYS 64
#define PIECE 64
#define WIDTH (PIECE + 8) // keeps the rows of a matrix in different banks
#define VALUE_WIDTH (SLICE + 8)

// Fetches a piece of the queries and keys, and adds its products to the logits.
SID_DEVICE void add_piece(const sid_cu_attention &p, float (*logits)[4], key_tile tile, int head, int channel, u16 *q,
                          u16 *keys) {
    const sid_cu_source &s = p.source[tile.source];
    const u16 *from = (const u16 *)p.q + (i64)blockIdx.z * p.queries * p.q_stride + head * p.head_size;
    const u16 *k = (const u16 *)s.k + key_offset(s, s.k_stride) + head * p.head_size;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    __syncthreads(); // all threads are done with the previous piece
    fetch<QUERIES, PIECE, WIDTH, THREADS>(q, from, p.q_stride, blockIdx.x * QUERIES, p.queries, channel, p.head_size,
                                          p.vector);
    fetch<KEYS, PIECE, WIDTH, THREADS>(keys, k, s.k_stride, tile.first, s.tokens, channel, p.head_size, p.vector);
    copies_wait();
    __syncthreads();
    for (int i = 0; i < PIECE / 16; i++) {
        u32 query[4];
        load_matrices(query, q + (warp * 16 + lane % 16) * WIDTH + i * 16 + lane / 16 * 8);
        add_logits<KEYS, WIDTH>(logits, query, keys + i * 16);
    }
}

SID_KERNEL(attention_wide, sid_cu_attention, THREADS) {
    SID_SHARED(u16, query_piece, QUERIES * WIDTH);
    SID_SHARED(u16, key_piece, KEYS * WIDTH);
    SID_SHARED(u16, values, KEYS * VALUE_WIDTH);
    SID_SHARED(float, key_logits, KEYS);
    int head = blockIdx.y % p.heads, slice = blockIdx.y / p.heads * SLICE, end = (blockIdx.x + 1) * QUERIES;
    queries<SLICE> q;
    start(&q, blockIdx.x * QUERIES + threadIdx.x / 32 * 16);
    for (key_tile tile = next_tile(p, {0, -KEYS}, KEYS, end); tile.source < p.sources;
         tile = next_tile(p, tile, KEYS, end)) {
        const sid_cu_source &s = p.source[tile.source];
        const u16 *v = (const u16 *)s.v + key_offset(s, s.v_stride) + head * p.head_size;
        float logits[KEYS / 8][4] = {};
        __syncthreads(); // all threads are done with the previous values and biases
        fetch<KEYS, SLICE, VALUE_WIDTH, THREADS>(values, v, s.v_stride, tile.first, s.tokens, slice, p.head_size,
                                                 p.vector);
        if (threadIdx.x < KEYS) key_logits[threadIdx.x] = key_logit(p, tile, threadIdx.x);
        for (int channel = 0; channel < p.head_size; channel += PIECE)
            add_piece(p, logits, tile, head, channel, query_piece, key_piece);
        weigh<KEYS>(p, &q, logits, tile, key_logits);
        add_values<KEYS, SLICE, VALUE_WIDTH>(&q, logits, values);
    }
    finish(p, &q, head, slice);
}
