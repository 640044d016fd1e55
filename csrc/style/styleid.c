#include "style/styleid.h"

#include <stdlib.h>
#include <string.h>

#include "core/err.h"

static int report(const sid_progress *progress, size_t step, size_t steps, float *z) {
    if (!progress || !progress->call) return SID_OK;
    return progress->call(progress->self, step, steps, z) ? sid_fail(SID_ECANCELLED, "cancelled at step %zu", step)
                                                          : SID_OK;
}

/* A run's latents. noise: count numbers for a prediction, and as many again where there is guidance. */
typedef struct {
    sid_model *model;
    const sid_prompt *prompt;
    float *z, *noise;
    size_t n, h, w, count;
    float *predicted; /* NULL, or where x0 by the next evaluation goes */
} state;

static int state_open(state *s, sid_model *model, const sid_prompt *prompt, float *z, size_t n, size_t h, size_t w) {
    size_t count = n * sid_model_config(model)->unet.in_channels * h * w;
    float *noise = malloc((prompt->negative ? 2 : 1) * count * sizeof *noise);
    *s = (state){model, prompt, z, noise, n, h, w, count, NULL};
    return noise ? SID_OK : sid_fail(SID_EMEMORY, "out of memory");
}

static int predict(const state *s, float *noise, const float *context, size_t tokens, int timestep,
                   const sid_tap *tap) {
    return sid_model_predict(s->model, noise, s->z, s->n, s->h, s->w, timestep, context, 1, tokens, tap);
}

/* noise = e_negative + guidance (noise - e_negative). It is the same of v, which at a given z is linear in e. Two runs
 * rather than a batch: no slower, in half the memory. */
static int guide(const state *s, int timestep, const sid_tap *tap) {
    float *negative = s->noise + s->count;
    sid_tap unsaved = tap ? *tap : (sid_tap){0};
    unsaved.saved = NULL;
    unsaved.logits = NULL;
    SID_TRY(predict(s, negative, s->prompt->negative, s->prompt->negative_tokens, timestep, tap ? &unsaved : NULL));
    for (size_t i = 0; i < s->count; i++) s->noise[i] = negative[i] + s->prompt->guidance * (s->noise[i] - negative[i]);
    return SID_OK;
}

static int evaluate(const state *s, int timestep, const sid_tap *tap) {
    SID_TRY(predict(s, s->noise, s->prompt->context, s->prompt->tokens, timestep, tap));
    return s->prompt->negative ? guide(s, timestep, tap) : SID_OK;
}

/* One evaluation and its DDIM move. */
static int move_latents(const state *s, const sid_tap *tap, const sid_move *move) {
    const sid_config *config = sid_model_config(s->model);
    SID_TRY(evaluate(s, move->timestep, tap));
    if (s->predicted) { /* the same move, to where there is no noise */
        sid_move clean = {.from = move->from, .to = 1};
        memcpy(s->predicted, s->z, s->count * sizeof *s->z);
        sid_ddim_move(s->predicted, s->noise, s->count, config->unet.prediction, &clean);
    }
    sid_ddim_move(s->z, s->noise, s->count, config->unet.prediction, move);
    return SID_OK;
}

/* Moves from `start` again, with the noise that the model sees where the last such move ended: one step of the
 * fixed-point iteration z = move(start, e(z)), whose solution the sampling's move leads back to start. */
static int move_again(const state *s, const float *start, const sid_tap *tap, const sid_move *move) {
    const sid_config *config = sid_model_config(s->model);
    sid_tap unsaved = *tap;
    if (move->target != move->timestep) unsaved.saved = NULL, unsaved.step++;
    SID_TRY(evaluate(s, move->target, &unsaved));
    sid_to_noise(s->noise, s->z, s->count, config->unet.prediction, move->to);
    memcpy(s->z, start, s->count * sizeof *start);
    sid_ddim_move(s->z, s->noise, s->count, SID_EPSILON, move);
    return SID_OK;
}

