/* Attention: chooses one of the three kernels and fills in its parameters. */
#include <stdio.h>

#include "core/err.h"
#include "cuda/grids.h"
#include "cuda/ops.h"

_Static_assert(sizeof(sid_cu_attention) <= 4096, "a launch's parameters have at most 4 KB");

/* From this many queries on, there are enough blocks of 128 queries, which read keys and values half as often. */
#define LARGE_BLOCKS_FROM 1024

static const size_t padded_heads[] = {16, 32, 48, 64, 80, 96, 128, SID_CU_LARGEST_HEAD};

static size_t padded_head(size_t size) {
    size_t i = 0;
    while (padded_heads[i] < size) i++;
    return padded_heads[i];
}

static size_t tokens_of(const sid_tensor *t) { return t->h * t->w; }

/* Whether a head's channels are whole vectors in every row. */
static int is_vector(const sid_tensor *t, size_t head_size) {
    return head_size % SID_CU_VECTOR == 0 && t->stride % SID_CU_VECTOR == 0 && sid_cu_aligned(t->data);
}

static void describe(sid_cu_attention *p, const sid_tensor *dst, const sid_attention *a) {
    size_t head_size = a->q->c / a->heads;
    *p = (sid_cu_attention){.dst = dst->data,
                            .q = a->q->data,
                            .queries = (int)tokens_of(a->q),
                            .dst_stride = (int)dst->stride,
                            .q_stride = (int)a->q->stride,
                            .sources = (int)a->source_count,
                            .heads = (int)a->heads,
                            .head_size = (int)head_size,
                            .causal = a->causal,
                            .vector = is_vector(a->q, head_size) && is_vector(dst, head_size),
                            .scale = a->scale};
    for (size_t i = 0; i < a->source_count; i++) {
        const sid_keys *s = &a->sources[i];
        p->source[i] = (sid_cu_source){.k = s->k.data,
                                       .v = s->v.data,
                                       .query_bias = s->query_bias,
                                       .key_bias = s->key_bias,
                                       .bias = s->bias,
                                       .tokens = (int)tokens_of(&s->k),
                                       .k_stride = (int)s->k.stride,
                                       .v_stride = (int)s->v.stride,
                                       .samples = s->k.n > 1};
        p->vector = p->vector && is_vector(&s->k, head_size) && is_vector(&s->v, head_size);
    }
}

int sid_cuda_attention(sid_exec *exec, sid_tensor *dst, const sid_attention *a) {
    size_t queries = tokens_of(a->q), head_size = a->q->c / a->heads;
    unsigned heads = (unsigned)a->heads, n = (unsigned)a->q->n;
    sid_cu_attention p;
    if (a->source_count > SID_CU_MAX_SOURCES)
        return sid_fail(SID_EVALUE, "attention: %zu sources of keys are more than %d", a->source_count,
                        SID_CU_MAX_SOURCES);
    describe(&p, dst, a);
    if (dst->dtype == SID_F32) {
        unsigned slices = (unsigned)sid_cu_ceil(head_size, SID_CU_FLOAT_SLICE);
        sid_grid grid = {(unsigned)sid_cu_ceil(queries, SID_CU_FLOAT_QUERIES), heads * slices, n,
                         SID_CU_FLOAT_QUERIES * 4};
        return sid_cu_run(exec, SID_CU_ATTENTION_FLOAT, "attention_float", "", grid, &p, sizeof p);
    }
    if (head_size > SID_CU_LARGEST_HEAD) {
        unsigned slices = (unsigned)sid_cu_ceil(head_size, SID_CU_WIDE_SLICE);
        sid_grid grid = {(unsigned)sid_cu_ceil(queries, SID_CU_WIDE_QUERIES), heads * slices, n,
                         SID_CU_WIDE_QUERIES * 2};
        return sid_cu_run(exec, SID_CU_ATTENTION_WIDE, "attention_wide", "", grid, &p, sizeof p);
    }
    char options[32];
    unsigned block = queries >= LARGE_BLOCKS_FROM ? 128 : 64;
    snprintf(options, sizeof options, "-DSID_DP=%zu", padded_head(head_size));
    sid_grid grid = {(unsigned)sid_cu_ceil(queries, block), heads, n, block * 2};
    return sid_cu_run(exec, SID_CU_ATTENTION, block == 128 ? "attention_128" : "attention_64", options, grid, &p,
                      sizeof p);
}
