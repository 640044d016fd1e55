/* The noise predictor: UNet2DConditionModel of Stable Diffusion 1.x and 2.x. */
#ifndef SID_MODEL_UNET_H
#define SID_MODEL_UNET_H

#include "core/config.h"
#include "model/blocks.h"

typedef struct sid_unet sid_unet;

/* context_tokens: as many as the usual context has. */
int sid_unet_open(sid_builder *builder, sid_unet **unet, const sid_unet_config *config, size_t context_tokens);
void sid_unet_close(sid_backend *backend, sid_unet **unet);

/* Transformers, in the order in which they run. */
size_t sid_unet_transformers(const sid_unet *unet);
size_t sid_unet_transformer_channels(const sid_unet *unet, size_t transformer);
size_t sid_unet_context_size(const sid_unet *unet);

/* keys[i] (n, 1, tokens, 2 * channels): the cross-attention keys and values of transformer i.
 * context (n, 1, tokens, context_size) in the backend's dtype. They depend on the context alone. */
int sid_unet_context(sid_exec *exec, const sid_unet *unet, sid_tensor *keys, const sid_tensor *context);

/* What the ResNets add for a timestep: all of them in one row of sid_unet_time_size() floats. waves (1, channels, 1,
 * 1): the timestep's sinusoids, which are filled on the host. */
size_t sid_unet_time_size(const sid_unet *unet);
size_t sid_unet_wave_count(const sid_unet *unet);
void sid_unet_waves(float *waves, size_t count, int timestep);
int sid_unet_time(sid_exec *exec, const sid_unet *unet, float *time, const sid_planes *waves);

/* noise (n, h, w, C) float32, z (n, h, w, C) in the backend's dtype; time and keys from the functions above.
 * Where noise is NULL, only the features that the tap saves are wanted, and the run ends with the last of their layers.
 */
int sid_unet_run(sid_exec *exec, const sid_unet *unet, sid_tensor *noise, const sid_tensor *z, const float *time,
                 const sid_tensor *keys, const sid_tap *tap);

#endif
