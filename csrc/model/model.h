/* A model: UNet, VAE and, where there is one, the text encoder. Immutable once opened; threads may share it. */
#ifndef SID_MODEL_MODEL_H
#define SID_MODEL_MODEL_H

#include "core/config.h"
#include "core/weights.h"
#include "model/tap.h"

typedef struct sid_model sid_model;

/* Whether the VAE works in tiles. SID_TILING_AUTO: for pictures of more than SID_TILING_PIXELS. */
typedef enum { SID_TILING_AUTO, SID_TILING_ON, SID_TILING_OFF } sid_tiling;
#define SID_TILING_PIXELS ((size_t)768 * 768)

/* Takes unet.*, vae.* and text.* weights; each must be there, of the right shape, and no other. The weights are
 * packed for the native size and can go as soon as this returns. */
int sid_model_open(sid_model **model, const sid_config *config, sid_weights *weights, sid_dtype dtype, int threads,
                   sid_tiling tiling);
void sid_model_close(sid_model **model);

const sid_config *sid_model_config(const sid_model *model);
sid_dtype sid_model_dtype(const sid_model *model);
int sid_model_threads(const sid_model *model);
size_t sid_model_memory(const sid_model *model); /* bytes of packed weights */
size_t sid_model_idle(sid_model *model);         /* bytes of scratch that wait for the next run */

/* Latents are (n, C, h, w) float32 planes; h and w multiples of sid_latent_multiple(). */

/* noise = UNet(latents, timestep, context): the raw output. context (n or 1, tokens, context_size) float32.
 * tap may be NULL. noise NULL: only the features that the tap saves are wanted. */
int sid_model_predict(sid_model *model, float *noise, const float *latents, size_t n, size_t h, size_t w, int timestep,
                      const float *context, size_t context_n, size_t context_tokens, const sid_tap *tap);
/* latents = VAE mean(images) * scaling_factor. images (n, 3, H, W) in [-1, 1]; H, W multiples of sid_vae_factor(). */
int sid_model_encode(sid_model *model, float *latents, const float *images, size_t n, size_t height, size_t width);
/* planes (n, C, h, w): the logarithm of the variance of the VAE's posterior; SID_EVALUE where there is none. */
int sid_model_log_variance(sid_model *model, float *planes, const float *images, size_t n, size_t height, size_t width);
/* images (n, 3, H, W), not clamped, from latents of (n, C, h, w). */
int sid_model_decode(sid_model *model, float *images, const float *latents, size_t n, size_t h, size_t w);
/* context (n, length, channels) from token numbers (n, length). */
int sid_model_encode_tokens(sid_model *model, float *context, const int *tokens, size_t n, size_t length);

/* Scratch bytes of the calls above. */
int sid_model_predict_scratch(sid_model *model, size_t *bytes, size_t n, size_t h, size_t w, size_t context_tokens);
int sid_model_vae_scratch(sid_model *model, size_t *bytes, size_t height, size_t width);

#endif
