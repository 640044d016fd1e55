/* The attention of one tile of queries over all keys: an online softmax that takes one block of keys after the other.
 *
 * Each instruction set's file includes this after simd.h and these definitions:
 *   SID_ROWS, SID_GROUP, SID_KEY_BLOCK  the panels' layout, see attention.h
 *   SID_PAIR                            elements in a 32-bit word of an operand: 1 float32 or 2 bfloat16
 *   SID_MULTIPLY_ADD(c, a, b)           c + a * b for each word; where SID_GROUP is not SID_PAIR the file has its own
 *                                       multiply() instead, see below
 *   SID_EXP2                            v_exp2 or v_exp2_short
 *   v_store_pair(p, x, y)               stores the words of the bfloat16 values of x (low half) and y, if SID_PAIR is 2
 * Most functions are inlined once for each of their constant arguments: columns, the vectors of queries, and dtype,
 * that of the stored tensors. */
#ifndef SID_CPU_ATTENTION_TMPL_H
#define SID_CPU_ATTENTION_TMPL_H

#include "core/floats.h"
#include "cpu/attention.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define SID_COLUMNS 3
#define SID_QUERY_TILE (SID_COLUMNS * SID_LANES)
/* The numbers of packed keys and values are padded to multiples of this. */
#define SID_TOKEN_STEP (SID_ROWS > SID_GROUP ? SID_ROWS : SID_GROUP)

#if SID_PAIR == 2
typedef uint16_t element;
#else
typedef float element;
#endif

/* A larger maximum is adopted only once it exceeds the old one by this much (in powers of 2). Until then the
 * probabilities grow beyond 1, which costs no accuracy, and nothing needs rescaling. */
#define SID_SLACK 8

#ifdef __clang__
#define SID_UNROLL _Pragma("unroll")
#else
#define SID_UNROLL _Pragma("GCC unroll 16")
#endif

#if SID_GROUP == SID_PAIR
typedef float __attribute__((may_alias)) word;

/* Computes c[SID_ROWS][columns * SID_LANES] = (add ? c : 0) + panel * b[words][columns * SID_LANES]. */
SID_INLINE void multiply(float *c, const element *panel, const float *b, size_t words, int add, int columns) {
    const size_t width = (size_t)columns * SID_LANES;
    vec sum[SID_ROWS][SID_COLUMNS];
    SID_UNROLL for (int r = 0; r < SID_ROWS; r++) SID_UNROLL for (int v = 0; v < columns; v++) sum[r][v] =
        add ? v_load(c + (size_t)r * width + v * SID_LANES) : v_set(0);
    for (size_t i = 0; i < words; i++) {
        vec x[SID_COLUMNS];
        SID_UNROLL for (int v = 0; v < columns; v++) x[v] = v_load(b + i * width + v * SID_LANES);
        SID_UNROLL for (int r = 0; r < SID_ROWS; r++) {
            vec a = v_set(*(const word *)(panel + (i * SID_ROWS + (size_t)r) * SID_PAIR));
            SID_UNROLL for (int v = 0; v < columns; v++) sum[r][v] = SID_MULTIPLY_ADD(sum[r][v], a, x[v]);
        }
    }
    SID_UNROLL for (int r = 0; r < SID_ROWS; r++) SID_UNROLL for (int v = 0; v < columns; v++)
        v_store(c + (size_t)r * width + v * SID_LANES, sum[r][v]);
}
#endif

/* The function sid_attention_isa.pack, inlined with constant strides and dtype where that pays. */
SID_INLINE void pack_panels(element *dst, const void *src, sid_dtype dtype, size_t row_stride, size_t depth_stride,
                            size_t rows, size_t depth) {
    for (size_t row = 0; row < rows; row += SID_ROWS)
        for (size_t first = 0; first < depth; first += SID_GROUP)
            for (size_t r = row; r < row + SID_ROWS; r++)
                for (size_t d = first; d < first + SID_GROUP; d++, dst++) {
                    size_t at = r * row_stride + d * depth_stride;
                    if (r >= rows || d >= depth) *dst = 0;
                    else if (dtype == SID_BF16 && SID_PAIR == 1)
                        *dst = (element)sid_from_bf16(((const uint16_t *)src)[at]);
                    else *dst = ((const element *)src)[at];
                }
}

/* Loads the channels, or pairs of channels, of one query that fill a vector as operand words; those from `count` on
 * are 0. */
