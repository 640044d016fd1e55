/* Images to latents and back, whole or in tiles. Planes are the backend's memory; the caller sets their shapes. */
#ifndef SID_MODEL_VAE_H
#define SID_MODEL_VAE_H

#include "core/run.h"
#include "model/autoencoder.h"

typedef struct {
    sid_vae_config config;
    const sid_autoencoder *kind;
    void *network;
} sid_vae;

/* The builder's size is that of an image. A half-built VAE can be closed. */
int sid_vae_open(sid_builder *builder, sid_vae *vae, const sid_vae_config *config);
void sid_vae_close(sid_backend *backend, sid_vae *vae);

/* latents: the posterior's mean * scaling_factor. images in [-1, 1].
 * tiled: in overlapping tiles that are blended, so that the scratch memory does not grow with the image. */
int sid_vae_encode(sid_runner *runner, const sid_vae *vae, sid_planes *latents, const sid_planes *images, int tiled);
/* planes: the logarithm of the posterior's variance. SID_EVALUE where there is no posterior. */
int sid_vae_log_variance(sid_runner *runner, const sid_vae *vae, sid_planes *planes, const sid_planes *images,
                         int tiled);
/* images, not clamped. */
int sid_vae_decode(sid_runner *runner, const sid_vae *vae, sid_planes *images, const sid_planes *latents, int tiled);

/* Scratch bytes of the larger of the two directions, for one image. */
int sid_vae_scratch(sid_runner *runner, const sid_vae *vae, size_t *bytes, size_t height, size_t width, int tiled);

#endif
