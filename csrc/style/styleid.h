/* The method: DDIM inversion that keeps features, and sampling that injects them. ALGORITHM: docs/algorithm.md.
 * Latents are planes in the backend's memory. */
#ifndef SID_STYLE_STYLEID_H
#define SID_STYLE_STYLEID_H

#include "model/bank.h"
#include "model/model.h"
#include "style/schedule.h"

/* The call comes before every evaluation and once after the last; any result but 0 ends the run with SID_ECANCELLED. */
typedef struct {
    int (*call)(void *self, size_t step, size_t steps); /* NULL: none */
    void *self;
    float *latents; /* NULL, or host memory that holds the latents of evaluation `step` during the call, which may
                       change them */
} sid_progress;

/* What the model is told. With a negative context every evaluation runs the model twice:
 * e = e_negative + guidance (e - e_negative). Features are kept of the first run and injected into both. */
typedef struct {
    sid_context context, negative; /* of one sample; negative.data NULL: no guidance */
    float guidance;
} sid_prompt;

/* What an inversion passes through, in the backend's memory; either may be NULL. */
typedef struct {
    float *latents;   /* (steps + 1, n, C, h, w): the input of every evaluation, then zT */
    float *predicted; /* (steps, n, C, h, w): x0 by every evaluation */
} sid_trajectory;

/* How latents are inverted. */
typedef struct {
    const sid_schedule *schedule;
    const sid_prompt *prompt;
    sid_bank *const *banks;    /* one per sample */
    sid_trajectory trajectory; /* what is kept of the way */
    size_t refine; /* further evaluations a step, each of them a step of the fixed-point iteration for the latent that
                      the sampling's move leads back */
    const sid_attention_hook *hook; /* NULL, or what sees the attention of each sample after its features were kept */
    const sid_progress *progress;   /* NULL: none */
} sid_inverting;

/* Inverts z in place: z0 -> zT. */
int sid_invert(sid_model *model, sid_planes *z, const sid_inverting *how);

/* Keeps the features of one evaluation in one bank per sample, each of one step. */
int sid_features(sid_model *model, int timestep, const sid_planes *latents, const sid_context *context,
                 sid_bank *const *banks);

/* Features that were not kept. They are evaluated again, step by step, on the latents of their inversion, as a batch of
 * n. */
typedef struct {
    sid_planes latents; /* data: (steps + 1, n, C, h, w), as sid_invert() fills them */
    sid_context context;
    sid_bank *const *banks; /* one per sample, each of one step */
} sid_replay;

/* How a latent is sampled. */
typedef struct {
    const sid_schedule *schedule;
    const sid_prompt *prompt;
    size_t skip;                    /* evaluations that are left out at the start */
    const sid_injection *injection; /* NULL: none. Its regions' arrays are the host's. */
    const sid_replay *replays;      /* they fill those of the injection's banks that hold one step only */
    size_t replay_count;
    const sid_attention_hook *hook; /* NULL, or what sees the attention, the injected one where there is one */
    const sid_progress *progress;   /* NULL: none */
} sid_sampling;

/* Samples z, a batch of one, in place: zT -> z0. */
int sid_denoise(sid_model *model, sid_planes *z, const sid_sampling *how);

#endif