SID_INLINE vec load_query(const char *q, size_t count, sid_dtype dtype, int negate) {
#if SID_PAIR == 2
    (void)dtype;
    __mmask32 mask = count < 2 * SID_LANES ? (1u << count) - 1 : ~0u;
    __m512i x = _mm512_maskz_loadu_epi16(mask, q);
    if (negate) x = _mm512_xor_si512(x, _mm512_set1_epi16((short)0x8000));
    return _mm512_castsi512_ps(x);
#else
    vec x;
    if (dtype == SID_BF16)
        x = count < SID_LANES ? v_from_bf16_part((const uint16_t *)q, count) : v_from_bf16((const uint16_t *)q);
    else x = count < SID_LANES ? v_load_part((const float *)q, count) : v_load((const float *)q);
    return negate ? v_sub(v_set(0), x) : x;
#endif
}

/* Fills words[ceil(head_size / SID_GROUP) * SID_GROUP / SID_PAIR][columns * SID_LANES] with Q^T, negated where the
 * scale is negative. */
SID_INLINE void pack_queries(float *words, const sid_attention_tile *tile, sid_dtype dtype, int columns) {
    const sid_attention *a = tile->attention;
    const size_t size = sid_dtype_size(dtype), head_size = sid_head_size(a);
    const char *q = sid_head_row(a->q, a, tile->sample, tile->head, tile->first_query);
    size_t depth = sid_round_up(head_size, SID_GROUP) / SID_PAIR;
    for (size_t first = 0; first < depth; first += SID_LANES) {
        size_t rows = depth - first < SID_LANES ? depth - first : SID_LANES;
        for (size_t column = 0; column < (size_t)columns; column++) {
            vec r[SID_LANES];
            for (size_t i = 0; i < SID_LANES; i++) {
                size_t query = column * SID_LANES + i, channel = first * SID_PAIR;
                int inside = query < tile->query_count && channel < head_size;
                const char *at = q + (query * a->q->stride + channel) * size;
                r[i] = inside ? load_query(at, head_size - channel, dtype, a->scale < 0) : v_set(0);
            }
            v_transpose(r);
            for (size_t j = 0; j < rows; j++)
                v_store(words + ((first + j) * (size_t)columns + column) * SID_LANES, r[j]);
        }
    }
}

/* Stores dst = O / total, transposed back. `out` has rows for a whole number of SID_LANES. */
SID_INLINE void store_output(const float *out, const vec *total, const sid_attention_tile *tile, sid_dtype dtype,
                             int columns) {
    const size_t size = sid_dtype_size(dtype), head_size = sid_head_size(tile->attention);
    char *dst = sid_head_row(tile->dst, tile->attention, tile->sample, tile->head, tile->first_query);
    for (size_t column = 0; column < (size_t)columns; column++) {
        vec zero = v_set(0), none = v_if_greater(total[column], zero, zero, v_set(1));
        /* A query without keys has zeros in out and in total. */
        vec factor = v_div(v_set(1), v_add(total[column], none));
        for (size_t channel = 0; channel < head_size; channel += SID_LANES) {
            size_t count = head_size - channel;
            vec r[SID_LANES];
            for (size_t j = 0; j < SID_LANES; j++)
                r[j] = v_mul(v_load(out + ((channel + j) * (size_t)columns + column) * SID_LANES), factor);
            v_transpose(r);
            for (size_t i = 0; i < SID_LANES && column * SID_LANES + i < tile->query_count; i++) {
                char *to = dst + ((column * SID_LANES + i) * tile->dst->stride + channel) * size;
                if (dtype == SID_BF16) {
                    if (count < SID_LANES) v_to_bf16_part((uint16_t *)to, r[i], count);
                    else v_to_bf16((uint16_t *)to, r[i]);
                } else {
                    if (count < SID_LANES) v_store_part((float *)to, r[i], count);
                    else v_store((float *)to, r[i]);
                }
            }
        }
    }
}

/* The state of the online softmax, with a lane for each query, in powers of 2. Probabilities are relative to the
 * largest logit and are divided by their total only at the end. */
typedef struct {
    vec largest[SID_COLUMNS], total[SID_COLUMNS];
    vec bias[SID_COLUMNS]; /* added to the current source's logits */
} softmax_state;

/* Adopts the maxima of scores[keys][columns * SID_LANES]. Where they are new, what has been summed up in
 * out[channels][columns * SID_LANES] is rescaled. */
