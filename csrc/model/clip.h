/* The CLIP text encoder: token numbers to the UNet's context. */
#ifndef SID_MODEL_CLIP_H
#define SID_MODEL_CLIP_H

#include "core/config.h"
#include "model/layers.h"

typedef struct sid_clip sid_clip;

int sid_clip_open(sid_builder *builder, sid_clip **clip, const sid_text_config *config);
void sid_clip_close(sid_backend *backend, sid_clip **clip);

/* context (n, 1, length, channels) float32 from tokens (n, length), each below the vocabulary;
 * length at most config.positions. */
int sid_clip_run(sid_exec *exec, const sid_clip *clip, sid_tensor *context, const int *tokens);

#endif
