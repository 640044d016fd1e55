/* Fused attention, the outer loops: packs the keys and values of some heads, then computes their tiles of queries. */
#include "cpu/attention.h"

#include <omp.h>

/* Heads are packed together up to this size, which stays in a shared cache; a larger head is packed alone. */
#define PACKED_BYTES ((size_t)12 << 20)

/* A unit is one head of one problem: number problem * heads + head. The scratch is cut into:
 * packed keys and values | a workspace per thread | moments per tile | where in the packed part each unit starts. */
typedef struct {
    size_t packed, workspace, sums, starts; /* bytes; workspace: of one thread */
    size_t most_tiles, most_blocks;         /* of any unit */
} layout;

static size_t min(size_t a, size_t b) { return a < b ? a : b; }
static size_t max(size_t a, size_t b) { return a > b ? a : b; }
static size_t padded_tokens(const sid_attention_isa *isa, size_t tokens) {
    return sid_round_up(tokens, max(isa->rows, isa->group));
}

/* Packed bytes of one token's key and value. */
static size_t token_bytes(const sid_attention_isa *isa, size_t head_size) {
    return (sid_round_up(head_size, isa->group) + sid_round_up(head_size, isa->rows)) * isa->element;
}

static size_t unit_bytes(const sid_attention_isa *isa, const sid_attention *problem) {
    size_t tokens = 0;
    for (size_t i = 0; i < problem->source_count; i++) tokens += padded_tokens(isa, problem->sources[i].tokens);
    return sid_round_up(tokens * token_bytes(isa, problem->head_size), SID_ALIGN);
}

static layout plan(const sid_attention_isa *isa, const sid_attention *problems, size_t count) {
    layout l = {0};
    size_t total = 0, largest = 0;
    for (size_t i = 0; i < count; i++) {
        const sid_attention *p = &problems[i];
        size_t blocks = 0;
        for (size_t s = 0; s < p->source_count; s++)
            blocks += (p->sources[s].tokens + isa->key_block - 1) / isa->key_block;
        l.most_blocks = max(l.most_blocks, blocks);
        l.most_tiles = max(l.most_tiles, (p->queries + isa->query_tile - 1) / isa->query_tile);
        total += p->heads * unit_bytes(isa, p);
        largest = max(largest, unit_bytes(isa, p));
    }
    size_t heads = count ? problems[0].heads : 0, head_size = count ? problems[0].head_size : 0;
    l.packed = max(largest, min(total, PACKED_BYTES));
    l.workspace = sid_round_up(isa->workspace(head_size), SID_ALIGN);
    l.sums = sid_round_up(count * heads * l.most_tiles * sizeof(sid_moments), SID_ALIGN);
    l.starts = count * heads * sizeof(size_t);
    return l;
}

size_t sid_attention_scratch(const sid_attention_isa *isa, const sid_attention *problems, size_t count, int threads) {
    layout l = plan(isa, problems, count);
    return l.packed + (size_t)threads * l.workspace + l.sums + l.starts;
}

/* Packs block number `block` of one head, counted over all its sources. */
static void pack_block(const sid_attention_isa *isa, size_t size, const sid_attention *problem, size_t head,
                       char *packed, size_t block) {
    size_t channels = problem->head_size, first = head * channels;
    for (size_t i = 0; i < problem->source_count; i++) {
        const sid_keys *source = &problem->sources[i];
        size_t blocks = (source->tokens + isa->key_block - 1) / isa->key_block;
        if (block < blocks) {
            size_t token = block * isa->key_block, tokens = min(isa->key_block, source->tokens - token);
            char *keys = packed + token * token_bytes(isa, channels);
            char *values = keys + padded_tokens(isa, tokens) * sid_round_up(channels, isa->group) * isa->element;
            const char *k = (const char *)source->k + (token * source->k_stride + first) * size;
            const char *v = (const char *)source->v + (token * source->v_stride + first) * size;
            isa->pack(keys, k, source->k_stride, 1, tokens, channels);
            isa->pack(values, v, 1, source->v_stride, channels, tokens);
            return;
        }
        block -= blocks;
        packed += padded_tokens(isa, source->tokens) * token_bytes(isa, channels);
    }
}

static void run_tile(const sid_attention_isa *isa, const sid_attention *problem, size_t head, size_t number,
                     const char *packed, char *workspace, sid_moments *sums) {
    size_t first = number * isa->query_tile;
    if (first >= problem->queries) return;
    sid_attention_tile tile = {.problem = problem,
                               .head = head,
                               .first_query = first,
                               .query_count = min(isa->query_tile, problem->queries - first),
                               .packed = packed,
                               .workspace = workspace,
                               .moments = problem->moments ? sums : NULL};
    isa->tile(&tile);
}

/* In a fixed order, so that the result does not depend on the threads. */
static void add_moments(const sid_attention_isa *isa, const sid_attention *problems, size_t count, size_t most_tiles,
                        const sid_moments *sums) {
    for (size_t i = 0; i < count; i++) {
        const sid_attention *p = &problems[i];
        size_t tiles = (p->queries + isa->query_tile - 1) / isa->query_tile;
        for (size_t head = 0; p->moments && head < p->heads; head++)
            for (size_t t = 0; t < tiles; t++)
                sid_add_moments(p->moments, &sums[(i * p->heads + head) * most_tiles + t]);
    }
}

void sid_attention_run(const sid_attention_isa *isa, sid_dtype dtype, const sid_attention *problems, size_t count,
                       void *scratch, int threads) {
    if (count == 0) return;
    layout l = plan(isa, problems, count);
    char *packed = scratch, *workspaces = packed + l.packed;
    sid_moments *sums = (sid_moments *)(workspaces + (size_t)threads * l.workspace);
    size_t *starts = (size_t *)((char *)sums + l.sums);
    size_t heads = problems[0].heads, units = count * heads;

    for (size_t first = 0, end = 0; first < units; first = end) {
        for (size_t used = 0; end < units && used + unit_bytes(isa, &problems[end / heads]) <= l.packed; end++) {
            starts[end] = used;
            used += unit_bytes(isa, &problems[end / heads]);
        }
#pragma omp parallel num_threads(threads)
        {
            char *workspace = workspaces + (size_t)omp_get_thread_num() * l.workspace;
#pragma omp for schedule(dynamic)
            for (size_t i = 0; i < (end - first) * l.most_blocks; i++) {
                size_t unit = first + i / l.most_blocks;
                pack_block(isa, sid_dtype_size(dtype), &problems[unit / heads], unit % heads, packed + starts[unit],
                           i % l.most_blocks);
            }
#pragma omp for schedule(dynamic)
            for (size_t i = 0; i < (end - first) * l.most_tiles; i++) {
                size_t unit = first + i / l.most_tiles, number = i % l.most_tiles;
                run_tile(isa, &problems[unit / heads], unit % heads, number, packed + starts[unit], workspace,
                         sums + unit * l.most_tiles + number);
            }
        }
    }
    add_moments(isa, problems, count, l.most_tiles, sums);
}