SID_INLINE void raise_largest(softmax_state *state, const float *scores, size_t keys, float scale, float *out,
                              size_t channels, int columns) {
    const size_t width = (size_t)columns * SID_LANES;
    for (size_t v = 0; v < (size_t)columns; v++) {
        vec top = v_set(-FLT_MAX);
        for (size_t key = 0; key < keys; key++) top = v_max(top, v_load(scores + key * width + v * SID_LANES));
        top = v_fma(top, v_set(scale), state->bias[v]);
        vec bound = v_add(state->largest[v], v_set(SID_SLACK));
        if (!v_any_greater(top, bound)) continue;
        vec raised = v_if_greater(top, bound, top, state->largest[v]);
        vec factor = v_exp2(v_sub(state->largest[v], raised));
        state->largest[v] = raised;
        state->total[v] = v_mul(state->total[v], factor);
        for (size_t c = 0; c < channels; c++) {
            float *at = out + c * width + v * SID_LANES;
            v_store(at, v_mul(v_load(at), factor));
        }
    }
}

/* Replaces scores[keys][columns * SID_LANES] by probabilities, which become words of the second product's operand,
 * zero-padded to whole groups of keys, and adds them to the total. */
SID_INLINE void exponentials(softmax_state *state, float *scores, size_t keys, float scale, int columns) {
    const size_t width = (size_t)columns * SID_LANES;
    const vec factor = v_set(scale);
    vec shift[SID_COLUMNS], total[SID_COLUMNS];
    for (int v = 0; v < columns; v++) {
        shift[v] = v_sub(state->bias[v], state->largest[v]);
        total[v] = state->total[v];
    }
#if SID_PAIR == 2
    for (size_t key = 0; key < sid_round_up(keys, SID_GROUP); key += 2)
        for (size_t v = 0; v < (size_t)columns; v++) {
            vec p[2] = {v_set(0), v_set(0)};
            for (size_t i = 0; i < 2; i++)
                if (key + i < keys) {
                    p[i] = SID_EXP2(v_fma(v_load(scores + (key + i) * width + v * SID_LANES), factor, shift[v]));
                    total[v] = v_add(total[v], p[i]);
                }
            v_store_pair(scores + key / 2 * width + v * SID_LANES, p[0], p[1]);
        }
#else
    for (size_t key = 0; key < keys; key++)
        for (size_t v = 0; v < (size_t)columns; v++) {
            float *at = scores + key * width + v * SID_LANES;
            vec p = SID_EXP2(v_fma(v_load(at), factor, shift[v]));
            total[v] = v_add(total[v], p);
            v_store(at, p);
        }
#endif
    for (int v = 0; v < columns; v++) state->total[v] = total[v];
}

/* Loads the sum of a source's bias and its query_bias for each query. */
SID_INLINE void load_bias(softmax_state *state, const sid_keys *source, const sid_attention_tile *tile, int columns) {
    float bias[SID_QUERY_TILE];
    for (size_t q = 0; q < (size_t)columns * SID_LANES; q++) {
        int own = source->query_bias && q < tile->query_count;
        bias[q] = source->bias + (own ? source->query_bias[tile->first_query + q] : 0);
    }
    for (int v = 0; v < columns; v++) state->bias[v] = v_mul(v_load(bias + v * SID_LANES), v_set(SID_LOG2E));
}

/* Computes scores[keys][columns * SID_LANES] = scale * scores + the keys' biases, in powers of 2. */
SID_INLINE void add_key_bias(float *scores, const float *bias, size_t keys, float scale, int columns) {
    for (size_t key = 0; key < keys; key++) {
        vec added = v_set(bias[key] * SID_LOG2E);
        for (size_t v = 0; v < (size_t)columns; v++, scores += SID_LANES)
            v_store(scores, v_fma(v_load(scores), v_set(scale), added));
    }
}

/* Causal attention: the scores[keys][columns * SID_LANES] of keys from `token` on become -infinity for earlier
 * queries. */
static void hide_later_keys(float *scores, size_t token, size_t keys, const sid_attention_tile *tile, size_t columns) {
    for (size_t key = 0; key < keys; key++)
        for (size_t q = 0; q < tile->query_count && tile->first_query + q < token + key; q++)
            scores[key * columns * SID_LANES + q] = -INFINITY;
}

typedef struct {
    size_t query, score, out; /* offsets in floats; `end` is the size */
    size_t end;
} tile_workspace;

static tile_workspace workspace_layout(size_t head_size) {
    tile_workspace w = {.query = 0};
    w.score = w.query + sid_round_up(head_size, SID_GROUP) / SID_PAIR * SID_QUERY_TILE;
    w.out = w.score + SID_KEY_BLOCK * SID_QUERY_TILE;
    w.end = w.out + sid_round_up(head_size, SID_LANES) * SID_QUERY_TILE;
    return w;
}
static size_t workspace_size(size_t head_size) { return workspace_layout(head_size).end * sizeof(float); }

