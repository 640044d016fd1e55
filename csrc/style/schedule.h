/* DDIM schedules: which timesteps are evaluated, and between which noise levels each evaluation moves the latent. */
#ifndef SID_STYLE_SCHEDULE_H
#define SID_STYLE_SCHEDULE_H

#include "core/config.h"

typedef enum { SID_PAPER, SID_DIFFUSERS, SID_CORRECTED, SID_SCHEDULE_COUNT } sid_schedule_name;

/* Their names, in their order; NULL follows the last. */
const char *const *sid_schedule_names(void);

/* The timestep of the inversion's evaluation i, which is the same in all schedules of so many steps. */
int sid_timestep(size_t steps, size_t i);

typedef struct {
    int timestep;
    double from, to; /* alpha of the latent before and after; 1: without noise */
    int target;      /* the timestep of level `to` */
    size_t slot;     /* features of this timestep: the index of its inversion step */
} sid_move;

typedef struct {
    size_t steps; /* evaluations of the inversion */
    sid_move inversion[SID_TRAIN_STEPS];
    size_t sampling_steps; /* evaluations of the sampling: steps, or one less */
    sid_move sampling[SID_TRAIN_STEPS];
    int first_layer;     /* layers first_layer .. 11 are injected by default */
    float adain_epsilon; /* added to the content's standard deviation */
    int truncate;        /* 8-bit output: truncated, or else rounded half to even */
} sid_schedule;

/* steps: 2 .. 1000. */
int sid_schedule_open(sid_schedule *schedule, sid_schedule_name name, size_t steps, const double *alphas);

#endif
