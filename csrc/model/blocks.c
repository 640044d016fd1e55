#include "model/blocks.h"

#include "core/err.h"
#include "model/attention.h"

#define TRANSFORMER_EPS 1e-6f
#define LAYER_NORM_EPS 1e-5f

int sid_resnet_open(sid_builder *builder, sid_resnet *r, const char *prefix) {
    char name[SID_NAME_SIZE];
    const size_t all = r->in + r->skip;
    SID_TRY(sid_name(name, "%s.norm1", prefix));
    SID_TRY(sid_norm_open(builder, &r->norm1, name, all));
    SID_TRY(sid_name(name, "%s.conv1", prefix));
    SID_TRY(sid_conv_open(builder, &r->conv1, name, sid_conv3x3(all, r->out)));
    SID_TRY(sid_name(name, "%s.norm2", prefix));
    SID_TRY(sid_norm_open(builder, &r->norm2, name, r->out));
    SID_TRY(sid_name(name, "%s.conv2", prefix));
    SID_TRY(sid_conv_open(builder, &r->conv2, name, sid_conv3x3(r->out, r->out)));
    if (all == r->out) return SID_OK;
    sid_linear_part own = {r->out, all, 0, r->out, 0, r->in}, skipped = {r->out, all, 0, r->out, r->in, r->skip};
    SID_TRY(sid_name(name, "%s.conv_shortcut", prefix));
    SID_TRY(sid_linear_open_part(builder, &r->shortcut, name, &own, SID_CONV1X1));
    if (r->skip) SID_TRY(sid_linear_open_part(builder, &r->skip_shortcut, name, &skipped, SID_CONV1X1 | SID_NO_BIAS));
    return SID_OK;
}

void sid_resnet_close(sid_backend *backend, sid_resnet *r) {
    sid_norm_close(backend, &r->norm1);
    sid_norm_close(backend, &r->norm2);
    sid_conv_close(backend, &r->conv1);
    sid_conv_close(backend, &r->conv2);
    sid_linear_close(backend, &r->shortcut);
    sid_linear_close(backend, &r->skip_shortcut);
}

/* dst = the 1x1 convolution of the concatenated input, or that input itself where the widths agree. */
static int shortcut(sid_exec *exec, const sid_resnet *r, sid_tensor *dst, const sid_tensor *x, const sid_tensor *skip) {
    if (r->shortcut) {
        SID_TRY(sid_linear_map(exec, dst, x, r->shortcut, NULL));
        return skip ? sid_linear_map(exec, dst, skip, r->skip_shortcut, &(sid_post){.residual = dst}) : SID_OK;
    }
    sid_tensor first = sid_channels(dst, 0, r->in), second = sid_channels(dst, r->in, r->skip);
    SID_TRY(sid_combine(exec, &first, 1, x, 0, NULL));
    return sid_combine(exec, &second, 1, skip, 0, NULL);
}

int sid_resnet_run(sid_exec *exec, const sid_resnet *r, sid_tensor *dst, sid_tensor *x, const sid_tensor *skip,
                   const sid_tensor *time) {
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor normed, hidden;
    SID_TRY(sid_new_like(exec, &hidden, x, r->out));
    size_t inner = sid_arena_mark(&exec->arena);
    SID_TRY(sid_new_like(exec, &normed, x, r->in + r->skip));
    sid_group_norm norm1 = {x, skip, NULL, r->norm1.scale, r->norm1.shift, r->groups, r->eps, 1};
    SID_TRY(sid_group_normalize(exec, &normed, &norm1));
    SID_TRY(sid_conv2d(exec, &hidden, &normed, r->conv1, NULL));
    sid_arena_release(&exec->arena, inner);

    sid_group_norm norm2 = {&hidden, NULL, time, r->norm2.scale, r->norm2.shift, r->groups, r->eps, 1};
    SID_TRY(sid_group_normalize(exec, &hidden, &norm2));

    sid_tensor *residual = r->shortcut || skip ? dst : x;
    if (residual == dst && dst != x) SID_TRY(shortcut(exec, r, dst, x, skip));
    SID_TRY(sid_conv2d(exec, dst, &hidden, r->conv2, &(sid_post){.residual = residual}));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

/* Opens attention `number` of a transformer block, all of it but the keys. */
static int attention_open(sid_builder *builder, sid_attention_part *part, const char *block, int number,
                          size_t channels) {
    char name[SID_NAME_SIZE];
    SID_TRY(sid_name(name, "%s.norm%d", block, number));
    SID_TRY(sid_norm_open(builder, &part->norm, name, channels));
    SID_TRY(sid_name(name, "%s.attn%d.to_q", block, number));
    SID_TRY(sid_linear_open(builder, &part->query, name, channels, channels, SID_NO_BIAS));
    SID_TRY(sid_name(name, "%s.attn%d.to_out.0", block, number));
    return sid_linear_open(builder, &part->out, name, channels, channels, SID_PLAIN);
}

static int keys_open(sid_builder *builder, sid_linear **keys, const char *block, int number, size_t in,
                     size_t channels) {
    char stacked[2][SID_NAME_SIZE];
    size_t outs[] = {channels, channels};
    SID_TRY(sid_name(stacked[0], "%s.attn%d.to_k", block, number));
    SID_TRY(sid_name(stacked[1], "%s.attn%d.to_v", block, number));
    return sid_linear_open_stacked(builder, keys, 2, stacked, in, outs, SID_NO_BIAS);
}

static int feed_forward_open(sid_builder *builder, sid_transformer *t, const char *block) {
    char name[SID_NAME_SIZE];
    size_t c = t->channels;
    SID_TRY(sid_name(name, "%s.norm3", block));
    SID_TRY(sid_norm_open(builder, &t->norm3, name, c));
    SID_TRY(sid_name(name, "%s.ff.net.0.proj", block));
    sid_linear_part hidden = {8 * c, c, 0, 4 * c, 0, c}, gate = {8 * c, c, 4 * c, 4 * c, 0, c};
    SID_TRY(sid_linear_open_part(builder, &t->hidden, name, &hidden, SID_PLAIN));
    SID_TRY(sid_linear_open_part(builder, &t->gate, name, &gate, SID_PLAIN));
    SID_TRY(sid_name(name, "%s.ff.net.2", block));
    return sid_linear_open(builder, &t->forward, name, 4 * c, c, SID_PLAIN);
}

int sid_transformer_open(sid_builder *builder, sid_transformer *t, const char *prefix, size_t context_tokens) {
    char name[SID_NAME_SIZE], block[SID_NAME_SIZE];
    const size_t c = t->channels;
    sid_builder context = {builder->backend, builder->weights, 1, context_tokens};
    int projection = t->linear_projection ? SID_PLAIN : SID_CONV1X1;
    SID_TRY(sid_name(name, "%s.norm", prefix));
    SID_TRY(sid_norm_open(builder, &t->norm, name, c));
    SID_TRY(sid_name(name, "%s.proj_in", prefix));
    SID_TRY(sid_linear_open(builder, &t->project_in, name, c, c, projection));
    SID_TRY(sid_name(name, "%s.proj_out", prefix));
    SID_TRY(sid_linear_open(builder, &t->project_out, name, c, c, projection));
    SID_TRY(sid_name(block, "%s.transformer_blocks.0", prefix));
    SID_TRY(attention_open(builder, &t->attention1, block, 1, c));
    SID_TRY(keys_open(builder, &t->attention1.keys, block, 1, c, c));
    SID_TRY(attention_open(builder, &t->attention2, block, 2, c));
    SID_TRY(keys_open(&context, &t->attention2.keys, block, 2, t->context_size, c));
    return feed_forward_open(builder, t, block);
}

void sid_transformer_close(sid_backend *backend, sid_transformer *t) {
    sid_norm *norms[] = {&t->norm, &t->attention1.norm, &t->attention2.norm, &t->norm3};
    sid_linear **linears[] = {
        &t->project_in,       &t->project_out,     &t->attention1.query, &t->attention1.keys, &t->attention1.out,
        &t->attention2.query, &t->attention2.keys, &t->attention2.out,   &t->hidden,          &t->gate,
        &t->forward};
    for (size_t i = 0; i < sizeof norms / sizeof *norms; i++) sid_norm_close(backend, norms[i]);
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++) sid_linear_close(backend, linears[i]);
}

