/* AutoencoderKL: ResNets at each level, attention in the middle; encoder and decoder mirror each other. */
#include <stdlib.h>

#include "core/err.h"
#include "model/attention.h"
#include "model/autoencoder.h"

#define EPS 1e-6f
#define MAX_RESNETS (SID_MAX_LEVELS * 8 + 2)

/* Encoder and decoder have the same parts, which are in the order in which they run. */
typedef struct {
    sid_conv *conv_in, *conv_out;
    sid_norm norm_out;
    size_t resnet_count, resampler_count;
    sid_resnet resnets[MAX_RESNETS];
    sid_conv *resamplers[SID_MAX_LEVELS];
    sid_attention_part attention; /* over all pixels, with a single head */
} half;

typedef struct {
    sid_vae_config config;
    half encoder, decoder;
    sid_linear *quant, *quant_variance; /* to the posterior's mean and to the logarithm of its variance; NULL: none */
    sid_linear *post_quant;             /* NULL: none */
} kl;

static int add_resnet(sid_builder *builder, half *part, const char *prefix, size_t in, size_t out, size_t groups) {
    sid_resnet *r = &part->resnets[part->resnet_count++];
    *r = (sid_resnet){.in = in, .out = out, .groups = groups, .eps = EPS};
    return sid_resnet_open(builder, r, prefix);
}

static int open_attention(sid_builder *builder, sid_attention_part *a, const char *prefix, size_t channels) {
    char name[SID_NAME_SIZE], stacked[2][SID_NAME_SIZE];
    size_t outs[] = {channels, channels};
    SID_TRY(sid_name(name, "%s.group_norm", prefix));
    SID_TRY(sid_norm_open(builder, &a->norm, name, channels));
    SID_TRY(sid_name(name, "%s.to_q", prefix));
    SID_TRY(sid_linear_open(builder, &a->query, name, channels, channels, SID_PLAIN));
    SID_TRY(sid_name(stacked[0], "%s.to_k", prefix));
    SID_TRY(sid_name(stacked[1], "%s.to_v", prefix));
    SID_TRY(sid_linear_open_stacked(builder, &a->keys, 2, stacked, channels, outs, SID_PLAIN));
    SID_TRY(sid_name(name, "%s.to_out.0", prefix));
    return sid_linear_open(builder, &a->out, name, channels, channels, SID_PLAIN);
}

static int open_middle(sid_builder *builder, half *part, const sid_vae_config *c, const char *prefix) {
    char name[SID_NAME_SIZE];
    size_t width = c->channels[c->levels - 1];
    SID_TRY(sid_name(name, "%s.mid_block.resnets.0", prefix));
    SID_TRY(add_resnet(builder, part, name, width, width, c->groups));
    SID_TRY(sid_name(name, "%s.mid_block.attentions.0", prefix));
    if (c->mid_attention) SID_TRY(open_attention(builder, &part->attention, name, width));
    SID_TRY(sid_name(name, "%s.mid_block.resnets.1", prefix));
    return add_resnet(builder, part, name, width, width, c->groups);
}

static int open_first(sid_builder *builder, half *part, const char *prefix, size_t in, size_t out) {
    char name[SID_NAME_SIZE];
    SID_TRY(sid_name(name, "%s.conv_in", prefix));
    return sid_conv_open(builder, &part->conv_in, name, sid_conv3x3(in, out));
}

static int open_last(sid_builder *builder, half *part, const char *prefix, size_t in, size_t out) {
    char name[SID_NAME_SIZE];
    SID_TRY(sid_name(name, "%s.conv_norm_out", prefix));
    SID_TRY(sid_norm_open(builder, &part->norm_out, name, in));
    SID_TRY(sid_name(name, "%s.conv_out", prefix));
    return sid_conv_open(builder, &part->conv_out, name, sid_conv3x3(in, out));
}

static int add_resampler(sid_builder *builder, half *part, const char *prefix, sid_conv_shape shape) {
    return sid_conv_open(builder, &part->resamplers[part->resampler_count++], prefix, shape);
}

static int open_encoder(sid_builder *builder, kl *vae) {
    const sid_vae_config *c = &vae->config;
    const size_t latent = c->latent_channels, last = c->channels[c->levels - 1];
    char name[SID_NAME_SIZE];
    SID_TRY(open_first(builder, &vae->encoder, "vae.encoder", c->image_channels, c->channels[0]));
    for (size_t level = 0, in = c->channels[0]; level < c->levels; level++) {
        size_t out = c->channels[level];
        for (size_t i = 0; i < c->layers_per_block; i++, in = out) {
            SID_TRY(sid_name(name, "vae.encoder.down_blocks.%zu.resnets.%zu", level, i));
            SID_TRY(add_resnet(builder, &vae->encoder, name, in, out, c->groups));
        }
        if (level + 1 == c->levels) break;
        SID_TRY(sid_name(name, "vae.encoder.down_blocks.%zu.downsamplers.0.conv", level));
        SID_TRY(add_resampler(builder, &vae->encoder, name, sid_conv_halving(out, 0)));
    }
    SID_TRY(open_middle(builder, &vae->encoder, c, "vae.encoder"));
    SID_TRY(open_last(builder, &vae->encoder, "vae.encoder", last, 2 * latent));
    if (!c->quant_conv) return SID_OK;
    sid_linear_part mean = {2 * latent, 2 * latent, 0, latent, 0, 2 * latent}, variance = mean;
    variance.first_row = latent;
    SID_TRY(sid_linear_open_part(builder, &vae->quant, "vae.quant_conv", &mean, SID_CONV1X1));
    return sid_linear_open_part(builder, &vae->quant_variance, "vae.quant_conv", &variance, SID_CONV1X1);
}

