/* Every kernel in plain C. The others have to agree with these, which are all that other processors have. */
#define SID_TARGET
#define SID_MATMUL_ROWS 2
#include "cpu/attention.h"
#include "cpu/norm_tmpl.h"
#include "cpu/pointwise_tmpl.h"
#include "cpu/winograd_tmpl.h"

SID_WINOGRAD(bf16, SID_BF16) /* the reference for the kernels of processors that multiply bfloat16 fast */

#include "cpu/matmul_tmpl.h"

#include <float.h>

#define QUERY_BLOCK 32 /* queries that a thread takes at a time */
#define SID_KEY_BLOCK 64

/* The scratch is an accumulator [head_size] for each thread. */
static size_t attention_scratch(const sid_attention *a, int threads) {
    return (size_t)threads * sid_head_size(a) * sizeof(float);
}

/* One query of one head on its way through the keys. out [head_size] and total are relative to exp(largest). */
typedef struct {
    const sid_attention *attention;
    size_t sample, head, query;
    float *out, largest, total;
} running;

/* Adds the keys token .. token + keys - 1 of a source, at most SID_KEY_BLOCK of them, to the online softmax. */
SID_INLINE void attend_block(running *r, const sid_keys *source, size_t token, size_t keys, sid_dtype dtype) {
    const sid_attention *a = r->attention;
    const size_t size = sid_head_size(a), k_stride = source->k.stride, v_stride = source->v.stride;
    const void *q = sid_head_row(a->q, a, r->sample, r->head, r->query);
    const void *key = sid_head_row(&source->k, a, r->sample, r->head, token);
    const void *value = sid_head_row(&source->v, a, r->sample, r->head, token);
    const float bias = source->bias + (source->query_bias ? source->query_bias[r->query] : 0);
    float logit[SID_KEY_BLOCK], top = r->largest, *out = r->out;
    for (size_t k = 0; k < keys; k++) {
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (size_t c = 0; c < size; c++) dot += sid_load(q, dtype, c) * sid_load(key, dtype, k * k_stride + c);
        dot *= a->scale;
        logit[k] = dot + bias + (source->key_bias ? source->key_bias[token + k] : 0);
        if (logit[k] > top) top = logit[k];
    }
    float factor = expf(r->largest - top);
    r->largest = top;
    r->total *= factor;
    for (size_t c = 0; c < size; c++) out[c] *= factor;
    for (size_t k = 0; k < keys; k++) {
        float p = expf(logit[k] - top);
        r->total += p;
        for (size_t c = 0; c < size; c++) out[c] += p * sid_load(value, dtype, k * v_stride + c);
    }
}

/* This is inlined for either dtype. */
SID_INLINE void attend(running *r, const sid_tensor *dst, sid_dtype dtype) {
    const sid_attention *a = r->attention;
    const size_t size = sid_head_size(a);
    for (size_t c = 0; c < size; c++) r->out[c] = 0;
    for (size_t s = 0; s < a->source_count; s++) {
        const size_t tokens = a->causal ? r->query + 1 : sid_key_tokens(&a->sources[s]);
        for (size_t token = 0; token < tokens; token += SID_KEY_BLOCK)
            attend_block(r, &a->sources[s], token, tokens - token < SID_KEY_BLOCK ? tokens - token : SID_KEY_BLOCK,
                         dtype);
    }
    void *to = sid_head_row(dst, a, r->sample, r->head, r->query);
    for (size_t c = 0; c < size; c++) sid_store(to, dtype, c, r->total == 0 ? 0 : r->out[c] / r->total);
}

static void attention(const sid_tensor *dst, const sid_attention *a, void *scratch, int threads) {
    const size_t queries = sid_queries(a), units = a->q->n * a->heads;
#pragma omp parallel for schedule(dynamic, QUERY_BLOCK) num_threads(threads)
    for (size_t i = 0; i < units * queries; i++) {
        running r = {.attention = a,
                     .sample = i / queries / a->heads,
                     .head = i / queries % a->heads,
                     .query = i % queries,
                     .out = (float *)scratch + (size_t)omp_get_thread_num() * sid_head_size(a),
                     .largest = -FLT_MAX};
        if (dst->dtype == SID_F32) attend(&r, dst, SID_F32);
        else attend(&r, dst, SID_BF16);
    }
}

size_t sid_group_norm_scratch(const sid_group_norm *norm, int threads) {
    group_norm_plan p = plan_group_norm(norm, threads);
    return p.spread_count * sizeof(spread) + (p.coefficient_count + p.sum_count) * sizeof(float);
}

void sid_kernels_generic(sid_kernels *kernels) {
    kernels->attention_scratch[SID_F32] = kernels->attention_scratch[SID_BF16] = attention_scratch;
    kernels->attention[SID_F32] = kernels->attention[SID_BF16] = attention;
    fill_norms(kernels);
    fill_pointwise(kernels);
    fill_winograd(kernels);
    kernels->winograd_input[SID_BF16] = winograd_input_bf16;
    kernels->winograd_output[SID_BF16] = winograd_output_bf16;
    kernels->matmul = matmul;
}
