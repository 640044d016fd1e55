/* DDIM schedules: which timesteps are evaluated, and between which noise levels each evaluation moves the latent. */
#ifndef SID_STYLE_DDIM_H
#define SID_STYLE_DDIM_H

#include "core/config.h"

typedef enum { SID_PAPER, SID_DIFFUSERS, SID_CORRECTED } sid_schedule_name;

typedef struct {
    int timestep;
    double from, to; /* alpha of the latent before and after; 1: without noise */
    int target;      /* in an inversion: the timestep of level `to` */
    size_t slot;     /* features of this timestep: the index of its inversion step */
} sid_move;

typedef struct {
    size_t steps;                            /* evaluations of the inversion */
    sid_move inversion[SID_TRAIN_STEPS];
    size_t sampling_steps;                   /* evaluations of the sampling: steps, or one less */
    sid_move sampling[SID_TRAIN_STEPS];
    int first_layer;                         /* layers first_layer .. 11 are injected by default */
    float adain_epsilon;                     /* added to the content's standard deviation */
    int truncate;                            /* 8-bit output: truncated, or else rounded half to even */
} sid_schedule;

/* steps: 2 .. 1000. */
int sid_schedule_open(sid_schedule *schedule, sid_schedule_name name, size_t steps, const double *alphas);

/* One DDIM move in place: x0 = (z - sqrt(1 - from) e) / sqrt(from), z = sqrt(to) x0 + sqrt(1 - to) e.
 * prediction: the model's raw output (count), epsilon or v: e = sqrt(from) v + sqrt(1 - from) z. The level of a v is that
 * of the latent, which in the inversion of `diffusers` is not that of the evaluated timestep. */
void sid_ddim_move(float *z, const float *prediction, size_t count, sid_prediction kind, const sid_move *move);

/* The noise e in place of the model's raw output for z (count) at a level; nothing to do for an epsilon. */
void sid_to_noise(float *prediction, const float *z, size_t count, sid_prediction kind, double level);

/* dst = std(style) * (content - mean(content)) / (std(content) + epsilon) + mean(style) per channel; (c, pixels) planes.
 * Statistics over each picture's own pixels; std unbiased. */
void sid_adain(float *dst, const float *content, size_t content_pixels, const float *style, size_t style_pixels,
               size_t channels, float epsilon);

#endif
