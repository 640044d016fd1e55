/* What evaluations have to agree in to be recorded as one: see begin() in core/backend.h. */
#ifndef SID_MODEL_KEY_H
#define SID_MODEL_KEY_H

#include "core/backend.h"
#include "model/tap.h"

typedef struct {
    const sid_planes *latents;
    int features_only;
    size_t context_n, context_tokens;
    const sid_tap *tap; /* NULL: none */
} sid_evaluation;

/* 0 where the evaluation is not to be recorded, because a hook sees it or features cross between host and device. */
uint64_t sid_evaluation_key(const sid_evaluation *evaluation, const sid_backend *backend);

#endif
