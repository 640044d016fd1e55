#include "style/styleid.h"

#include <stdio.h>

#include "core/err.h"
#include "core/finite.h"
#include "core/ops.h"
#include "style/ddim.h"
#include "style/regions.h"

#define LATENTS_AFTER "step %zu of %zu: the latents"

/* What an inversion or a sampling works on. */
typedef struct {
    sid_model *model;
    sid_exec outside; /* of any run of the model */
    const sid_prompt *prompt;
    const sid_progress *progress;
    sid_planes *z, noise, negative; /* negative: without data where there is no guidance */
    size_t count;                   /* numbers of each */
    float *predicted;               /* NULL, or where the x0 goes that the next evaluation predicts */
} state;

static sid_memory *memory_of(const state *s) { return &s->outside.backend->memory; }

static int state_open(state *s, sid_model *model, sid_planes *z, const sid_prompt *prompt,
                      const sid_progress *progress) {
    *s = (state){.model = model, .prompt = prompt, .progress = progress, .z = z, .count = sid_planes_count(z)};
    s->outside.backend = sid_model_backend(model);
    s->noise = s->negative = *z;
    s->noise.data = s->negative.data = NULL;
    SID_TRY(sid_memory_planes(memory_of(s), &s->noise, "a prediction"));
    return prompt->negative.data ? sid_memory_planes(memory_of(s), &s->negative, "a prediction") : SID_OK;
}

static void state_close(state *s) {
    sid_memory_give(memory_of(s), s->noise.data);
    sid_memory_give(memory_of(s), s->negative.data);
}

static int copy(state *s, float *to, const float *from) {
    return sid_copy(&s->outside, to, from, s->count * sizeof *to);
}

static int report(state *s, size_t step, size_t steps) {
    const sid_progress *p = s->progress;
    const size_t size = s->count * sizeof(float);
    if (!p || !p->call) return SID_OK;
    int elsewhere = p->latents && p->latents != s->z->data;
    SID_TRY(s->outside.backend->pace(s->outside.backend, 2));
    if (elsewhere) SID_TRY(sid_read(&s->outside, p->latents, s->z->data, size));
    if (elsewhere)
        SID_TRY(sid_check_numbers(p->latents, s->count, s->outside.backend->dtype, LATENTS_AFTER, step, steps));
    if (p->call(p->self, step, steps)) return sid_fail(SID_ECANCELLED, "cancelled at step %zu", step);
    if (p->latents && !sid_all_fit(p->latents, SID_F32, s->count, SID_F32))
        return sid_fail(SID_EVALUE, "on_step: at step %zu it left NaN or infinity in the latents", step);
    return elsewhere ? sid_write(&s->outside, s->z->data, p->latents, size) : SID_OK;
}

/* Checks that the latents after so many steps are finite. Where they are not in the host's memory, only the last ones
 * are checked, so that steps can be in flight: numbers that are not finite stay so. */
static int check(state *s, size_t done, size_t steps) {
    char what[64];
    if (done < steps && !memory_of(s)->is_host) return SID_OK;
    snprintf(what, sizeof what, LATENTS_AFTER, done, steps);
    return sid_check_planes(&s->outside, s->z, what);
}

/* Guidance takes two runs rather than a batch of two, because these are no slower and take half the memory. */
static int evaluate(state *s, int timestep, const sid_tap *tap) {
    const sid_prompt *prompt = s->prompt;
    SID_TRY(sid_model_predict(s->model, &s->noise, s->z, timestep, &prompt->context, tap));
    if (!prompt->negative.data) return SID_OK;
    sid_tap unsaved = tap ? *tap : (sid_tap){0};
    unsaved.saved = NULL;
    SID_TRY(sid_model_predict(s->model, &s->negative, s->z, timestep, &prompt->negative, tap ? &unsaved : NULL));
    return sid_guide(&s->outside, s->noise.data, s->negative.data, s->count, prompt->guidance);
}

static sid_prediction kind_of(const state *s) { return sid_model_config(s->model)->unet.prediction; }

/* One evaluation and its DDIM move. */
static int move_latents(state *s, const sid_tap *tap, const sid_move *step) {
    SID_TRY(evaluate(s, step->timestep, tap));
    if (s->predicted) { /* the same move, to where there is no noise */
        SID_TRY(copy(s, s->predicted, s->z->data));
        sid_move clean = {.from = step->from, .to = 1};
        SID_TRY(sid_ddim_move(&s->outside, s->predicted, s->noise.data, s->count, kind_of(s), &clean));
    }
    return sid_ddim_move(&s->outside, s->z->data, s->noise.data, s->count, kind_of(s), step);
}

