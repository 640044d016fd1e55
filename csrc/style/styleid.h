/* The method: DDIM inversion that keeps features, and sampling that injects them. ALGORITHM: docs/algorithm.md. */
#ifndef SID_STYLE_STYLEID_H
#define SID_STYLE_STYLEID_H

#include "model/bank.h"
#include "model/model.h"
#include "style/ddim.h"

/* Called before every evaluation and once after the last; anything but 0 ends the run with SID_ECANCELLED.
 * z: the latents (n, c, h, w) that go into evaluation `step`; they may be changed. */
typedef struct {
    int (*call)(void *self, size_t step, size_t steps, float *z);
    void *self;
} sid_progress;

/* What the model is told: contexts of (tokens, context_size). With a negative one every evaluation is two:
 * e = e_negative + guidance (e - e_negative). Features are kept of the first and injected into both. */
typedef struct {
    const float *context;
    size_t tokens;
    const float *negative; /* NULL: no guidance */
    size_t negative_tokens;
    float guidance;
} sid_prompt;

/* What an inversion passes through; either may be NULL. */
typedef struct {
    float *latents;   /* (steps + 1, n, C, h, w): the input of every evaluation, then zT */
    float *predicted; /* (steps, n, C, h, w): x0 by every evaluation */
} sid_trajectory;

/* Inverts z (n, C, h, w) in place: z0 -> zT. banks: one per sample. trajectory: what is kept of the way.
 * refine: further evaluations a step, each a step of the fixed-point iteration for the latent that the sampling would
 * move back. hook: NULL, or what sees the attention of each sample after its features were kept. */
int sid_invert(sid_model *model, const sid_schedule *schedule, float *z, size_t n, size_t h, size_t w,
               const sid_prompt *prompt, sid_bank *const *banks, const sid_trajectory *trajectory, size_t refine,
               const sid_attention_hook *hook, const sid_progress *progress);

/* The features of one evaluation, of latents (n, C, h, w). banks: one per sample, each of one step. */
int sid_features(sid_model *model, int timestep, const float *latents, size_t n, size_t h, size_t w,
                 const float *context, size_t context_tokens, sid_bank *const *banks);

/* Features that were not kept: evaluated again, step by step, on the latents of their inversion, all n of them as the
 * batch that they were inverted in. */
typedef struct {
    const float *latents; /* (steps + 1, n, C, h, w), as sid_invert() fills them */
    size_t n, h, w;
    const float *context;
    size_t context_tokens;
    sid_bank *const *banks; /* one per sample, each of one step */
} sid_replay;

/* How features are injected. All arrays are [steps][layers], by inversion step and decoder layer. */
typedef struct {
    const sid_bank *content;       /* queries; NULL: nothing is injected */
    const sid_bank *const *styles; /* keys and values, concatenated */
    const float *weights;          /* [style_count]: each style's share of the attention */
    size_t style_count;
    const float *gamma, *temperature;
    const uint8_t *where;      /* NULL: at all steps, in all layers that the banks have features of */
    const sid_region *regions; /* NULL, or [layers], the same at all steps */
    const sid_replay *replays; /* of the banks above that hold one step only */
    size_t replay_count;
} sid_injection;

/* Samples z (1, C, h, w) in place: zT -> z0, without the first `skip` evaluations. injection, hook, logits
 * [steps][layers]: may be NULL; the hook sees what was injected. */
int sid_denoise(sid_model *model, const sid_schedule *schedule, float *z, size_t h, size_t w, const sid_prompt *prompt,
                size_t skip, const sid_injection *injection, const sid_attention_hook *hook, sid_logits *logits,
                const sid_progress *progress);

#endif
