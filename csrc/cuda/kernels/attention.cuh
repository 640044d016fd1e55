// What the three attention kernels share. A block walks through the keys of all sources in tiles and keeps, for each of
// its queries, the largest logit, the sum of the weights and the weighted sum of the values. Logits are in base 2.
//
// The largest logit of a query is never below SID_LOWEST, so a logit of minus infinity is infinitely far below it and
// has the weight 2^-infinity = 0; a query that has seen no other has a sum of 0, and gets zeros. NaNs pass through all
// this to the result.
#pragma once
#include "sid.cuh"

// Loops over registers are unrolled explicitly, because a loop that the compiler does not unroll puts them into memory.
#define SID_LOG2_E 1.4426950408889634f
#define SID_LOWEST -1e30f

// The keys of one source from key `first` on. Every kernel has its own number of keys in a tile.
struct key_tile {
    int source, first;
};

// Returns the number of keys that any query before `end` sees.
SID_DEVICE int visible_tokens(const sid_cu_attention &p, int source, int end) {
    int tokens = p.source[source].tokens;
    return p.causal && end < tokens ? end : tokens;
}

// Returns the next tile of `count` keys, or the first one after {0, -count}.
SID_DEVICE key_tile next_tile(const sid_cu_attention &p, key_tile tile, int count, int end) {
    tile.first += count;
    while (tile.source < p.sources && tile.first >= visible_tokens(p, tile.source, end)) tile = {tile.source + 1, 0};
    return tile;
}

// Returns a query's part of the logits of a source.
SID_DEVICE float query_logit(const sid_cu_attention &p, int source, int query) {
    const sid_cu_source &s = p.source[source];
    return (s.bias + (s.query_bias && query < p.queries ? s.query_bias[query] : 0)) * SID_LOG2_E;
}

SID_DEVICE float minus_infinity() { return bits_float(0xff800000); }

// Returns a key's part of the logits, minus infinity where there is no key.
SID_DEVICE float key_logit(const sid_cu_attention &p, key_tile tile, int i) {
    const sid_cu_source &s = p.source[tile.source];
    int key = tile.first + i;
    if (key >= s.tokens) return minus_infinity();
    return s.key_bias ? s.key_bias[key] * SID_LOG2_E : 0;
}

SID_DEVICE i64 key_offset(const sid_cu_source &s, int stride) {
    return (i64)blockIdx.z * s.samples * s.tokens * stride;
}

// Adopts a tile whose largest logit is `top`. Returns the factor for everything that has been summed up.
SID_DEVICE float raise(float *largest, float top) {
    float next = fmaxf(*largest, top), factor = ex2(*largest - next);
    *largest = next;
    return factor;
}

// ---- matrices of 16-bit numbers in shared memory, by mma ----

#if SID_T != 0

// Copies rows x columns numbers of a head, from row `first` and channel `channel` on, to shared memory, where rows are
// `width` apart; beyond row `end` and the head they are zeros. All threads of the block call it; the copy is complete
// after copies_wait() and a barrier.
template <int ROWS, int COLUMNS, int WIDTH, int THREADS>
SID_DEVICE void fetch(u16 *shared, const u16 *head, int stride, int first, int end, int channel, int head_size,
                      bool vector) {
    if (vector) {
        for (int i = threadIdx.x; i < ROWS * (COLUMNS / 8); i += THREADS) {
            int row = i / (COLUMNS / 8), column = i % (COLUMNS / 8) * 8;
            bool exists = first + row < end && channel + column < head_size;
            const u16 *from = exists ? head + (i64)(first + row) * stride + channel + column : head;
            copy_start(shared + row * WIDTH + column, from, exists);
        }
    } else {
        for (int i = threadIdx.x; i < ROWS * COLUMNS; i += THREADS) {
            int row = i / COLUMNS, column = i % COLUMNS;
            bool exists = first + row < end && channel + column < head_size;
            shared[row * WIDTH + column] = exists ? head[(i64)(first + row) * stride + channel + column] : (u16)0;
        }
    }
}

// The state of a warp's 16 queries. A lane has parts of the rows lane / 4 and lane / 4 + 8, as `multiply` lays them
// out.
template <int CHANNELS> struct queries {
    int first; // the lane's first row; the other is first + 8
    float largest[2], sum[2], values[CHANNELS / 8][4];
};

template <int CHANNELS> SID_DEVICE void start(queries<CHANNELS> *q, int first) {
    q->first = first + threadIdx.x % 32 / 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        q->largest[h] = SID_LOWEST;
        q->sum[h] = 0;
    }
