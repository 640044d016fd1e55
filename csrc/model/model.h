/* A model: UNet, VAE and, where there is one, the text encoder. Immutable once opened; threads may share it. */
#ifndef SID_MODEL_MODEL_H
#define SID_MODEL_MODEL_H

#include "core/config.h"
#include "core/weights.h"
#include "model/tap.h"

typedef struct sid_model sid_model;

/* Whether the VAE works in tiles. SID_TILING_AUTO: for images of more than SID_TILING_PIXELS. */
typedef enum { SID_TILING_AUTO, SID_TILING_ON, SID_TILING_OFF } sid_tiling;
#define SID_TILING_PIXELS ((size_t)768 * 768)

/* Takes unet.*, vae.* and text.* weights; each must be there, of the right shape, and no other. They are packed for the
 * native size and can go as soon as this returns. The backend becomes the model's, also where this fails. */
int sid_model_open(sid_model **model, const sid_config *config, sid_weights *weights, sid_backend *backend,
                   sid_tiling tiling);
void sid_model_close(sid_model **model);

const sid_config *sid_model_config(const sid_model *model);
sid_backend *sid_model_backend(const sid_model *model);
size_t sid_model_idle(sid_model *model); /* bytes of scratch that wait for the next run */

/* Contexts are the host's: float32 (n, tokens, context_size). */
typedef struct {
    const float *data;
    size_t n, tokens;
} sid_context;

/* The planes below are the backend's memory, and the caller has set their shapes. Latents' h and w are multiples of
 * sid_latent_multiple(), images' of sid_vae_factor(). */

/* noise = UNet(latents, timestep, context): the raw output. The context has as many samples or one. tap may be NULL.
 * Where noise is NULL, only the features that the tap saves are wanted. */
int sid_model_predict(sid_model *model, sid_planes *noise, const sid_planes *latents, int timestep,
                      const sid_context *context, const sid_tap *tap);
/* latents = VAE mean(images) * scaling_factor; images in [-1, 1]. */
int sid_model_encode(sid_model *model, sid_planes *latents, const sid_planes *images);
/* planes, of the latents' shape: the logarithm of the variance of the VAE's posterior; SID_EVALUE where there is none.
 */
int sid_model_log_variance(sid_model *model, sid_planes *planes, const sid_planes *images);
/* images, not clamped. */
int sid_model_decode(sid_model *model, sid_planes *images, const sid_planes *latents);
/* context (n, length, channels) from token numbers (n, length); both the host's. */
int sid_model_encode_tokens(sid_model *model, float *context, const int *tokens, size_t n, size_t length);

/* Scratch bytes of the calls above. */
int sid_model_predict_scratch(sid_model *model, size_t *bytes, size_t n, size_t h, size_t w, size_t context_tokens);
int sid_model_vae_scratch(sid_model *model, size_t *bytes, size_t height, size_t width);

#endif
