// Attention in float32 for heads of any size: plain multiplications and additions, correct rather than fast. A block
// has 32 queries and four neighbouring lanes for each; it reads queries and keys in pieces of 32 channels and sums up
// one slice of the values' channels.
#include "attention.cuh"

#define QUERIES SID_CU_FLOAT_QUERIES
#define SLICE SID_CU_FLOAT_SLICE
#define THREADS (QUERIES * 4)
#define KEYS 32
#define PIECE 32
#define WIDTH (PIECE + 1) // keeps the numbers of a column in different banks
#define OWN (KEYS / 4)    // the number of keys of a tile whose logits a lane has: lane % 4 + 4 i

// Fetches rows x columns numbers of a head from row `first` and channel `channel` on, and zeros beyond the end of the
// rows and of the head.
template <int ROWS, int COLUMNS, int STEP>
SID_DEVICE void fetch_floats(float *shared, const float *head, int stride, int first, int end, int channel,
                             int head_size) {
    for (int i = threadIdx.x; i < ROWS * COLUMNS; i += THREADS) {
        int row = i / COLUMNS, column = i % COLUMNS;
        bool exists = first + row < end && channel + column < head_size;
        shared[row * STEP + column] = exists ? head[(i64)(first + row) * stride + channel + column] : 0;
    }
}

SID_DEVICE void add_piece(const sid_cu_attention &p, float *logits, key_tile tile, int head, int channel, float *q,
                          float *keys) {
    const sid_cu_source &s = p.source[tile.source];
    const float *from = (const float *)p.q + (i64)blockIdx.z * p.queries * p.q_stride + head * p.head_size;
    const float *k = (const float *)s.k + key_offset(s, s.k_stride) + head * p.head_size;
    __syncthreads(); // all threads are done with the previous piece
    fetch_floats<QUERIES, PIECE, WIDTH>(q, from, p.q_stride, blockIdx.x * QUERIES, p.queries, channel, p.head_size);
    fetch_floats<KEYS, PIECE, WIDTH>(keys, k, s.k_stride, tile.first, s.tokens, channel, p.head_size);
    __syncthreads();
    for (int c = 0; c < PIECE; c++) {
        float x = q[threadIdx.x / 4 * WIDTH + c];
#pragma unroll
        for (int i = 0; i < OWN; i++) logits[i] += x * keys[(threadIdx.x % 4 + 4 * i) * WIDTH + c];
    }
}

// Turns the lane's logits into weights. Returns the factor for the query's values.
SID_DEVICE float weigh_floats(const sid_cu_attention &p, float *logits, key_tile tile, int query,
                              const float *key_logits, float *largest, float *sum) {
    float top = SID_LOWEST, of_query = query_logit(p, tile.source, query);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int key = threadIdx.x % 4 + 4 * i;
        logits[i] = logits[i] * p.scale * SID_LOG2_E + (of_query + key_logits[key]);
        if (p.causal && tile.first + key > query) logits[i] = minus_infinity();
        top = fmaxf(top, logits[i]);
    }
    top = fmaxf(top, shuffle_xor(top, 1));
    top = fmaxf(top, shuffle_xor(top, 2));
    float factor = raise(largest, top);
    *sum *= factor;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        logits[i] = ex2(logits[i] - *largest);
        *sum += logits[i];
    }
    return factor;
}

SID_KERNEL(attention_float, sid_cu_attention, THREADS) {
    SID_SHARED(float, query_piece, QUERIES *WIDTH);
    SID_SHARED(float, key_piece, KEYS *WIDTH);
    SID_SHARED(float, values, KEYS *SLICE);
    SID_SHARED(float, weights, QUERIES *WIDTH);
    SID_SHARED(float, key_logits, KEYS);
    int head = blockIdx.y % p.heads, slice = blockIdx.y / p.heads * SLICE, end = (blockIdx.x + 1) * QUERIES;
    int lane = threadIdx.x % 4, row = threadIdx.x / 4, query = blockIdx.x * QUERIES + row;
    float largest = SID_LOWEST, sum = 0, result[SLICE / 4] = {};
    for (key_tile tile = next_tile(p, {0, -KEYS}, KEYS, end); tile.source < p.sources;
         tile = next_tile(p, tile, KEYS, end)) {
        const sid_cu_source &s = p.source[tile.source];
        const float *v = (const float *)s.v + key_offset(s, s.v_stride) + head * p.head_size;
        float logits[OWN] = {};
        __syncthreads(); // all threads are done with the previous values and biases
        fetch_floats<KEYS, SLICE, SLICE>(values, v, s.v_stride, tile.first, s.tokens, slice, p.head_size);
        if (threadIdx.x < KEYS) key_logits[threadIdx.x] = key_logit(p, tile, threadIdx.x);
        for (int channel = 0; channel < p.head_size; channel += PIECE)
            add_piece(p, logits, tile, head, channel, query_piece, key_piece);
        float factor = weigh_floats(p, logits, tile, query, key_logits, &largest, &sum);
#pragma unroll
        for (int i = 0; i < OWN; i++) weights[row * WIDTH + lane + 4 * i] = logits[i];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < SLICE / 4; i++) result[i] *= factor;
        for (int key = 0; key < KEYS; key++)
#pragma unroll
            for (int i = 0; i < SLICE / 4; i++)
                result[i] += weights[row * WIDTH + key] * values[key * SLICE + lane + 4 * i];
    }
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    if (query >= p.queries) return;
    float *dst = (float *)p.dst + ((i64)blockIdx.z * p.queries + query) * p.dst_stride + head * p.head_size + slice;
#pragma unroll
    for (int i = 0; i < SLICE / 4; i++)
        if (slice + lane + 4 * i < p.head_size) dst[lane + 4 * i] = sum == 0 ? 0 : result[i] / sum;
}