static int open_decoder(sid_builder *builder, kl *vae) {
    const sid_vae_config *c = &vae->config;
    const size_t latent = c->latent_channels;
    char name[SID_NAME_SIZE];
    size_t in = c->channels[c->levels - 1];
    if (c->post_quant_conv)
        SID_TRY(sid_linear_open(builder, &vae->post_quant, "vae.post_quant_conv", latent, latent, SID_CONV1X1));
    SID_TRY(open_first(builder, &vae->decoder, "vae.decoder", latent, in));
    SID_TRY(open_middle(builder, &vae->decoder, c, "vae.decoder"));
    for (size_t block = 0; block < c->levels; block++) {
        size_t out = c->channels[c->levels - 1 - block];
        for (size_t i = 0; i <= c->layers_per_block; i++, in = out) {
            SID_TRY(sid_name(name, "vae.decoder.up_blocks.%zu.resnets.%zu", block, i));
            SID_TRY(add_resnet(builder, &vae->decoder, name, in, out, c->groups));
        }
        if (block + 1 == c->levels) break;
        SID_TRY(sid_name(name, "vae.decoder.up_blocks.%zu.upsamplers.0.conv", block));
        SID_TRY(add_resampler(builder, &vae->decoder, name, sid_conv_doubling(out)));
    }
    return open_last(builder, &vae->decoder, "vae.decoder", c->channels[0], c->image_channels);
}

static int kl_open(sid_builder *builder, void **network, const sid_vae_config *config) {
    kl *v = *network = calloc(1, sizeof *v);
    if (!v) return sid_fail(SID_EMEMORY, "out of memory");
    v->config = *config;
    SID_TRY(open_encoder(builder, v));
    return open_decoder(builder, v);
}

static void close_half(sid_backend *backend, half *part) {
    for (size_t i = 0; i < part->resnet_count; i++) sid_resnet_close(backend, &part->resnets[i]);
    for (size_t i = 0; i < part->resampler_count; i++) sid_conv_close(backend, &part->resamplers[i]);
    sid_conv_close(backend, &part->conv_in);
    sid_conv_close(backend, &part->conv_out);
    sid_norm_close(backend, &part->norm_out);
    sid_norm_close(backend, &part->attention.norm);
    sid_linear_close(backend, &part->attention.query);
    sid_linear_close(backend, &part->attention.keys);
    sid_linear_close(backend, &part->attention.out);
}

static void kl_close(sid_backend *backend, void *network) {
    kl *vae = network;
    close_half(backend, &vae->encoder);
    close_half(backend, &vae->decoder);
    sid_linear_close(backend, &vae->quant);
    sid_linear_close(backend, &vae->quant_variance);
    sid_linear_close(backend, &vae->post_quant);
    free(vae);
}

/* A run through one half: the next part of each kind. */
typedef struct {
    const half *part;
    size_t groups, resnet, resampler;
    sid_tensor x;
} walk;

/* Works in place where the width stays, so that as few as possible of an image's largest maps exist. */
static int next_resnet(sid_exec *exec, walk *w) {
    const sid_resnet *r = &w->part->resnets[w->resnet++];
    sid_tensor out;
    if (r->in == r->out) return sid_resnet_run(exec, r, &w->x, &w->x, NULL, NULL);
    SID_TRY(sid_new_like(exec, &out, &w->x, r->out));
    SID_TRY(sid_resnet_run(exec, r, &out, &w->x, NULL, NULL));
    w->x = out;
    return SID_OK;
}

static int next_resampler(sid_exec *exec, walk *w) {
    return sid_resample(exec, &w->x, w->part->resamplers[w->resampler++]);
}

