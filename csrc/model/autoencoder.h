/* What vae.c chooses between: the networks that turn pictures into latents and back. */
#ifndef SID_MODEL_AUTOENCODER_H
#define SID_MODEL_AUTOENCODER_H

#include "core/config.h"
#include "model/blocks.h"

/* Planes are as in vae.h. A half-built network can be closed. */
typedef struct {
    int (*open)(sid_builder *builder, void **network, const sid_vae_config *config);
    void (*close)(sid_backend *backend, void *network);
    int (*encode)(sid_exec *exec, const void *network, float *latents, const float *images, size_t n, size_t height,
                  size_t width);
    int (*decode)(sid_exec *exec, const void *network, float *images, const float *latents, size_t n, size_t h,
                  size_t w);
    /* planes (n, C, h, w): the logarithm of the posterior's variance, unscaled. NULL: there is no posterior. */
    int (*log_variance)(sid_exec *exec, const void *network, float *planes, const float *images, size_t n,
                        size_t height, size_t width);
} sid_autoencoder;

extern const sid_autoencoder sid_kl;    /* diffusers' AutoencoderKL, the VAE of Stable Diffusion */
extern const sid_autoencoder sid_taesd; /* diffusers' AutoencoderTiny */

#endif
