/* Pictures to latents and back, whole or in tiles. */
#ifndef SID_MODEL_VAE_H
#define SID_MODEL_VAE_H

#include "core/config.h"
#include "model/layers.h"

typedef struct sid_vae sid_vae;

int sid_vae_open(sid_builder *builder, sid_vae **vae, const sid_vae_config *config);
void sid_vae_close(sid_backend *backend, sid_vae **vae);

/* latents (n, C, h, w): the posterior's mean * scaling_factor. images (n, 3, H, W) in [-1, 1].
 * tiled: in overlapping tiles that are blended, so that the scratch memory does not grow with the picture. */
int sid_vae_encode(sid_exec *exec, const sid_vae *vae, float *latents, const float *images, size_t n, size_t height,
                   size_t width, int tiled);
/* planes (n, C, h, w): the logarithm of the posterior's variance. SID_EVALUE where there is no posterior. */
int sid_vae_log_variance(sid_exec *exec, const sid_vae *vae, float *planes, const float *images, size_t n,
                         size_t height, size_t width, int tiled);
int sid_vae_has_posterior(const sid_vae *vae);
/* images (n, 3, H, W), not clamped. */
int sid_vae_decode(sid_exec *exec, const sid_vae *vae, float *images, const float *latents, size_t n, size_t h,
                   size_t w, int tiled);

#endif
