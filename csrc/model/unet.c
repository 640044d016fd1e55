#include "model/unet.h"

#include <math.h>
#include <stdlib.h>

#include "core/err.h"

#define MAX_RESNETS SID_MAX_PARTS
#define MAX_SKIPS 80

struct sid_unet {
    sid_unet_config config;
    size_t context_tokens; /* of the usual context */
    sid_conv *conv_in, *conv_out;
    sid_norm norm_out;
    sid_linear *time1, *time2;
    sid_linear *time_projections; /* those of all ResNets, stacked */
    size_t time_size;
    /* In the order in which they run: encoder, middle, decoder. */
    size_t resnet_count, transformer_count, resampler_count;
    sid_resnet resnets[MAX_RESNETS];
    sid_transformer transformers[MAX_RESNETS];
    sid_conv *resamplers[2 * SID_MAX_LEVELS];
    char time_names[MAX_RESNETS][SID_NAME_SIZE]; /* used while opening */
};

size_t sid_unet_transformers(const sid_unet *unet) { return unet->transformer_count; }
size_t sid_unet_transformer_channels(const sid_unet *unet, size_t i) { return unet->transformers[i].channels; }
size_t sid_unet_context_size(const sid_unet *unet) { return unet->config.context_size; }
size_t sid_unet_time_size(const sid_unet *unet) { return unet->time_size; }

size_t sid_unet_wave_count(const sid_unet *unet) { return unet->config.channels[0]; }

static int add_resnet(sid_builder *builder, sid_unet *u, size_t in, size_t skip, size_t out, const char *prefix) {
    size_t i = u->resnet_count++;
    u->resnets[i] = (sid_resnet){.in = in, .skip = skip, .out = out, .groups = u->config.groups, .eps = u->config.eps};
    SID_TRY(sid_name(u->time_names[i], "%s.time_emb_proj", prefix));
    return sid_resnet_open(builder, &u->resnets[i], prefix);
}

static int add_transformer(sid_builder *builder, sid_unet *u, size_t level, int layer, const char *prefix) {
    const sid_unet_config *c = &u->config;
    sid_transformer *t = &u->transformers[u->transformer_count++];
    *t = (sid_transformer){.channels = c->channels[level],
                           .heads = c->heads[level],
                           .groups = c->groups,
                           .context_size = c->context_size,
                           .linear_projection = c->linear_projection,
                           .layer = layer};
    return sid_transformer_open(builder, t, prefix, u->context_tokens);
}

/* The next convolution between two levels. */
static int add_resampler(sid_builder *builder, sid_unet *u, const char *prefix, sid_conv_shape shape) {
    return sid_conv_open(builder, &u->resamplers[u->resampler_count++], prefix, shape);
}

static int open_encoder(sid_builder *builder, sid_unet *u) {
    const sid_unet_config *c = &u->config;
    char name[SID_NAME_SIZE];
    for (size_t level = 0, in = c->channels[0]; level < c->levels; level++) {
        size_t out = c->channels[level];
        for (size_t i = 0; i < c->layers_per_block; i++, in = out) {
            SID_TRY(sid_name(name, "unet.down_blocks.%zu.resnets.%zu", level, i));
            SID_TRY(add_resnet(builder, u, in, 0, out, name));
            if (!c->attention[level]) continue;
            SID_TRY(sid_name(name, "unet.down_blocks.%zu.attentions.%zu", level, i));
            SID_TRY(add_transformer(builder, u, level, -1, name));
        }
        if (level + 1 == c->levels) break;
        SID_TRY(sid_name(name, "unet.down_blocks.%zu.downsamplers.0.conv", level));
        SID_TRY(add_resampler(builder, u, name, sid_conv_halving(out, 1)));
    }
    return SID_OK;
}

static int open_middle(sid_builder *builder, sid_unet *u) {
    size_t last = u->config.levels - 1, width = u->config.channels[last];
    SID_TRY(add_resnet(builder, u, width, 0, width, "unet.mid_block.resnets.0"));
    SID_TRY(add_transformer(builder, u, last, -1, "unet.mid_block.attentions.0"));
    return add_resnet(builder, u, width, 0, width, "unet.mid_block.resnets.1");
}

/* Channels of the skip connection that decoder ResNet i of a level gets: the encoder's outputs, last first. */
static size_t skip_channels(const sid_unet_config *c, size_t level, size_t i) {
    if (i < c->layers_per_block) return c->channels[level];
    return c->channels[level ? level - 1 : 0];
}

