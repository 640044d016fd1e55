#include "model/model.h"

#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "core/lock.h"
#include "model/clip.h"
#include "model/unet.h"
#include "model/vae.h"

/* A context and what all cross-attentions make of it: constant over a run, so computed once. */
typedef struct {
    size_t n, tokens, users;
    float *context;   /* (n, tokens, context_size) */
    char *block;      /* the keys' memory */
    sid_tensor *keys; /* by transformer */
} prepared_context;

#define VAE_SIZE 64 /* latent pixels a side that a VAE without a UNet is packed for */
#define CONTEXTS 2 /* are kept: of a prompt and of what guidance leads away from */

struct sid_model {
    sid_config config;
    sid_backend *backend;
    sid_unet *unet;
    sid_vae *vae;
    sid_clip *clip;
    sid_tiling tiling;
    /* What follows is guarded by SID_LOCK_STATE. */
    sid_arena idle;                /* the last run's buffer, for the next */
    prepared_context *contexts[CONTEXTS]; /* the last ones used, the latest first */
    float *times[SID_TRAIN_STEPS]; /* what the ResNets add at a timestep; NULL until asked for */
};

const sid_config *sid_model_config(const sid_model *model) { return &model->config; }
sid_dtype sid_model_dtype(const sid_model *model) { return model->backend->dtype; }
int sid_model_threads(const sid_model *model) { return model->backend->threads; }
size_t sid_model_memory(const sid_model *model) { return model->backend->packed_bytes; }

size_t sid_model_idle(sid_model *model) {
    sid_lock(SID_LOCK_STATE);
    size_t bytes = model->idle.size;
    sid_unlock(SID_LOCK_STATE);
    return bytes;
}

/* A function of a run: called twice with the same arguments, first to measure, then to compute. */
typedef int (*run_function)(sid_exec *exec, const sid_model *model, const void *arguments);

static int measure(sid_model *model, run_function function, const void *arguments, size_t *bytes) {
    sid_exec exec = {.backend = model->backend};
    SID_TRY(function(&exec, model, arguments));
    *bytes = exec.arena.peak;
    return SID_OK;
}

/* The idle buffer if it is large enough, else a new one in its place: both at once would be more than was predicted. */
static int take_arena(sid_model *model, sid_arena *arena, size_t bytes) {
    sid_lock(SID_LOCK_STATE);
    *arena = (sid_arena){.base = model->idle.base, .size = model->idle.size};
    model->idle = (sid_arena){0};
    sid_unlock(SID_LOCK_STATE);
    if (arena->base && arena->size >= bytes) return SID_OK;
    sid_arena_close(arena);
    arena->peak = bytes;
    return sid_arena_open(arena);
}

/* Keeps the larger of the returned and the idle buffer. */
static void return_arena(sid_model *model, sid_arena *arena) {
    sid_lock(SID_LOCK_STATE);
    if (arena->size > model->idle.size) {
        sid_arena swap = model->idle;
        model->idle = *arena;
        *arena = swap;
    }
    sid_unlock(SID_LOCK_STATE);
    sid_arena_close(arena);
}

static int run(sid_model *model, run_function function, const void *arguments) {
    sid_exec exec = {.backend = model->backend};
    size_t bytes;
    SID_TRY(measure(model, function, arguments, &bytes));
    SID_TRY(take_arena(model, &exec.arena, bytes));
    int status = function(&exec, model, arguments);
    return_arena(model, &exec.arena);
    return status;
}

/* --- time ------------------------------------------------------------------------------------------------------ */

typedef struct {
    float *time;
    int timestep;
} time_arguments;

static int run_time(sid_exec *exec, const sid_model *model, const void *arguments) {
    const time_arguments *a = arguments;
    return sid_unet_time(exec, model->unet, a->time, a->timestep);
}

/* *time: the model's own row for the timestep, computed at its first use. */
static int time_of(sid_model *model, const float **time, int timestep) {
    sid_lock(SID_LOCK_STATE);
    *time = model->times[timestep];
    sid_unlock(SID_LOCK_STATE);
    if (*time) return SID_OK;

    float *row = malloc(sid_unet_time_size(model->unet) * sizeof *row);
    if (!row) return sid_fail(SID_EMEMORY, "out of memory");
    int status = run(model, run_time, &(time_arguments){row, timestep});
    if (status == SID_OK) {
        sid_lock(SID_LOCK_STATE);
        if (!model->times[timestep]) {
            model->times[timestep] = row;
            row = NULL;
        }
        *time = model->times[timestep];
        sid_unlock(SID_LOCK_STATE);
    }
    free(row);
    return status;
}

