#include "model/clip.h"

#include <math.h>
#include <stdlib.h>

#include "core/err.h"

#define EPS 1e-5f

typedef struct {
    sid_norm norm1, norm2;
    sid_linear *qkv, *out, *hidden, *forward;
} layer;

struct sid_clip {
    sid_text_config config;
    float *tokens, *positions; /* on the host: [vocabulary][channels], [positions][channels] */
    sid_norm final;
    layer *layers;
};

static int open_table(sid_builder *builder, float **table, const char *name, size_t rows, size_t channels) {
    size_t shape[] = {rows, channels};
    const sid_weight *weight;
    SID_TRY(sid_weights_take(builder->weights, &weight, name, "weight", 2, shape));
    *table = malloc(rows * channels * sizeof **table);
    if (!*table) return sid_fail(SID_EMEMORY, "out of memory");
    return sid_weight_floats(*table, weight);
}

static int open_layer(sid_builder *builder, layer *l, const sid_text_config *c, size_t number) {
    static const char *const parts[] = {"q_proj", "k_proj", "v_proj"};
    char prefix[SID_NAME_SIZE], name[SID_NAME_SIZE], stacked[3][SID_NAME_SIZE];
    size_t outs[] = {c->channels, c->channels, c->channels};
    SID_TRY(sid_name(prefix, "text.encoder.layers.%zu", number));
    SID_TRY(sid_name(name, "%s.layer_norm1", prefix));
    SID_TRY(sid_norm_open(builder, &l->norm1, name, c->channels));
    for (size_t i = 0; i < 3; i++) SID_TRY(sid_name(stacked[i], "%s.self_attn.%s", prefix, parts[i]));
    SID_TRY(sid_linear_open_stacked(builder, &l->qkv, 3, stacked, c->channels, outs, SID_PLAIN));
    SID_TRY(sid_name(name, "%s.self_attn.out_proj", prefix));
    SID_TRY(sid_linear_open(builder, &l->out, name, c->channels, c->channels, SID_PLAIN));
    SID_TRY(sid_name(name, "%s.layer_norm2", prefix));
    SID_TRY(sid_norm_open(builder, &l->norm2, name, c->channels));
    SID_TRY(sid_name(name, "%s.mlp.fc1", prefix));
    SID_TRY(sid_linear_open(builder, &l->hidden, name, c->channels, c->hidden, SID_PLAIN));
    SID_TRY(sid_name(name, "%s.mlp.fc2", prefix));
    return sid_linear_open(builder, &l->forward, name, c->hidden, c->channels, SID_PLAIN);
}

int sid_clip_open(sid_builder *builder, sid_clip **clip, const sid_text_config *config) {
    sid_clip *t = *clip = calloc(1, sizeof *t);
    if (!t) return sid_fail(SID_EMEMORY, "out of memory");
    t->config = *config;
    t->layers = calloc(config->layers, sizeof *t->layers);
    if (!t->layers) return sid_fail(SID_EMEMORY, "out of memory");
    for (size_t i = 0; i < config->layers; i++) SID_TRY(open_layer(builder, &t->layers[i], config, i));
    SID_TRY(sid_norm_open(builder, &t->final, "text.final_layer_norm", config->channels));
    SID_TRY(open_table(builder, &t->positions, "text.embeddings.position_embedding", config->positions,
                       config->channels));
    return open_table(builder, &t->tokens, "text.embeddings.token_embedding", config->vocabulary, config->channels);
}

void sid_clip_close(sid_backend *backend, sid_clip **clip) {
    sid_clip *t = *clip;
    if (!t) return;
    for (size_t i = 0; t->layers && i < t->config.layers; i++) {
        layer *l = &t->layers[i];
        sid_norm_close(backend, &l->norm1);
        sid_norm_close(backend, &l->norm2);
        sid_linear_close(backend, &l->qkv);
        sid_linear_close(backend, &l->out);
        sid_linear_close(backend, &l->hidden);
        sid_linear_close(backend, &l->forward);
    }
    sid_norm_close(backend, &t->final);
    free(t->layers);
    free(t->tokens);
    free(t->positions);
    free(t);
    *clip = NULL;
}

void sid_clip_embed(const sid_clip *t, float *embedded, const int *tokens, size_t n, size_t length) {
    size_t c = t->config.channels;
    for (size_t row = 0; row < n * length; row++, embedded += c) {
        const float *token = t->tokens + (size_t)tokens[row] * c, *position = t->positions + row % length * c;
        for (size_t i = 0; i < c; i++) embedded[i] = token[i] + position[i];
    }
}

/* Token i sees the tokens up to i. */
static int causal_attention(sid_exec *exec, const sid_clip *t, sid_tensor *dst, const sid_tensor *qkv) {
    size_t c = t->config.channels, head_size = c / t->config.heads;
    sid_tensor q = sid_channels(qkv, 0, c);
    sid_keys source = {.k = sid_channels(qkv, c, c), .v = sid_channels(qkv, 2 * c, c)};
    sid_attention attention = {.q = &q, .sources = &source, .source_count = 1, .heads = t->config.heads, .causal = 1};
    attention.scale = 1 / sqrtf((float)head_size);
    return sid_attend(exec, dst, &attention);
}

static int run_layer(sid_exec *exec, const sid_clip *t, const layer *l, sid_tensor *x) {
    size_t mark = sid_arena_mark(&exec->arena), c = t->config.channels;
    sid_activation activation = t->config.activation == SID_GELU ? SID_GELU_ERF : SID_GELU_QUICK;
    sid_tensor normed, qkv, hidden;
    SID_TRY(sid_new_like(exec, &normed, x, c));
    SID_TRY(sid_new_like(exec, &qkv, x, 3 * c));
    SID_TRY(sid_new_like(exec, &hidden, x, t->config.hidden));
    SID_TRY(sid_layer_normalize(exec, &normed, x, l->norm1.scale, l->norm1.shift, EPS));
    SID_TRY(sid_linear_map(exec, &qkv, &normed, l->qkv, NULL));
    SID_TRY(causal_attention(exec, t, &normed, &qkv));
    SID_TRY(sid_linear_map(exec, x, &normed, l->out, &(sid_post){.residual = x}));
    SID_TRY(sid_layer_normalize(exec, &normed, x, l->norm2.scale, l->norm2.shift, EPS));
    SID_TRY(sid_linear_map(exec, &hidden, &normed, l->hidden, &(sid_post){.activation = activation}));
    SID_TRY(sid_linear_map(exec, x, &hidden, l->forward, &(sid_post){.residual = x}));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

int sid_clip_run(sid_exec *exec, const sid_clip *t, sid_tensor *context, const sid_planes *embedded) {
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor x, normed;
    SID_TRY(sid_new_like(exec, &x, context, t->config.channels));
    SID_TRY(sid_new_like(exec, &normed, context, t->config.channels));
    sid_tensor rows = sid_dense(x.data, x.dtype, sid_rows(&x), 1, 1, x.c);
    SID_TRY(sid_from_planes(exec, &rows, embedded, NULL));
    for (size_t i = 0; i < t->config.layers; i++) SID_TRY(run_layer(exec, t, &t->layers[i], &x));
    SID_TRY(sid_layer_normalize(exec, &normed, &x, t->final.scale, t->final.shift, EPS));
    SID_TRY(sid_combine(exec, context, 1, &normed, 0, NULL));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}
