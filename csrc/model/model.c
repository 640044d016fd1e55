#include "model/model.h"

#include <stdlib.h>

#include "core/err.h"
#include "core/finite.h"
#include "core/loan.h"
#include "core/lock.h"
#include "model/cache.h"
#include "model/clip.h"
#include "model/key.h"
#include "model/vae.h"

#define VAE_SIZE 64 /* latent pixels a side that a VAE without a UNet is packed for */

struct sid_model {
    sid_config config;
    sid_backend *backend;
    sid_unet *unet; /* NULL: none */
    sid_vae vae;
    sid_clip *clip; /* NULL: none */
    sid_tiling tiling;
    sid_runner runner;
    sid_cache *cache; /* NULL without a UNet */
};

const sid_config *sid_model_config(const sid_model *model) { return &model->config; }
sid_backend *sid_model_backend(const sid_model *model) { return model->backend; }
size_t sid_model_idle(sid_model *model) { return sid_runner_idle(&model->runner); }

/* ---- UNet ---- */

typedef struct {
    const sid_unet *unet;
    sid_planes *noise; /* NULL: only features are wanted */
    const sid_planes *latents;
    const float *time;
    const sid_tensor *keys;
    const sid_tap *tap;
} predict_arguments;

static int run_predict(sid_exec *exec, const void *arguments) {
    const predict_arguments *a = arguments;
    const sid_planes *l = a->latents;
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor z, noise;
    SID_TRY(sid_new(exec, &z, l->n, l->h, l->w, l->c));
    SID_TRY(sid_arena_tensor(&exec->arena, &noise, SID_F32, l->n, l->h, l->w, l->c));
    SID_TRY(sid_from_planes(exec, &z, l, NULL));
    SID_TRY(sid_unet_run(exec, a->unet, a->noise ? &noise : NULL, &z, a->time, a->keys, a->tap));
    if (a->noise) SID_TRY(sid_to_planes(exec, a->noise, &noise, NULL));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

int sid_model_predict(sid_model *model, sid_planes *noise, const sid_planes *latents, int timestep,
                      const sid_context *context, const sid_tap *tap) {
    predict_arguments a = {.unet = model->unet, .noise = noise, .latents = latents, .tap = tap};
    sid_prepared *prepared;
    SID_TRY(sid_cache_time(model->cache, &a.time, timestep));
    SID_TRY(sid_cache_context(model->cache, &prepared, context));
    a.keys = sid_prepared_keys(prepared);
    const sid_evaluation evaluation = {latents, !noise, context->n, context->tokens, tap};
    int status = sid_run(&model->runner, sid_evaluation_key(&evaluation, model->backend), run_predict, &a);
    sid_cache_release(model->cache, prepared);
    return status;
}

int sid_model_predict_scratch(sid_model *model, size_t *bytes, size_t n, size_t h, size_t w, size_t context_tokens) {
    size_t count = sid_unet_transformers(model->unet), channels = model->config.unet.in_channels;
    sid_planes latents = {NULL, n, channels, h, w}, noise = latents;
    sid_tensor *keys = calloc(count, sizeof *keys);
    if (!keys) return sid_fail(SID_EMEMORY, "out of memory");
    for (size_t i = 0; i < count; i++)
        keys[i] = sid_dense(NULL, model->backend->dtype, 1, 1, context_tokens,
                            2 * sid_unet_transformer_channels(model->unet, i));
    predict_arguments a = {.unet = model->unet, .noise = &noise, .latents = &latents, .keys = keys};
    int status = sid_run_scratch(&model->runner, bytes, run_predict, &a);
    free(keys);
    return status;
}

/* ---- VAE ---- */

static int is_tiled(const sid_model *model, size_t height, size_t width) {
    return model->tiling == SID_TILING_ON || (model->tiling == SID_TILING_AUTO && height * width > SID_TILING_PIXELS);
}

int sid_model_encode(sid_model *model, sid_planes *latents, const sid_planes *images) {
    SID_TRY(sid_vae_encode(&model->runner, &model->vae, latents, images, is_tiled(model, images->h, images->w)));
    return sid_check_planes(&(sid_exec){.backend = model->backend}, latents, "encoding: the latents");
}

int sid_model_log_variance(sid_model *model, sid_planes *planes, const sid_planes *images) {
    SID_TRY(sid_vae_log_variance(&model->runner, &model->vae, planes, images, is_tiled(model, images->h, images->w)));
    return sid_check_planes(&(sid_exec){.backend = model->backend}, planes, "encoding: the variances");
}

int sid_model_decode(sid_model *model, sid_planes *images, const sid_planes *latents) {
    SID_TRY(sid_vae_decode(&model->runner, &model->vae, images, latents, is_tiled(model, images->h, images->w)));
    return sid_check_planes(&(sid_exec){.backend = model->backend}, images, "decoding: the image's values");
}

int sid_model_vae_scratch(sid_model *model, size_t *bytes, size_t height, size_t width) {
    return sid_vae_scratch(&model->runner, &model->vae, bytes, height, width, is_tiled(model, height, width));
}

/* ---- text encoder ---- */

typedef struct {
    const sid_clip *clip;
    sid_tensor context;
    sid_planes embedded;
} text_arguments;

static int run_text(sid_exec *exec, const void *arguments) {
    const text_arguments *a = arguments;
    sid_tensor context = a->context;
    return sid_clip_run(exec, a->clip, &context, &a->embedded);
}

static int encode_embedded(sid_model *model, float *context, const float *embedded, size_t n, size_t length) {
    const size_t channels = model->config.text.channels, size = n * length * channels * sizeof(float);
    sid_exec outside = {.backend = model->backend};
    sid_loan in, out = {0};
    int status = sid_loan_open(&in, &outside, embedded, size, 1);
    if (status == SID_OK) status = sid_loan_open(&out, &outside, context, size, 0);
    text_arguments a = {
        model->clip, sid_dense(out.block, SID_F32, n, 1, length, channels), {in.block, n * length, channels, 1, 1}};
    if (status == SID_OK) status = sid_run(&model->runner, 0, run_text, &a);
    int closed = sid_loan_close(&out, &outside, status == SID_OK);
    sid_loan_close(&in, &outside, 0);
    return status == SID_OK ? closed : status;
}

int sid_model_encode_tokens(sid_model *model, float *context, const int *tokens, size_t n, size_t length) {
    if (!model->clip) return sid_fail(SID_EVALUE, "this model has no text encoder");
    float *embedded = malloc(n * length * model->config.text.channels * sizeof *embedded);
    if (!embedded) return sid_fail(SID_EMEMORY, "out of memory");
    sid_clip_embed(model->clip, embedded, tokens, n, length);
    int status = encode_embedded(model, context, embedded, n, length);
    free(embedded);
    if (status != SID_OK) return status;
    return sid_check_numbers(context, n * length * model->config.text.channels, model->backend->dtype,
                             "encoding of the prompt: the context's numbers");
}

/* ---- opening, closing ---- */

static int open_unet(sid_model *m, sid_weights *weights, size_t size) {
    const sid_config *c = &m->config;
    sid_builder builder = {m->backend, weights, size, size};
    SID_TRY(sid_unet_open(&builder, &m->unet, &c->unet, c->text.layers ? c->text.positions : 1));
    return sid_cache_open(&m->cache, &m->runner, m->unet);
}

/* Every part is packed for the size that it has at the model's native size. */
static int open_parts(sid_model *m, sid_weights *weights) {
    const sid_config *c = &m->config;
    size_t multiple = sid_latent_multiple(&c->unet), native = c->unet.levels ? c->unet.sample_size : VAE_SIZE;
    size_t size = (native + multiple - 1) / multiple * multiple, side = size * sid_vae_factor(&c->vae);
    SID_TRY(sid_weights_sort(weights));
    if (c->unet.levels) SID_TRY(open_unet(m, weights, size));
    SID_TRY(sid_vae_open(&(sid_builder){m->backend, weights, side, side}, &m->vae, &c->vae));
    if (c->text.layers)
        SID_TRY(sid_clip_open(&(sid_builder){m->backend, weights, 1, c->text.positions}, &m->clip, &c->text));
    return sid_weights_all_taken(weights);
}

int sid_model_open(sid_model **model, const sid_config *config, sid_weights *weights, sid_backend *backend,
                   sid_tiling tiling) {
    sid_model *m = *model = calloc(1, sizeof *m);
    if (!m) {
        backend->close(&backend);
        return sid_fail(SID_EMEMORY, "out of memory");
    }
    m->backend = backend;
    m->tiling = tiling;
    m->runner.backend = backend;
    int status = sid_locks_open();
    if (status == SID_OK) status = sid_config_check(config);
    if (status == SID_OK) {
        m->config = *config;
        status = open_parts(m, weights);
    }
    if (status != SID_OK) sid_model_close(model);
    return status;
}

void sid_model_close(sid_model **model) {
    sid_model *m = *model;
    if (!m) return;
    sid_cache_close(&m->cache);
    sid_unet_close(m->backend, &m->unet);
    sid_vae_close(m->backend, &m->vae);
    sid_clip_close(m->backend, &m->clip);
    sid_runner_close(&m->runner);
    m->backend->close(&m->backend);
    free(m);
    *model = NULL;
}