/* --- context --------------------------------------------------------------------------------------------------- */

typedef struct {
    prepared_context *prepared;
} context_arguments;

static int run_context(sid_exec *exec, const sid_model *model, const void *arguments) {
    prepared_context *p = ((const context_arguments *)arguments)->prepared;
    size_t size = model->config.unet.context_size, mark = sid_arena_mark(&exec->arena);
    sid_tensor given = sid_dense(p->context, SID_F32, p->n, 1, p->tokens, size), context;
    SID_TRY(sid_new_like(exec, &context, &given, size));
    SID_TRY(sid_combine(exec, &context, 1, &given, 0, NULL));
    SID_TRY(sid_unet_context(exec, model->unet, p->keys, &context));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

static void context_free(prepared_context *p) {
    if (!p) return;
    free(p->context);
    free(p->block);
    free(p->keys);
    free(p);
}

static int context_allocate(const sid_model *model, prepared_context **prepared, const float *context, size_t n,
                            size_t tokens) {
    size_t count = sid_unet_transformers(model->unet), channels = 0;
    size_t item = sid_dtype_size(model->backend->dtype), size = n * tokens * model->config.unet.context_size;
    prepared_context *p = *prepared = calloc(1, sizeof *p);
    if (!p) return sid_fail(SID_EMEMORY, "out of memory");
    for (size_t i = 0; i < count; i++) channels += 2 * sid_unet_transformer_channels(model->unet, i);
    p->n = n;
    p->tokens = tokens;
    p->context = malloc(size * sizeof *p->context);
    p->block = malloc(n * tokens * channels * item);
    p->keys = calloc(count, sizeof *p->keys);
    if (!p->context || !p->block || !p->keys) return sid_fail(SID_EMEMORY, "out of memory for a context");
    memcpy(p->context, context, size * sizeof *p->context);
    char *next = p->block;
    for (size_t i = 0; i < count; i++) {
        size_t width = 2 * sid_unet_transformer_channels(model->unet, i);
        p->keys[i] = sid_dense(next, model->backend->dtype, n, 1, tokens, width);
        next += n * tokens * width * item;
    }
    return SID_OK;
}

static int context_matches(const sid_model *model, const prepared_context *p, const float *context, size_t n,
                           size_t tokens) {
    size_t size = n * tokens * model->config.unet.context_size * sizeof *context;
    return p && p->n == n && p->tokens == tokens && memcmp(p->context, context, size) == 0;
}

/* The three below: call with the lock held. One user less; freed with the last, when the model no longer holds it. */
static void context_drop(const sid_model *model, prepared_context *p) {
    if (--p->users) return;
    for (size_t i = 0; i < CONTEXTS; i++)
        if (model->contexts[i] == p) return;
    context_free(p);
}

/* One user more of the model's own that matches; NULL where none does. */
static prepared_context *context_find(const sid_model *model, const float *context, size_t n, size_t tokens) {
    for (size_t i = 0; i < CONTEXTS; i++) {
        if (!context_matches(model, model->contexts[i], context, n, tokens)) continue;
        model->contexts[i]->users++;
        return model->contexts[i];
    }
    return NULL;
}

/* p becomes the latest, in the place of itself or of the oldest. */
static void context_keep(sid_model *model, prepared_context *p) {
    size_t place = 0;
    while (place + 1 < CONTEXTS && model->contexts[place] != p) place++;
    prepared_context *before = model->contexts[place];
    memmove(model->contexts + 1, model->contexts, place * sizeof *model->contexts);
    model->contexts[0] = p;
    if (before && before != p && before->users == 0) context_free(before);
}

/* *prepared: the model's own where it has the same, else a new one. */
static int context_of(sid_model *model, prepared_context **prepared, const float *context, size_t n, size_t tokens) {
    sid_lock(SID_LOCK_STATE);
    *prepared = context_find(model, context, n, tokens);
    if (*prepared) context_keep(model, *prepared);
    sid_unlock(SID_LOCK_STATE);
    if (*prepared) return SID_OK;

    int status = context_allocate(model, prepared, context, n, tokens);
    if (status == SID_OK) status = run(model, run_context, &(context_arguments){*prepared});
    if (status != SID_OK) {
        context_free(*prepared);
        return status;
    }
    sid_lock(SID_LOCK_STATE);
    (*prepared)->users = 1;
    context_keep(model, *prepared);
    sid_unlock(SID_LOCK_STATE);
    return SID_OK;
}

/* --- the public runs ------------------------------------------------------------------------------------------- */

typedef struct {
    float *noise; /* NULL while measuring */
    int features_only;
    const float *latents, *time;
    size_t n, h, w;
    const sid_tensor *keys;
    const sid_tap *tap;
} predict_arguments;

static int run_predict(sid_exec *exec, const sid_model *model, const void *arguments) {
    const predict_arguments *a = arguments;
    size_t mark = sid_arena_mark(&exec->arena), c = model->config.unet.in_channels;
    sid_tensor z, noise;
    SID_TRY(sid_new(exec, &z, a->n, a->h, a->w, c));
    SID_TRY(sid_arena_tensor(&exec->arena, &noise, SID_F32, a->n, a->h, a->w, c));
    SID_TRY(sid_from_planes(exec, &z, a->latents, 1));
    SID_TRY(sid_unet_run(exec, model->unet, a->features_only ? NULL : &noise, &z, a->time, a->keys, a->tap));
    if (!a->features_only) SID_TRY(sid_to_planes(exec, a->noise, &noise, 1));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

int sid_model_predict(sid_model *model, float *noise, const float *latents, size_t n, size_t h, size_t w, int timestep,
                      const float *context, size_t context_n, size_t context_tokens, const sid_tap *tap) {
    predict_arguments a = {
        .noise = noise, .features_only = !noise, .latents = latents, .n = n, .h = h, .w = w, .tap = tap};
    prepared_context *prepared;
    SID_TRY(time_of(model, &a.time, timestep));
    SID_TRY(context_of(model, &prepared, context, context_n, context_tokens));
    a.keys = prepared->keys;
    int status = run(model, run_predict, &a);
    sid_lock(SID_LOCK_STATE);
    context_drop(model, prepared);
    sid_unlock(SID_LOCK_STATE);
    return status;
}

typedef struct {
    float *dst;
    const float *src;
    size_t n, h, w;
} vae_arguments;

static int is_tiled(const sid_model *model, size_t height, size_t width) {
    return model->tiling == SID_TILING_ON || (model->tiling == SID_TILING_AUTO && height * width > SID_TILING_PIXELS);
}

static int run_encode(sid_exec *exec, const sid_model *model, const void *arguments) {
    const vae_arguments *a = arguments;
    return sid_vae_encode(exec, model->vae, a->dst, a->src, a->n, a->h, a->w, is_tiled(model, a->h, a->w));
}

static int run_log_variance(sid_exec *exec, const sid_model *model, const void *arguments) {
    const vae_arguments *a = arguments;
    return sid_vae_log_variance(exec, model->vae, a->dst, a->src, a->n, a->h, a->w, is_tiled(model, a->h, a->w));
}

static int run_decode(sid_exec *exec, const sid_model *model, const void *arguments) {
    const vae_arguments *a = arguments;
    size_t factor = sid_vae_factor(&model->config.vae);
    return sid_vae_decode(exec, model->vae, a->dst, a->src, a->n, a->h, a->w,
                          is_tiled(model, a->h * factor, a->w * factor));
}

int sid_model_encode(sid_model *model, float *latents, const float *images, size_t n, size_t height, size_t width) {
    return run(model, run_encode, &(vae_arguments){latents, images, n, height, width});
}

int sid_model_log_variance(sid_model *model, float *planes, const float *images, size_t n, size_t height,
                           size_t width) {
    return run(model, run_log_variance, &(vae_arguments){planes, images, n, height, width});
}

int sid_model_decode(sid_model *model, float *images, const float *latents, size_t n, size_t h, size_t w) {
    return run(model, run_decode, &(vae_arguments){images, latents, n, h, w});
}

typedef struct {
    float *context;
    const int *tokens;
    size_t n, length;
} text_arguments;

static int run_text(sid_exec *exec, const sid_model *model, const void *arguments) {
    const text_arguments *a = arguments;
    sid_tensor context = sid_dense(a->context, SID_F32, a->n, 1, a->length, model->config.text.channels);
    return sid_clip_run(exec, model->clip, &context, a->tokens);
}

int sid_model_encode_tokens(sid_model *model, float *context, const int *tokens, size_t n, size_t length) {
    if (!model->clip) return sid_fail(SID_EVALUE, "this model has no text encoder");
    return run(model, run_text, &(text_arguments){context, tokens, n, length});
}

/* --- measuring, opening, closing ------------------------------------------------------------------------------- */

int sid_model_predict_scratch(sid_model *model, size_t *bytes, size_t n, size_t h, size_t w, size_t context_tokens) {
    const float unused = 0; /* a time there must be; its numbers are not read */
    size_t count = sid_unet_transformers(model->unet);
    sid_tensor *keys = calloc(count, sizeof *keys);
    if (!keys) return sid_fail(SID_EMEMORY, "out of memory");
    for (size_t i = 0; i < count; i++)
        keys[i] = sid_dense(NULL, model->backend->dtype, 1, 1, context_tokens,
                            2 * sid_unet_transformer_channels(model->unet, i));
    int status = measure(model, run_predict, &(predict_arguments){.time = &unused, .n = n, .h = h, .w = w, .keys = keys},
                         bytes);
    free(keys);
    return status;
}

int sid_model_vae_scratch(sid_model *model, size_t *bytes, size_t height, size_t width) {
    size_t factor = sid_vae_factor(&model->config.vae), encode, decode;
    SID_TRY(measure(model, run_encode, &(vae_arguments){.n = 1, .h = height, .w = width}, &encode));
    SID_TRY(measure(model, run_decode, &(vae_arguments){.n = 1, .h = height / factor, .w = width / factor}, &decode));
    *bytes = encode > decode ? encode : decode;
    return SID_OK;
}

static int open_parts(sid_model *m, sid_weights *weights) {
    sid_builder builder = {m->backend, weights};
    SID_TRY(sid_weights_sort(weights));
    if (m->config.unet.levels) SID_TRY(sid_unet_open(&builder, &m->unet, &m->config.unet));
    SID_TRY(sid_vae_open(&builder, &m->vae, &m->config.vae));
    if (m->config.text.layers) SID_TRY(sid_clip_open(&builder, &m->clip, &m->config.text));
    return sid_weights_all_taken(weights);
}

static int pack_unet(sid_model *m, size_t size) {
    const sid_config *c = &m->config;
    size_t bytes, tokens = c->text.layers ? c->text.positions : 1;
    float unused;
    prepared_context *context;
    SID_TRY(measure(m, run_time, &(time_arguments){&unused, 0}, &bytes));
    float *zeros = calloc(tokens * c->unet.context_size, sizeof *zeros);
    if (!zeros) return sid_fail(SID_EMEMORY, "out of memory");
    int status = context_allocate(m, &context, zeros, 1, tokens);
    free(zeros);
    if (status == SID_OK) status = measure(m, run_context, &(context_arguments){context}, &bytes);
    context_free(context);
    SID_TRY(status);
    return sid_model_predict_scratch(m, &bytes, 1, size, size, tokens);
}

/* One measuring pass through every part at the native size packs all weights. */
static int pack_parts(sid_model *m) {
    const sid_config *c = &m->config;
    size_t bytes, multiple = sid_latent_multiple(&c->unet), native = m->unet ? c->unet.sample_size : VAE_SIZE;
    size_t size = (native + multiple - 1) / multiple * multiple;
    if (m->unet) SID_TRY(pack_unet(m, size));
    size_t side = size * sid_vae_factor(&c->vae);
    SID_TRY(sid_model_vae_scratch(m, &bytes, side, side));
    if (sid_vae_has_posterior(m->vae))
        SID_TRY(measure(m, run_log_variance, &(vae_arguments){.n = 1, .h = side, .w = side}, &bytes));
    if (!m->clip) return SID_OK;
    return measure(m, run_text, &(text_arguments){.n = 1, .length = c->text.positions}, &bytes);
}

int sid_model_open(sid_model **model, const sid_config *config, sid_weights *weights, sid_dtype dtype, int threads,
                   sid_tiling tiling) {
    SID_TRY(sid_config_check(config));
    sid_model *m = *model = calloc(1, sizeof *m);
    if (!m) return sid_fail(SID_EMEMORY, "out of memory");
    m->config = *config;
    m->tiling = tiling;
    int status = sid_locks_open();
    if (status == SID_OK) status = sid_cpu_open(&m->backend, dtype, threads);
    if (status == SID_OK) status = open_parts(m, weights);
    if (status == SID_OK) status = pack_parts(m);
    if (status != SID_OK) sid_model_close(model);
    return status;
}

void sid_model_close(sid_model **model) {
    sid_model *m = *model;
    if (!m) return;
    sid_unet_close(m->backend, &m->unet);
    sid_vae_close(m->backend, &m->vae);
    sid_clip_close(m->backend, &m->clip);
    for (size_t t = 0; t < SID_TRAIN_STEPS; t++) free(m->times[t]);
    for (size_t i = 0; i < CONTEXTS; i++) context_free(m->contexts[i]);
    sid_arena_close(&m->idle);
    if (m->backend) m->backend->close(&m->backend);
    free(m);
    *model = NULL;
}
