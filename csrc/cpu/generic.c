/* Every kernel in plain C: what the others must agree with, and all there is on other processors. */
#define TARGET
#include "cpu/attention.h"
#include "cpu/norm.h"
#include "cpu/pointwise.h"
#include "cpu/winograd_tile.h"

WINOGRAD(2) /* used where products of bfloat16 are fast, by kernels that are tested against this */

#define ROWS 2
#include "cpu/matmul_tile.h"
#undef ROWS

#include <float.h>

#define QUERY_BLOCK 32 /* queries of a thread's turn */
#define KEY_BLOCK 64

static size_t most_queries(const sid_attention *problems, size_t count) {
    size_t most = 0;
    for (size_t i = 0; i < count; i++)
        if (problems[i].queries > most) most = problems[i].queries;
    return most;
}
static size_t query_blocks(size_t queries) { return (queries + QUERY_BLOCK - 1) / QUERY_BLOCK; }

/* The scratch: moments per block of queries | an accumulator [head_size] per thread. */
static size_t attention_scratch(const sid_attention *problems, size_t count, int threads) {
    if (count == 0) return 0;
    return count * problems[0].heads * query_blocks(most_queries(problems, count)) * sizeof(sid_moments) +
           (size_t)threads * problems[0].head_size * sizeof(float);
}

/* One query of one head: online softmax over blocks of keys. Adds to the moments. Inlined for either dtype. */
INLINE void attend(const sid_attention *p, sid_dtype dtype, size_t head, size_t query, float *out,
                   sid_moments *moments) {
    const size_t size = p->head_size, first = head * size;
    float largest = -FLT_MAX, total = 0;
    double sum = 0;
    size_t all_keys = 0;
    for (size_t c = 0; c < size; c++) out[c] = 0;
    for (size_t s = 0; s < p->source_count; s++) {
        const sid_keys *source = &p->sources[s];
        all_keys += source->tokens;
        float bias = source->bias + (source->query_bias ? source->query_bias[query] : 0);
        for (size_t token = 0; token < source->tokens; token += KEY_BLOCK) {
            size_t keys = source->tokens - token < KEY_BLOCK ? source->tokens - token : KEY_BLOCK;
            float logit[KEY_BLOCK], top = largest;
            for (size_t k = 0; k < keys; k++) {
                const void *q = p->q, *key = source->k;
                const size_t q_at = query * p->q_stride + first, k_at = (token + k) * source->k_stride + first;
                float dot = 0;
#pragma omp simd reduction(+ : dot)
                for (size_t c = 0; c < size; c++) dot += sid_load(q, dtype, q_at + c) * sid_load(key, dtype, k_at + c);
                dot *= p->scale;
                sum += dot;
                moments->squares += (double)dot * dot;
                if (dot > moments->largest) moments->largest = dot;
                logit[k] = dot + bias + (source->key_bias ? source->key_bias[token + k] : 0);
                if (logit[k] > top) top = logit[k];
            }
            float factor = expf(largest - top);
            largest = top;
            total *= factor;
            for (size_t c = 0; c < size; c++) out[c] *= factor;
            for (size_t k = 0; k < keys; k++) {
                float p_k = expf(logit[k] - largest);
                total += p_k;
                const size_t v_at = (token + k) * source->v_stride + first;
                for (size_t c = 0; c < size; c++) out[c] += p_k * sid_load(source->v, dtype, v_at + c);
            }
        }
    }
    moments->sum += sum;
    if (all_keys) moments->of_means += sum * sum / (double)all_keys;
    for (size_t c = 0; c < size; c++)
        sid_store(p->dst, dtype, query * p->dst_stride + first + c, total == 0 ? 0 : out[c] / total);
}

static void attention(const sid_attention *problems, size_t count, void *scratch, int threads, sid_dtype dtype) {
    if (count == 0) return;
    const size_t heads = problems[0].heads, blocks = query_blocks(most_queries(problems, count));
    sid_moments *sums = scratch;
    float *accumulators = (float *)(sums + count * heads * blocks);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t i = 0; i < count * heads * blocks; i++) {
        const sid_attention *p = &problems[i / blocks / heads];
        float *out = accumulators + (size_t)omp_get_thread_num() * p->head_size;
        size_t first = i % blocks * QUERY_BLOCK;
        sums[i] = (sid_moments){.largest = -INFINITY};
        for (size_t query = first; query < p->queries && query < first + QUERY_BLOCK; query++) {
            if (dtype == SID_F32) attend(p, SID_F32, i / blocks % heads, query, out, &sums[i]);
            else attend(p, SID_BF16, i / blocks % heads, query, out, &sums[i]);
        }
    }
    for (size_t i = 0; i < count * heads * blocks; i++) { /* in a fixed order */
        sid_moments *moments = problems[i / blocks / heads].moments;
        if (moments) sid_add_moments(moments, &sums[i]);
    }
}

static void attention_f32(const sid_attention *problems, size_t count, void *scratch, int threads) {
    attention(problems, count, scratch, threads, SID_F32);
}
static void attention_bf16(const sid_attention *problems, size_t count, void *scratch, int threads) {
    attention(problems, count, scratch, threads, SID_BF16);
}

size_t sid_group_norm_scratch(const sid_group_norm *norm, int threads) {
    group_norm_plan p = plan_group_norm(norm, threads);
    return p.spread_count * sizeof(spread) + (p.coefficient_count + p.sum_count) * sizeof(float);
}

void sid_kernels_generic(sid_kernels *kernels) {
    kernels->attention_scratch[SID_F32] = kernels->attention_scratch[SID_BF16] = attention_scratch;
    kernels->attention[SID_F32] = attention_f32;
    kernels->attention[SID_BF16] = attention_bf16;
    fill_norms(kernels);
    fill_pointwise(kernels);
    fill_winograd(kernels);
    kernels->winograd_input[SID_BF16] = winograd_input_2;
    kernels->winograd_output[SID_BF16] = winograd_output_2;
    kernels->matmul = matmul;
}