SID_INLINE void attend(const sid_attention_tile *tile, sid_dtype dtype, int columns) {
    const sid_attention *a = tile->attention;
    const size_t width = (size_t)columns * SID_LANES, head_size = sid_head_size(a);
    const size_t depth = sid_round_up(head_size, SID_GROUP), channels = sid_round_up(head_size, SID_ROWS);
    const tile_workspace layout = workspace_layout(head_size);
    float *query = (float *)tile->workspace + layout.query;
    float *score = (float *)tile->workspace + layout.score, *out = (float *)tile->workspace + layout.out;
    const float scale = fabsf(a->scale) * SID_LOG2E;
    const element *packed = tile->packed;
    softmax_state state;

    pack_queries(query, tile, dtype, columns);
    memset(out, 0, sid_round_up(head_size, SID_LANES) * width * sizeof *out);
    for (int v = 0; v < columns; v++) state.largest[v] = v_set(-FLT_MAX), state.total[v] = v_set(0);

    for (size_t i = 0; i < a->source_count; i++) {
        const sid_keys *source = &a->sources[i];
        const size_t tokens = sid_key_tokens(source);
        load_bias(&state, source, tile, columns);
        for (size_t token = 0; token < tokens; token += SID_KEY_BLOCK) {
            size_t keys = tokens - token < SID_KEY_BLOCK ? tokens - token : SID_KEY_BLOCK;
            const element *values = packed + sid_round_up(keys, SID_TOKEN_STEP) * depth;
            for (size_t key = 0; key < keys; key += SID_ROWS)
                multiply(score + key * width, packed + key * depth, query, depth / SID_PAIR, 0, columns);
            if (a->causal) hide_later_keys(score, token, keys, tile, (size_t)columns);
            if (source->key_bias) add_key_bias(score, source->key_bias + token, keys, scale, columns);
            const float factor = source->key_bias ? 1 : scale;
            raise_largest(&state, score, keys, factor, out, channels, columns);
            exponentials(&state, score, keys, factor, columns);
            const size_t key_depth = sid_round_up(keys, SID_GROUP);
            for (size_t c = 0; c < channels; c += SID_ROWS)
                multiply(out + c * width, values + c * key_depth, score, key_depth / SID_PAIR, 1, columns);
            packed += sid_round_up(keys, SID_TOKEN_STEP) * (depth + channels);
        }
    }
    store_output(out, state.total, tile, dtype, columns);
}

/* Defines name_tile() and name_pack(), which sid_attention_isa needs for one stored dtype. */
#define SID_ATTENTION_TILE(name, dtype)                                                                    \
    SID_TARGET static void name##_tile(const sid_attention_tile *tile) {                                   \
        if (tile->query_count <= SID_LANES) attend(tile, dtype, 1);                                        \
        else if (tile->query_count <= 2 * SID_LANES) attend(tile, dtype, 2);                               \
        else attend(tile, dtype, SID_COLUMNS);                                                             \
    }                                                                                                      \
    SID_TARGET static void name##_pack(void *dst, const void *src, size_t row_stride, size_t depth_stride, \
                                       size_t rows, size_t depth) {                                        \
        if (row_stride == 1) pack_panels(dst, src, dtype, 1, depth_stride, rows, depth);                   \
        else pack_panels(dst, src, dtype, row_stride, 1, rows, depth);                                     \
    }

/* Defines name() and name_scratch(), the entries of the kernel table. */
#define SID_ATTENTION_TABLE(name, tile, pack)                                                                    \
    static const sid_attention_isa name##_isa = {SID_ROWS,       SID_GROUP,      SID_KEY_BLOCK, sizeof(element), \
                                                 SID_QUERY_TILE, workspace_size, tile,          pack};           \
    static size_t name##_scratch(const sid_attention *attention, int threads) {                                  \
        return sid_attention_scratch(&name##_isa, attention, threads);                                           \
    }                                                                                                            \
    static void name(const sid_tensor *dst, const sid_attention *attention, void *scratch, int threads) {        \
        sid_attention_run(&name##_isa, dst, attention, scratch, threads);                                        \
    }

#define SID_ATTENTION(name, dtype)  \
    SID_ATTENTION_TILE(name, dtype) \
    SID_ATTENTION_TABLE(name, name##_tile, name##_pack)

/* Puts these two into the table. */
#define SID_FILL_ATTENTION(kernels, dtype, name)              \
    do {                                                      \
        (kernels)->attention_scratch[dtype] = name##_scratch; \
        (kernels)->attention[dtype] = name;                   \
    } while (0)

#endif
