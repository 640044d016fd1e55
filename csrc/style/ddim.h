/* The moves of DDIM, on latents in the backend's memory. */
#ifndef SID_STYLE_DDIM_H
#define SID_STYLE_DDIM_H

#include "core/backend.h"
#include "style/schedule.h"

/* One move in place: x0 = (z - sqrt(1 - from) e) / sqrt(from), z = sqrt(to) x0 + sqrt(1 - to) e.
 * prediction: the model's raw output (count), epsilon or v: e = sqrt(from) v + sqrt(1 - from) z. The level of v is the
 * latent's, which in the inversion of `diffusers` is not the evaluated timestep's. */
int sid_ddim_move(sid_exec *exec, float *z, const float *prediction, size_t count, sid_prediction kind,
                  const sid_move *move);

/* On the host: the x0 (count) that an evaluation predicted, from the latents before and after its move from one level
 * to a higher one. */
void sid_ddim_predicted(float *x0, const float *before, const float *after, size_t count, double from, double to);

/* Turns the model's raw output for z (count) at a level into the noise e; an epsilon is that already. */
int sid_to_noise(sid_exec *exec, float *prediction, const float *z, size_t count, sid_prediction kind, double level);

/* noise = negative + guidance (noise - negative). The same holds for v, which is linear in e at a given z. */
int sid_guide(sid_exec *exec, float *noise, const float *negative, size_t count, float guidance);

#endif