static int open_decoder(sid_builder *builder, sid_unet *u) {
    const sid_unet_config *c = &u->config;
    char name[SID_NAME_SIZE];
    size_t in = c->channels[c->levels - 1];
    for (size_t block = 0, layer = 0; block < c->levels; block++) {
        size_t level = sid_layer_level(c, layer), out = c->channels[level];
        for (size_t i = 0; i <= c->layers_per_block; i++, layer++, in = out) {
            SID_TRY(sid_name(name, "unet.up_blocks.%zu.resnets.%zu", block, i));
            SID_TRY(add_resnet(builder, u, in, skip_channels(c, level, i), out, name));
            if (!c->attention[level]) continue;
            SID_TRY(sid_name(name, "unet.up_blocks.%zu.attentions.%zu", block, i));
            SID_TRY(add_transformer(builder, u, level, (int)layer, name));
        }
        if (level == 0) break;
        SID_TRY(sid_name(name, "unet.up_blocks.%zu.upsamplers.0.conv", block));
        SID_TRY(add_resampler(builder, u, name, sid_conv_doubling(out)));
    }
    return SID_OK;
}

static int open_time(sid_builder *builder, sid_unet *u) {
    size_t width = u->config.channels[0], outs[MAX_RESNETS];
    sid_builder single = {builder->backend, builder->weights, 1, 1}; /* one timestep is one row */
    SID_TRY(sid_linear_open(&single, &u->time1, "unet.time_embedding.linear_1", width, 4 * width, SID_PLAIN));
    SID_TRY(sid_linear_open(&single, &u->time2, "unet.time_embedding.linear_2", 4 * width, 4 * width, SID_PLAIN));
    for (size_t i = 0; i < u->resnet_count; i++) u->time_size += outs[i] = u->resnets[i].out;
    return sid_linear_open_stacked(&single, &u->time_projections, u->resnet_count, u->time_names, 4 * width, outs,
                                   SID_PLAIN);
}

int sid_unet_open(sid_builder *builder, sid_unet **unet, const sid_unet_config *c, size_t context_tokens) {
    sid_unet *u = *unet = calloc(1, sizeof *u);
    if (!u) return sid_fail(SID_EMEMORY, "out of memory");
    u->config = *c;
    u->context_tokens = context_tokens;
    SID_TRY(sid_conv_open(builder, &u->conv_in, "unet.conv_in", sid_conv3x3(c->in_channels, c->channels[0])));
    SID_TRY(open_encoder(builder, u));
    SID_TRY(open_middle(builder, u));
    SID_TRY(open_decoder(builder, u));
    SID_TRY(open_time(builder, u));
    SID_TRY(sid_norm_open(builder, &u->norm_out, "unet.conv_norm_out", c->channels[0]));
    return sid_conv_open(builder, &u->conv_out, "unet.conv_out", sid_conv3x3(c->channels[0], c->out_channels));
}

void sid_unet_close(sid_backend *backend, sid_unet **unet) {
    sid_unet *u = *unet;
    if (!u) return;
    for (size_t i = 0; i < u->resnet_count; i++) sid_resnet_close(backend, &u->resnets[i]);
    for (size_t i = 0; i < u->transformer_count; i++) sid_transformer_close(backend, &u->transformers[i]);
    for (size_t i = 0; i < u->resampler_count; i++) sid_conv_close(backend, &u->resamplers[i]);
    sid_conv_close(backend, &u->conv_in);
    sid_conv_close(backend, &u->conv_out);
    sid_norm_close(backend, &u->norm_out);
    sid_linear_close(backend, &u->time1);
    sid_linear_close(backend, &u->time2);
    sid_linear_close(backend, &u->time_projections);
    free(u);
    *unet = NULL;
}

int sid_unet_context(sid_exec *exec, const sid_unet *u, sid_tensor *keys, const sid_tensor *context) {
    for (size_t i = 0; i < u->transformer_count; i++)
        SID_TRY(sid_linear_map(exec, &keys[i], context, u->transformers[i].attention2.keys, NULL));
    return SID_OK;
}

/* Cosines first: cos(t 10000^(-i / half)), then sin. */
void sid_unet_waves(float *waves, size_t count, int timestep) {
    size_t half = count / 2;
    for (size_t i = 0; i < half; i++) {
        double angle = timestep * exp(-log(10000.0) * (double)i / (double)half);
        waves[i] = (float)cos(angle);
        waves[half + i] = (float)sin(angle);
    }
}