static int cross_attention(sid_exec *exec, const sid_transformer *t, sid_tensor *dst, const sid_tensor *x,
                           const sid_tensor *context_keys) {
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor q;
    SID_TRY(sid_new_like(exec, &q, x, t->channels));
    SID_TRY(sid_linear_map(exec, &q, x, t->attention2.query, NULL));
    SID_TRY(sid_attend_samples(exec, dst, &q, context_keys, t->heads));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

/* h += forward(hidden(x) * gelu(gate(x))). */
static int feed_forward(sid_exec *exec, const sid_transformer *t, sid_tensor *h, const sid_tensor *x) {
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor hidden, gated;
    SID_TRY(sid_new_like(exec, &hidden, x, 4 * t->channels));
    SID_TRY(sid_new_like(exec, &gated, x, 4 * t->channels));
    SID_TRY(sid_linear_map(exec, &hidden, x, t->hidden, NULL));
    SID_TRY(sid_linear_map(exec, &gated, x, t->gate, &(sid_post){.activation = SID_GELU_ERF, .factor = &hidden}));
    SID_TRY(sid_linear_map(exec, h, &gated, t->forward, &(sid_post){.residual = h}));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

int sid_transformer_run(sid_exec *exec, const sid_transformer *t, sid_tensor *x, const sid_tensor *context_keys,
                        const sid_tap *tap) {
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor h, normed, attended;
    SID_TRY(sid_new_like(exec, &h, x, t->channels));
    SID_TRY(sid_new_like(exec, &normed, x, t->channels));
    SID_TRY(sid_new_like(exec, &attended, x, t->channels));
    sid_group_norm norm = {x, NULL, NULL, t->norm.scale, t->norm.shift, t->groups, TRANSFORMER_EPS, 0};
    SID_TRY(sid_group_normalize(exec, &normed, &norm));
    SID_TRY(sid_linear_map(exec, &h, &normed, t->project_in, NULL));

    SID_TRY(sid_layer_normalize(exec, &normed, &h, t->attention1.norm.scale, t->attention1.norm.shift, LAYER_NORM_EPS));
    SID_TRY(sid_self_attention(exec, t, &attended, &normed, tap));
    SID_TRY(sid_linear_map(exec, &h, &attended, t->attention1.out, &(sid_post){.residual = &h}));

    SID_TRY(sid_layer_normalize(exec, &normed, &h, t->attention2.norm.scale, t->attention2.norm.shift, LAYER_NORM_EPS));
    SID_TRY(cross_attention(exec, t, &attended, &normed, context_keys));
    SID_TRY(sid_linear_map(exec, &h, &attended, t->attention2.out, &(sid_post){.residual = &h}));

    SID_TRY(sid_layer_normalize(exec, &normed, &h, t->norm3.scale, t->norm3.shift, LAYER_NORM_EPS));
    SID_TRY(feed_forward(exec, t, &h, &normed));

    SID_TRY(sid_linear_map(exec, x, &h, t->project_out, &(sid_post){.residual = x}));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}