int sid_invert(sid_model *model, const sid_schedule *schedule, float *z, size_t n, size_t h, size_t w,
               const sid_prompt *prompt, sid_bank *const *banks, const sid_trajectory *trajectory, size_t refine,
               const sid_attention_hook *hook, const sid_progress *progress) {
    state s;
    int status = state_open(&s, model, prompt, z, n, h, w);
    float *start = refine ? malloc(s.count * sizeof *start) : NULL;
    if (refine && !start && status == SID_OK) status = sid_fail(SID_EMEMORY, "out of memory");
    for (size_t i = 0; i < schedule->steps && status == SID_OK; i++) {
        const sid_move *move = &schedule->inversion[i];
        sid_tap tap = {.step = move->slot, .hook = hook, .saved = banks};
        status = report(progress, i, schedule->steps, z);
        if (status != SID_OK) break;
        if (trajectory->latents) memcpy(trajectory->latents + i * s.count, z, s.count * sizeof *z);
        if (trajectory->predicted) s.predicted = trajectory->predicted + i * s.count;
        if (start) memcpy(start, z, s.count * sizeof *z);
        status = move_latents(&s, &tap, move);
        for (size_t k = 0; k < refine && status == SID_OK; k++) status = move_again(&s, start, &tap, move);
    }
    if (status == SID_OK) status = report(progress, schedule->steps, schedule->steps, z);
    if (status == SID_OK && trajectory->latents)
        memcpy(trajectory->latents + schedule->steps * s.count, z, s.count * sizeof *z);
    free(start);
    free(s.noise);
    return status;
}

int sid_features(sid_model *model, int timestep, const float *latents, size_t n, size_t h, size_t w,
                 const float *context, size_t context_tokens, sid_bank *const *banks) {
    sid_tap tap = {.saved = banks};
    return sid_model_predict(model, NULL, latents, n, h, w, timestep, context, 1, context_tokens, &tap);
}

/* Fills the banks of one step with the features of inversion step `slot`. */
static int replay(sid_model *model, const sid_injection *injection, int timestep, size_t slot) {
    size_t channels = sid_model_config(model)->unet.in_channels;
    for (size_t i = 0; i < injection->replay_count; i++) {
        const sid_replay *r = &injection->replays[i];
        const float *latents = r->latents + slot * r->n * channels * r->h * r->w;
        SID_TRY(sid_features(model, timestep, latents, r->n, r->h, r->w, r->context, r->context_tokens, r->banks));
    }
    return SID_OK;
}

int sid_denoise(sid_model *model, const sid_schedule *schedule, float *z, size_t h, size_t w, const sid_prompt *prompt,
                size_t skip, const sid_injection *injection, const sid_attention_hook *hook, sid_logits *logits,
                const sid_progress *progress) {
    size_t layers = sid_layer_count(&sid_model_config(model)->unet);
    state s;
    int status = state_open(&s, model, prompt, z, 1, h, w);
    const size_t steps = schedule->sampling_steps - skip;
    for (size_t i = 0; i < steps && status == SID_OK; i++) {
        const sid_move *move = &schedule->sampling[skip + i];
        sid_tap tap = {.step = move->slot, .hook = hook, .logits = logits ? logits + move->slot * layers : NULL};
        if (injection) {
            tap.content = injection->content;
            tap.styles = injection->styles;
            tap.weights = injection->weights;
            tap.style_count = injection->style_count;
            tap.gamma = injection->gamma + move->slot * layers;
            tap.temperature = injection->temperature + move->slot * layers;
            tap.regions = injection->regions;
            tap.where = injection->where ? injection->where + move->slot * layers : NULL;
        }
        status = report(progress, i, steps, z);
        if (status == SID_OK && injection) status = replay(model, injection, move->timestep, move->slot);
        if (status == SID_OK) status = move_latents(&s, injection || hook || logits ? &tap : NULL, move);
    }
    if (status == SID_OK) status = report(progress, steps, steps, z);
    free(s.noise);
    return status;
}
