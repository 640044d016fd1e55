/* The outer loops of fused attention: they pack the keys and values of some heads, then compute the tiles of
 * queries. */
#include "cpu/attention.h"

#include <omp.h>

/* Heads are packed together up to this size, so that they stay in a shared cache; a larger head is packed alone. */
#define PACKED_BYTES ((size_t)12 << 20)

/* A unit is one head of one sample; its number is sample * heads + head. The scratch holds the packed keys and
 * values of `at_once` units, then a workspace for each thread. */
typedef struct {
    size_t units, at_once;
    size_t unit, workspace; /* bytes of a unit's keys and values, and of a thread's workspace */
    size_t tiles, blocks;   /* tiles of queries and blocks of keys in a unit */
} layout;

static size_t min(size_t a, size_t b) { return a < b ? a : b; }
static size_t max(size_t a, size_t b) { return a > b ? a : b; }
static size_t padded_tokens(const sid_attention_isa *isa, size_t tokens) {
    return sid_round_up(tokens, max(isa->rows, isa->group));
}

/* Returns the packed bytes of one token's key and value. */
static size_t token_bytes(const sid_attention_isa *isa, size_t head_size) {
    return (sid_round_up(head_size, isa->group) + sid_round_up(head_size, isa->rows)) * isa->element;
}

static layout plan(const sid_attention_isa *isa, const sid_attention *a) {
    layout l = {.units = a->q->n * a->heads};
    size_t tokens = 0;
    for (size_t i = 0; i < a->source_count; i++) {
        tokens += padded_tokens(isa, sid_key_tokens(&a->sources[i]));
        l.blocks += (sid_key_tokens(&a->sources[i]) + isa->key_block - 1) / isa->key_block;
    }
    l.tiles = (sid_queries(a) + isa->query_tile - 1) / isa->query_tile;
    l.unit = sid_round_up(max(1, tokens * token_bytes(isa, sid_head_size(a))), SID_ALIGN);
    l.workspace = sid_round_up(isa->workspace(sid_head_size(a)), SID_ALIGN);
    l.at_once = max(1, min(l.units, PACKED_BYTES / l.unit));
    return l;
}

size_t sid_attention_scratch(const sid_attention_isa *isa, const sid_attention *attention, int threads) {
    layout l = plan(isa, attention);
    return l.at_once * l.unit + (size_t)threads * l.workspace;
}

/* Packs one block of keys of one unit; blocks are counted over all its sources. */
static void pack_block(const sid_attention_isa *isa, const sid_attention *a, size_t unit, char *packed, size_t block) {
    size_t channels = sid_head_size(a), sample = unit / a->heads, head = unit % a->heads;
    for (size_t i = 0; i < a->source_count; i++) {
        const sid_keys *source = &a->sources[i];
        size_t all = sid_key_tokens(source), blocks = (all + isa->key_block - 1) / isa->key_block;
        if (block < blocks) {
            size_t token = block * isa->key_block, tokens = min(isa->key_block, all - token);
            char *keys = packed + token * token_bytes(isa, channels);
            char *values = keys + padded_tokens(isa, tokens) * sid_round_up(channels, isa->group) * isa->element;
            isa->pack(keys, sid_head_row(&source->k, a, sample, head, token), source->k.stride, 1, tokens, channels);
            isa->pack(values, sid_head_row(&source->v, a, sample, head, token), 1, source->v.stride, channels, tokens);
            return;
        }
        block -= blocks;
        packed += padded_tokens(isa, all) * token_bytes(isa, channels);
    }
}

static void run_tile(const sid_attention_isa *isa, const sid_tensor *dst, const sid_attention *a, size_t unit,
                     size_t number, const char *packed, char *workspace) {
    size_t first = number * isa->query_tile;
    isa->tile(&(sid_attention_tile){.attention = a,
                                    .dst = dst,
                                    .sample = unit / a->heads,
                                    .head = unit % a->heads,
                                    .first_query = first,
                                    .query_count = min(isa->query_tile, sid_queries(a) - first),
                                    .packed = packed,
                                    .workspace = workspace});
}

void sid_attention_run(const sid_attention_isa *isa, const sid_tensor *dst, const sid_attention *a, void *scratch,
                       int threads) {
    layout l = plan(isa, a);
    char *packed = scratch, *workspaces = packed + l.at_once * l.unit;
    for (size_t first = 0; first < l.units; first += l.at_once) {
        size_t count = min(l.at_once, l.units - first);
#pragma omp parallel num_threads(threads)
        {
            char *workspace = workspaces + (size_t)omp_get_thread_num() * l.workspace;
#pragma omp for schedule(dynamic)
            for (size_t i = 0; i < count * l.blocks; i++)
                pack_block(isa, a, first + i / l.blocks, packed + i / l.blocks * l.unit, i % l.blocks);
#pragma omp for schedule(dynamic)
            for (size_t i = 0; i < count * l.tiles; i++)
                run_tile(isa, dst, a, first + i / l.tiles, i % l.tiles, packed + i / l.tiles * l.unit, workspace);
        }
    }
}
