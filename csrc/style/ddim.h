/* The moves of DDIM, on latents in the backend's memory. */
#ifndef SID_STYLE_DDIM_H
#define SID_STYLE_DDIM_H

#include "core/backend.h"
#include "style/schedule.h"

/* One move in place: x0 = (z - sqrt(1 - from) e) / sqrt(from), z = sqrt(to) x0 + sqrt(1 - to) e.
 * prediction: the model's raw output (count), epsilon or v: e = sqrt(from) v + sqrt(1 - from) z. The level of a v is
 * that of the latent, which in the inversion of `diffusers` is not that of the evaluated timestep. */
int sid_ddim_move(sid_exec *exec, float *z, const float *prediction, size_t count, sid_prediction kind,
                  const sid_move *move);

/* x0, of count numbers on the host, as the evaluation had it whose move from one level to another, higher one led from
 * `before` to `after`. */
void sid_ddim_predicted(float *x0, const float *before, const float *after, size_t count, double from, double to);

/* The noise e in place of the model's raw output for z (count) at a level; nothing to do for an epsilon. */
int sid_to_noise(sid_exec *exec, float *prediction, const float *z, size_t count, sid_prediction kind, double level);

/* noise = negative + guidance (noise - negative). It is the same of v, which at a given z is linear in e. */
int sid_guide(sid_exec *exec, float *noise, const float *negative, size_t count, float guidance);

#endif
