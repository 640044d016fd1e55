/* The networks that turn images into latents and back, one of which vae.c chooses. */
#ifndef SID_MODEL_AUTOENCODER_H
#define SID_MODEL_AUTOENCODER_H

#include "core/config.h"
#include "model/blocks.h"

/* Planes are as in model.h. A half-built network can be closed. */
typedef struct {
    int (*open)(sid_builder *builder, void **network, const sid_vae_config *config);
    void (*close)(sid_backend *backend, void *network);
    int (*encode)(sid_exec *exec, const void *network, sid_planes *latents, const sid_planes *images);
    int (*decode)(sid_exec *exec, const void *network, sid_planes *images, const sid_planes *latents);
    /* planes, of the latents' shape: the logarithm of the posterior's variance, unscaled. NULL: there is no posterior.
     */
    int (*log_variance)(sid_exec *exec, const void *network, sid_planes *planes, const sid_planes *images);
} sid_autoencoder;

extern const sid_autoencoder sid_kl;    /* diffusers' AutoencoderKL, the VAE of Stable Diffusion */
extern const sid_autoencoder sid_taesd; /* diffusers' AutoencoderTiny */

#endif
