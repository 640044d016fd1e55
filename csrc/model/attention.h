/* Self-attention, where features are kept and injected, and plain attention. */
#ifndef SID_MODEL_ATTENTION_H
#define SID_MODEL_ATTENTION_H

#include "model/blocks.h"

/* dst (n, h, w, channels) = the transformer's self-attention of x. Nothing else reads the tap. */
int sid_self_attention(sid_exec *exec, const sid_transformer *transformer, sid_tensor *dst, const sid_tensor *x,
                       const sid_tap *tap);

/* Attention of each sample's queries q (n, *, *, channels) to its own keys kv (1 or n, *, *, 2 * channels). */
int sid_attend_samples(sid_exec *exec, sid_tensor *dst, const sid_tensor *q, const sid_tensor *kv, size_t heads);

#endif
