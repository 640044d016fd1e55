/* AutoencoderTiny: the distilled VAE of Ollin Boer Bohan (TAESD). Convolutions of one width with ReLUs between them, no
 * norms, no attention. Its images are in [0, 1], its latents already scaled as the UNet has them. */
#include <stdlib.h>

#include "core/err.h"
#include "model/autoencoder.h"

#define MAX_BLOCKS (SID_MAX_LEVELS * SID_MAX_TINY_BLOCKS)
#define LATENT_BOUND 3.0f /* the decoder's latents are bounded by a tanh of this height */

/* x = relu(conv(relu(conv(relu(conv(x))))) + x) */
typedef struct {
    sid_conv *convs[3];
} block;

/* The encoder halves before a level, the decoder doubles after one. The parts are named by their places in a list in
 * which ReLUs and doublings count too. */
typedef struct {
    sid_conv *first, *last, *resamplers[SID_MAX_LEVELS];
    block blocks[MAX_BLOCKS];
    size_t block_count, width;
} half;

typedef struct {
    sid_vae_config config;
    half encoder, decoder;
} taesd;

static int open_conv(sid_builder *builder, sid_conv **conv, const char *half_name, size_t place, sid_conv_shape shape) {
    char name[SID_NAME_SIZE];
    SID_TRY(sid_name(name, "vae.%s.layers.%zu", half_name, place));
    return sid_conv_open(builder, conv, name, shape);
}

static int open_blocks(sid_builder *builder, half *part, const char *half_name, size_t *place, size_t count) {
    char name[SID_NAME_SIZE];
    for (size_t i = 0; i < count; i++, ++*place) {
        block *b = &part->blocks[part->block_count++];
        for (size_t j = 0; j < 3; j++) {
            SID_TRY(sid_name(name, "vae.%s.layers.%zu.conv.%zu", half_name, *place, 2 * j));
            SID_TRY(sid_conv_open(builder, &b->convs[j], name, sid_conv3x3(part->width, part->width)));
        }
    }
    return SID_OK;
}

static sid_conv_shape without_bias(sid_conv_shape shape) {
    shape.no_bias = 1;
    return shape;
}

static int open_encoder(sid_builder *builder, taesd *t) {
    const sid_vae_config *c = &t->config;
    half *part = &t->encoder;
    size_t width = part->width = c->channels[0], place = 0;
    for (size_t level = 0; level < c->levels; level++) {
        sid_conv **conv = level ? &part->resamplers[level] : &part->first;
        sid_conv_shape shape = level ? without_bias(sid_conv_halving(width, 1)) : sid_conv3x3(c->image_channels, width);
        SID_TRY(open_conv(builder, conv, "encoder", place++, shape));
        SID_TRY(open_blocks(builder, part, "encoder", &place, c->encoder_blocks[level]));
    }
    return open_conv(builder, &part->last, "encoder", place, sid_conv3x3(width, c->latent_channels));
}

static int open_decoder(sid_builder *builder, taesd *t) {
    const sid_vae_config *c = &t->config;
    half *part = &t->decoder;
    size_t width = part->width = c->channels[0], place = 0;
    sid_conv_shape twice = without_bias(sid_conv_doubling(width));
    SID_TRY(open_conv(builder, &part->first, "decoder", place, sid_conv3x3(c->latent_channels, width)));
    place += 2; /* a ReLU */
    for (size_t level = 0; level < c->levels; level++) {
        SID_TRY(open_blocks(builder, part, "decoder", &place, c->decoder_blocks[level]));
        if (level + 1 == c->levels) break;
        place++; /* the doubling */
        SID_TRY(open_conv(builder, &part->resamplers[level], "decoder", place++, twice));
    }
    return open_conv(builder, &part->last, "decoder", place, sid_conv3x3(width, c->image_channels));
}

static int taesd_open(sid_builder *builder, void **network, const sid_vae_config *config) {
    taesd *t = *network = calloc(1, sizeof *t);
    if (!t) return sid_fail(SID_EMEMORY, "out of memory");
    t->config = *config;
    SID_TRY(open_encoder(builder, t));
    return open_decoder(builder, t);
}