int sid_unet_time(sid_exec *exec, const sid_unet *u, float *time, const sid_planes *waves) {
    const sid_post silu = {.activation = SID_SILU};
    size_t mark = sid_arena_mark(&exec->arena), width = u->config.channels[0];
    sid_tensor wave, first, second, row = sid_dense(time, SID_F32, 1, 1, 1, u->time_size);
    SID_TRY(sid_new(exec, &wave, 1, 1, 1, width));
    SID_TRY(sid_new(exec, &first, 1, 1, 1, 4 * width));
    SID_TRY(sid_new(exec, &second, 1, 1, 1, 4 * width));
    SID_TRY(sid_from_planes(exec, &wave, waves, NULL));
    SID_TRY(sid_linear_map(exec, &first, &wave, u->time1, &silu));
    SID_TRY(sid_linear_map(exec, &second, &first, u->time2, &silu));
    SID_TRY(sid_linear_map(exec, &row, &second, u->time_projections, NULL));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

/* A run through the blocks: the next part of each kind, and the skip connections that are still to be used. */
typedef struct {
    const sid_unet *unet;
    const float *time;
    const sid_tensor *keys;
    const sid_tap *tap;
    size_t last_layer; /* of the decoder that is run */
    size_t resnet, transformer, resampler;
    size_t time_used; /* numbers of time */
    sid_tensor x;
    sid_tensor skips[MAX_SKIPS];
    size_t skip_count;
} walk;

static int next_resnet(sid_exec *exec, walk *w, const sid_tensor *skip) {
    const sid_resnet *r = &w->unet->resnets[w->resnet++];
    sid_tensor out, row = sid_dense((void *)w->time, SID_F32, 1, 1, 1, w->unet->time_size);
    sid_tensor time = sid_channels(&row, w->time_used, r->out);
    SID_TRY(sid_new_like(exec, &out, &w->x, r->out));
    SID_TRY(sid_resnet_run(exec, r, &out, &w->x, skip, &time));
    w->time_used += r->out;
    w->x = out;
    return SID_OK;
}

static int next_transformer(sid_exec *exec, walk *w) {
    size_t i = w->transformer++;
    return sid_transformer_run(exec, &w->unet->transformers[i], &w->x, &w->keys[i], w->tap);
}

static int next_resampler(sid_exec *exec, walk *w) {
    return sid_resample(exec, &w->x, w->unet->resamplers[w->resampler++]);
}

static int run_encoder(sid_exec *exec, walk *w) {
    const sid_unet_config *c = &w->unet->config;
    w->skips[w->skip_count++] = w->x;
    for (size_t level = 0; level < c->levels; level++) {
        for (size_t i = 0; i < c->layers_per_block; i++) {
            SID_TRY(next_resnet(exec, w, NULL));
            if (c->attention[level]) SID_TRY(next_transformer(exec, w));
            w->skips[w->skip_count++] = w->x;
        }
        if (level + 1 == c->levels) break;
        SID_TRY(next_resampler(exec, w));
        w->skips[w->skip_count++] = w->x;
    }
    return SID_OK;
}

static int run_decoder(sid_exec *exec, walk *w) {
    const sid_unet_config *c = &w->unet->config;
    for (size_t level = c->levels, layer = 0; level-- > 0;) {
        for (size_t i = 0; i <= c->layers_per_block; i++, layer++) {
            SID_TRY(next_resnet(exec, w, &w->skips[--w->skip_count]));
            if (c->attention[level]) SID_TRY(next_transformer(exec, w));
            if (layer == w->last_layer) return SID_OK;
        }
        if (level) SID_TRY(next_resampler(exec, w));
    }
    return SID_OK;
}

static int predict(sid_exec *exec, walk *w, sid_tensor *noise) {
    const sid_unet *u = w->unet;
    sid_group_norm norm = {&w->x, NULL, NULL, u->norm_out.scale, u->norm_out.shift, u->config.groups, u->config.eps, 1};
    SID_TRY(sid_group_normalize(exec, &w->x, &norm));
    return sid_conv2d(exec, noise, &w->x, u->conv_out, NULL);
}

int sid_unet_run(sid_exec *exec, const sid_unet *u, sid_tensor *noise, const sid_tensor *z, const float *time,
                 const sid_tensor *keys, const sid_tap *tap) {
    size_t mark = sid_arena_mark(&exec->arena);
    walk w = {.unet = u, .time = time, .keys = keys, .tap = tap};
    w.last_layer = noise ? SID_MAX_LAYERS : sid_tap_last_layer(tap);
    SID_TRY(sid_new_like(exec, &w.x, z, u->config.channels[0]));
    SID_TRY(sid_conv2d(exec, &w.x, z, u->conv_in, NULL));
    SID_TRY(run_encoder(exec, &w));
    SID_TRY(next_resnet(exec, &w, NULL));
    SID_TRY(next_transformer(exec, &w));
    SID_TRY(next_resnet(exec, &w, NULL));
    SID_TRY(run_decoder(exec, &w));
    if (noise) SID_TRY(predict(exec, &w, noise));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}
