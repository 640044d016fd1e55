/* Fused attention: what all instruction sets share (attention.c) and what each of them provides.
 *
 * Everything is computed transposed, with queries across the lanes of a vector:
 *     S^T = K Q^T    (keys x queries)        O^T = V^T P^T    (head channels x queries)
 * So the softmax over keys needs no operation across lanes, and keys and head channels, which are the rows, come in any
 * number without wasting lanes. Both products are computed alike: rows of K or V^T, packed in panels, are multiplied by
 * a matrix with queries in its columns. A panel holds `rows` rows and is stored as
 *     [ceil(depth / group)][rows][group],    depth: what is summed over (head channels or keys), zero-padded.
 * The keys of each head are packed in blocks of key_block; each block's panels of K come before its panels of V^T. */
#ifndef SID_CPU_ATTENTION_H
#define SID_CPU_ATTENTION_H

#include "core/backend.h"

/* Some queries of one sample and head. */
typedef struct {
    const sid_attention *attention;
    const sid_tensor *dst;
    size_t sample, head, first_query, query_count;
    const void *packed; /* the head's keys and values, source after source */
    void *workspace;    /* workspace() bytes */
} sid_attention_tile;

typedef struct {
    size_t rows, group, key_block; /* the panels' layout; key_block is a multiple of both others */
    size_t element;                /* bytes of a packed element */
    size_t query_tile;             /* the most queries of a tile */
    size_t (*workspace)(size_t head_size);
    void (*tile)(const sid_attention_tile *tile);
    /* Packs rows x depth elements into panels; element (r, d) is src[r * row_stride + d * depth_stride], and one of
     * the strides is 1. */
    void (*pack)(void *dst, const void *src, size_t row_stride, size_t depth_stride, size_t rows, size_t depth);
} sid_attention_isa;

static inline size_t sid_round_up(size_t value, size_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

static inline size_t sid_head_size(const sid_attention *a) { return a->q->c / a->heads; }
static inline size_t sid_queries(const sid_attention *a) { return a->q->h * a->q->w; }
static inline size_t sid_key_tokens(const sid_keys *source) { return source->k.h * source->k.w; }

/* Returns the address of the channels of one head in a row of one sample. */
static inline char *sid_head_row(const sid_tensor *t, const sid_attention *a, size_t sample, size_t head, size_t row) {
    size_t place = ((t->n == 1 ? 0 : sample) * t->h * t->w + row) * t->stride + head * sid_head_size(a);
    return (char *)t->data + place * sid_dtype_size(t->dtype);
}

size_t sid_attention_scratch(const sid_attention_isa *isa, const sid_attention *attention, int threads);
void sid_attention_run(const sid_attention_isa *isa, const sid_tensor *dst, const sid_attention *attention,
                       void *scratch, int threads);

#endif