/* x += out(attention(norm(x))) */
static int attention(sid_exec *exec, walk *w) {
    const sid_attention_part *a = &w->part->attention;
    size_t mark = sid_arena_mark(&exec->arena), c = w->x.c;
    sid_tensor normed, q, kv;
    SID_TRY(sid_new_like(exec, &normed, &w->x, c));
    SID_TRY(sid_new_like(exec, &q, &w->x, c));
    SID_TRY(sid_new_like(exec, &kv, &w->x, 2 * c));
    sid_group_norm norm = {&w->x, NULL, NULL, a->norm.scale, a->norm.shift, w->groups, EPS, 0};
    SID_TRY(sid_group_normalize(exec, &normed, &norm));
    SID_TRY(sid_linear_map(exec, &q, &normed, a->query, NULL));
    SID_TRY(sid_linear_map(exec, &kv, &normed, a->keys, NULL));
    SID_TRY(sid_attend_samples(exec, &normed, &q, &kv, 1));
    SID_TRY(sid_linear_map(exec, &w->x, &normed, a->out, &(sid_post){.residual = &w->x}));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

static int begin(sid_exec *exec, walk *w, const sid_tensor *src) {
    SID_TRY(sid_new_like(exec, &w->x, src, w->part->conv_in->shape.out));
    return sid_conv2d(exec, &w->x, src, w->part->conv_in, NULL);
}

static int middle(sid_exec *exec, walk *w) {
    SID_TRY(next_resnet(exec, w));
    if (w->part->attention.query) SID_TRY(attention(exec, w));
    return next_resnet(exec, w);
}

static int end(sid_exec *exec, walk *w, sid_tensor *dst) {
    sid_group_norm norm = {&w->x, NULL, NULL, w->part->norm_out.scale, w->part->norm_out.shift, w->groups, EPS, 1};
    SID_TRY(sid_group_normalize(exec, &w->x, &norm));
    return sid_conv2d(exec, dst, &w->x, w->part->conv_out, NULL);
}

/* planes = scale times one half of the posterior's moments: channels first .. first + C - 1, which quant maps to. */
static int encode_half(sid_exec *exec, const kl *vae, sid_planes *planes, const sid_planes *images, sid_linear *quant,
                       size_t first, float scale) {
    const sid_vae_config *c = &vae->config;
    size_t mark = sid_arena_mark(&exec->arena), n = images->n;
    walk w = {.part = &vae->encoder, .groups = c->groups};
    sid_tensor image, moments, half;
    SID_TRY(sid_new(exec, &moments, n, planes->h, planes->w, 2 * c->latent_channels));
    SID_TRY(sid_arena_tensor(&exec->arena, &half, SID_F32, n, planes->h, planes->w, c->latent_channels));
    SID_TRY(sid_new(exec, &image, n, images->h, images->w, c->image_channels));
    SID_TRY(sid_from_planes(exec, &image, images, NULL));
    SID_TRY(begin(exec, &w, &image));
    for (size_t level = 0; level < c->levels; level++) {
        for (size_t i = 0; i < c->layers_per_block; i++) SID_TRY(next_resnet(exec, &w));
        if (level + 1 < c->levels) SID_TRY(next_resampler(exec, &w));
    }
    SID_TRY(middle(exec, &w));
    SID_TRY(end(exec, &w, &moments));
    if (quant) SID_TRY(sid_linear_map(exec, &half, &moments, quant, NULL));
    else half = sid_channels(&moments, first, c->latent_channels);
    SID_TRY(sid_to_planes(exec, planes, &half, &(sid_curve){.factor = scale}));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

static int kl_encode(sid_exec *exec, const void *network, sid_planes *latents, const sid_planes *images) {
    const kl *vae = network;
    return encode_half(exec, vae, latents, images, vae->quant, 0, vae->config.scaling_factor);
}

static int kl_log_variance(sid_exec *exec, const void *network, sid_planes *planes, const sid_planes *images) {
    const kl *vae = network;
    return encode_half(exec, vae, planes, images, vae->quant_variance, vae->config.latent_channels, 1);
}

static int kl_decode(sid_exec *exec, const void *network, sid_planes *images, const sid_planes *latents) {
    const kl *vae = network;
    const sid_vae_config *c = &vae->config;
    size_t mark = sid_arena_mark(&exec->arena);
    walk w = {.part = &vae->decoder, .groups = c->groups};
    sid_tensor image, scaled, z;
    SID_TRY(sid_arena_tensor(&exec->arena, &image, SID_F32, images->n, images->h, images->w, c->image_channels));
    SID_TRY(sid_new(exec, &scaled, latents->n, latents->h, latents->w, c->latent_channels));
    SID_TRY(sid_from_planes(exec, &scaled, latents, &(sid_curve){.factor = 1 / c->scaling_factor}));
    z = scaled;
    if (vae->post_quant) {
        SID_TRY(sid_new_like(exec, &z, &scaled, c->latent_channels));
        SID_TRY(sid_linear_map(exec, &z, &scaled, vae->post_quant, NULL));
    }
    SID_TRY(begin(exec, &w, &z));
    SID_TRY(middle(exec, &w));
    for (size_t level = c->levels; level-- > 0;) {
        for (size_t i = 0; i <= c->layers_per_block; i++) SID_TRY(next_resnet(exec, &w));
        if (level) SID_TRY(next_resampler(exec, &w));
    }
    SID_TRY(end(exec, &w, &image));
    SID_TRY(sid_to_planes(exec, images, &image, NULL));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

const sid_autoencoder sid_kl = {kl_open, kl_close, kl_encode, kl_decode, kl_log_variance};
