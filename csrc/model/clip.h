/* The CLIP text encoder: token numbers to the UNet's context. */
#ifndef SID_MODEL_CLIP_H
#define SID_MODEL_CLIP_H

#include "core/config.h"
#include "model/layers.h"

typedef struct sid_clip sid_clip;

int sid_clip_open(sid_builder *builder, sid_clip **clip, const sid_text_config *config);
void sid_clip_close(sid_backend *backend, sid_clip **clip);

/* embedded (n * length, channels) on the host, from tokens (n, length), each below the vocabulary; length at most
 * config.positions. */
void sid_clip_embed(const sid_clip *clip, float *embedded, const int *tokens, size_t n, size_t length);
/* context (n, 1, length, channels) float32; embedded: planes (n * length, channels, 1, 1). */
int sid_clip_run(sid_exec *exec, const sid_clip *clip, sid_tensor *context, const sid_planes *embedded);

#endif