static void close_half(sid_backend *backend, half *part) {
    sid_conv_close(backend, &part->first);
    sid_conv_close(backend, &part->last);
    for (size_t i = 0; i < SID_MAX_LEVELS; i++) sid_conv_close(backend, &part->resamplers[i]);
    for (size_t i = 0; i < part->block_count; i++)
        for (size_t j = 0; j < 3; j++) sid_conv_close(backend, &part->blocks[i].convs[j]);
}

static void taesd_close(sid_backend *backend, void *network) {
    taesd *t = network;
    close_half(backend, &t->encoder);
    close_half(backend, &t->decoder);
    free(t);
}

/* Runs `count` blocks on x in place. */
static int run_blocks(sid_exec *exec, const block *blocks, size_t count, sid_tensor *x) {
    const sid_post relu = {.relu = 1}, fuse = {.residual = x, .relu = 1};
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor a, b;
    SID_TRY(sid_new_like(exec, &a, x, x->c));
    SID_TRY(sid_new_like(exec, &b, x, x->c));
    for (size_t i = 0; i < count; i++) {
        SID_TRY(sid_conv2d(exec, &a, x, blocks[i].convs[0], &relu));
        SID_TRY(sid_conv2d(exec, &b, &a, blocks[i].convs[1], &relu));
        SID_TRY(sid_conv2d(exec, x, &b, blocks[i].convs[2], &fuse));
    }
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

static int taesd_encode(sid_exec *exec, const void *network, sid_planes *latents, const sid_planes *images) {
    const taesd *t = network;
    const sid_vae_config *c = &t->config;
    const sid_curve to_unit = {.factor = 0.5f, .offset = 0.5f};
    size_t mark = sid_arena_mark(&exec->arena);
    const block *next = t->encoder.blocks;
    sid_tensor image, x, latent;
    SID_TRY(sid_new(exec, &image, images->n, images->h, images->w, c->image_channels));
    SID_TRY(sid_new_like(exec, &x, &image, t->encoder.width));
    SID_TRY(sid_from_planes(exec, &image, images, &to_unit));
    SID_TRY(sid_conv2d(exec, &x, &image, t->encoder.first, NULL));
    for (size_t level = 0; level < c->levels; next += c->encoder_blocks[level++]) {
        if (level) SID_TRY(sid_resample(exec, &x, t->encoder.resamplers[level]));
        SID_TRY(run_blocks(exec, next, c->encoder_blocks[level], &x));
    }
    SID_TRY(sid_arena_tensor(&exec->arena, &latent, SID_F32, x.n, x.h, x.w, c->latent_channels));
    SID_TRY(sid_conv2d(exec, &latent, &x, t->encoder.last, NULL));
    SID_TRY(sid_to_planes(exec, latents, &latent, &(sid_curve){.factor = c->scaling_factor}));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

static int taesd_decode(sid_exec *exec, const void *network, sid_planes *images, const sid_planes *latents) {
    const taesd *t = network;
    const sid_vae_config *c = &t->config;
    const sid_curve bounded = {.factor = 1 / c->scaling_factor, .bound = LATENT_BOUND};
    const sid_curve from_unit = {.factor = 2, .offset = -1};
    size_t mark = sid_arena_mark(&exec->arena);
    const block *next = t->decoder.blocks;
    sid_tensor latent, x, image;
    SID_TRY(sid_new(exec, &latent, latents->n, latents->h, latents->w, c->latent_channels));
    SID_TRY(sid_new_like(exec, &x, &latent, t->decoder.width));
    SID_TRY(sid_from_planes(exec, &latent, latents, &bounded));
    SID_TRY(sid_conv2d(exec, &x, &latent, t->decoder.first, &(sid_post){.relu = 1}));
    for (size_t level = 0; level < c->levels; next += c->decoder_blocks[level++]) {
        SID_TRY(run_blocks(exec, next, c->decoder_blocks[level], &x));
        if (level + 1 < c->levels) SID_TRY(sid_resample(exec, &x, t->decoder.resamplers[level]));
    }
    SID_TRY(sid_arena_tensor(&exec->arena, &image, SID_F32, x.n, x.h, x.w, c->image_channels));
    SID_TRY(sid_conv2d(exec, &image, &x, t->decoder.last, NULL));
    SID_TRY(sid_to_planes(exec, images, &image, &from_unit));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

const sid_autoencoder sid_taesd = {taesd_open, taesd_close, taesd_encode, taesd_decode, NULL};