/* Moves from `start` again, with the noise that the model sees where the last such move ended: one step of the
 * fixed-point iteration z = move(start, e(z)), whose solution the sampling's move leads back to start. */
static int move_again(state *s, const float *start, const sid_tap *tap, const sid_move *step) {
    sid_tap unsaved = *tap;
    if (step->target != step->timestep) unsaved.saved = NULL, unsaved.step++;
    SID_TRY(evaluate(s, step->target, &unsaved));
    SID_TRY(sid_to_noise(&s->outside, s->noise.data, s->z->data, s->count, kind_of(s), step->to));
    SID_TRY(copy(s, s->z->data, start));
    return sid_ddim_move(&s->outside, s->z->data, s->noise.data, s->count, SID_EPSILON, step);
}

/* ---- inversion ---- */

/* start is NULL without refinement; otherwise it has room for the latents before the step. */
static int invert_step(state *s, const sid_inverting *how, size_t i, float *start) {
    const sid_move *step = &how->schedule->inversion[i];
    const sid_trajectory *kept = &how->trajectory;
    sid_tap tap = {.step = step->slot, .hook = how->hook, .saved = how->banks};
    SID_TRY(report(s, i, how->schedule->steps));
    if (kept->latents) SID_TRY(copy(s, kept->latents + i * s->count, s->z->data));
    s->predicted = kept->predicted ? kept->predicted + i * s->count : NULL;
    if (start) SID_TRY(copy(s, start, s->z->data));
    SID_TRY(move_latents(s, &tap, step));
    for (size_t k = 0; k < how->refine; k++) SID_TRY(move_again(s, start, &tap, step));
    return check(s, i + 1, how->schedule->steps);
}

int sid_invert(sid_model *model, sid_planes *z, const sid_inverting *how) {
    const size_t steps = how->schedule->steps;
    float *start = NULL, *latents = how->trajectory.latents;
    state s;
    int status = state_open(&s, model, z, how->prompt, how->progress);
    if (status == SID_OK && how->refine) status = sid_memory_floats(memory_of(&s), &start, s.count, "a step's latents");
    for (size_t i = 0; i < steps && status == SID_OK; i++) status = invert_step(&s, how, i, start);
    if (status == SID_OK) status = report(&s, steps, steps);
    if (status == SID_OK && latents) status = copy(&s, latents + steps * s.count, z->data);
    sid_memory_give(memory_of(&s), start);
    state_close(&s);
    return status;
}

int sid_features(sid_model *model, int timestep, const sid_planes *latents, const sid_context *context,
                 sid_bank *const *banks) {
    return sid_model_predict(model, NULL, latents, timestep, context, &(sid_tap){.saved = banks});
}

/* ---- sampling ---- */

/* Fills the replays' banks with the features that the inversions had at this step. */
static int replay(sid_model *model, const sid_sampling *how, const sid_move *step) {
    for (size_t i = 0; i < how->replay_count; i++) {
        const sid_replay *r = &how->replays[i];
        sid_planes latents = r->latents;
        latents.data += step->slot * sid_planes_count(&latents);
        SID_TRY(sid_features(model, step->timestep, &latents, &r->context, r->banks));
    }
    return SID_OK;
}

static int denoise_step(state *s, const sid_sampling *how, const sid_injection *injection, size_t i, size_t steps) {
    const sid_move *step = &how->schedule->sampling[how->skip + i];
    sid_tap tap = {.step = step->slot, .hook = how->hook, .injection = injection};
    SID_TRY(report(s, i, steps));
    SID_TRY(replay(s->model, how, step));
    SID_TRY(move_latents(s, injection || how->hook ? &tap : NULL, step));
    return check(s, i + 1, steps);
}

int sid_denoise(sid_model *model, sid_planes *z, const sid_sampling *how) {
    const size_t steps = how->schedule->sampling_steps - how->skip;
    const sid_unet_config *config = &sid_model_config(model)->unet;
    sid_injection injection = how->injection ? *how->injection : (sid_injection){0};
    sid_lent_regions *lent = NULL;
    state s;
    int status = state_open(&s, model, z, how->prompt, how->progress);
    if (status == SID_OK) status = sid_regions_lend(&lent, s.outside.backend, config, how->injection, z->h, z->w);
    injection.regions = sid_regions_of(lent);
    if (status == SID_OK) status = check(&s, 0, steps);
    for (size_t i = 0; i < steps && status == SID_OK; i++)
        status = denoise_step(&s, how, how->injection ? &injection : NULL, i, steps);
    if (status == SID_OK) status = report(&s, steps, steps);
    sid_regions_return(&lent);
    state_close(&s);
    return status;
}