#pragma unroll
    for (int i = 0; i < CHANNELS / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) q->values[i][j] = 0;
}

// Computes logits (16 queries, KEYS) += 16 channels of the queries times those of the keys, which begin at `keys`.
template <int KEYS, int WIDTH> SID_DEVICE void add_logits(float (*logits)[4], const u32 *query, const u16 *keys) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n += 2) {
        u32 key[4];
        load_matrices(key, keys + (n * 8 + lane / 16 * 8 + lane % 8) * WIDTH + lane / 8 % 2 * 8);
        multiply(logits[n], query, key);
        multiply(logits[n + 1], query, key + 2);
    }
}

// Turns products into logits, then into weights, and updates the state of the queries.
template <int KEYS, int CHANNELS>
SID_DEVICE void weigh(const sid_cu_attention &p, queries<CHANNELS> *q, float (*logits)[4], key_tile tile,
                      const float *key_logits) {
    int lane = threadIdx.x % 32;
    float top[2] = {SID_LOWEST, SID_LOWEST}, of_query[2], factor[2];
    bool masked = p.causal && tile.first + KEYS > q->first;
#pragma unroll
    for (int h = 0; h < 2; h++) of_query[h] = query_logit(p, tile.source, q->first + 8 * h);
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int key = n * 8 + lane % 4 * 2 + j % 2, h = j / 2;
            logits[n][j] = logits[n][j] * (p.scale * SID_LOG2_E) + (of_query[h] + key_logits[key]);
            if (masked && tile.first + key > q->first + 8 * h) logits[n][j] = minus_infinity();
            top[h] = fmaxf(top[h], logits[n][j]);
        }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        top[h] = fmaxf(top[h], shuffle_xor(top[h], 1));
        top[h] = fmaxf(top[h], shuffle_xor(top[h], 2));
        factor[h] = raise(&q->largest[h], top[h]);
        q->sum[h] *= factor[h];
    }
#pragma unroll
    for (int i = 0; i < CHANNELS / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) q->values[i][j] *= factor[j / 2];
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            logits[n][j] = ex2(logits[n][j] - q->largest[j / 2]);
            q->sum[j / 2] += logits[n][j];
        }
}

// Adds the weights of KEYS keys times their values. The lanes' parts of a product are laid out as the next product
// needs them.
template <int KEYS, int CHANNELS, int WIDTH>
SID_DEVICE void add_values(queries<CHANNELS> *q, float (*weights)[4], const u16 *values) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        float (*w)[4] = weights + 2 * k;
        u32 weight[4] = {pack_pair(w[0][0], w[0][1]), pack_pair(w[0][2], w[0][3]), pack_pair(w[1][0], w[1][1]),
                         pack_pair(w[1][2], w[1][3])};
#pragma unroll
        for (int i = 0; i < CHANNELS / 8; i += 2) {
            u32 value[4];
            load_matrices_transposed(value, values + (k * 16 + lane % 16) * WIDTH + i * 8 + lane / 16 * 8);
            multiply(q->values[i], weight, value);
            multiply(q->values[i + 1], weight, value + 2);
        }
    }
}

// Writes the queries' results from channel `channel` of a head on.
template <int CHANNELS> SID_DEVICE void finish(const sid_cu_attention &p, queries<CHANNELS> *q, int head, int channel) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int query = q->first + 8 * h;
        q->sum[h] += shuffle_xor(q->sum[h], 1);
        q->sum[h] += shuffle_xor(q->sum[h], 2);
        float inverse = q->sum[h] == 0 ? 0 : 1 / q->sum[h];
        if (query >= p.queries) continue;
        u16 *dst = (u16 *)p.dst + ((i64)blockIdx.z * p.queries + query) * p.dst_stride + head * p.head_size + channel;
#pragma unroll
        for (int i = 0; i < CHANNELS / 8; i++) {
            int c = i * 8 + lane % 4 * 2;
            u32 pair = pack_pair(q->values[i][2 * h] * inverse, q->values[i][2 * h + 1] * inverse);
            if (p.vector && channel + c < p.head_size) *(u32 *)(dst + c) = pair;
            if (!p.vector && channel + c < p.head_size) dst[c] = (u16)pair;
            if (!p.vector && channel + c + 1 < p.head_size) dst[c + 1] = (u16)(pair >> 16);
        }
    }
}

#endif
