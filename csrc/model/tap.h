/* What happens at the decoder's self-attention; read in exactly one place, sid_self_attention(). */
#ifndef SID_MODEL_TAP_H
#define SID_MODEL_TAP_H

#include "core/backend.h"
#include "model/bank.h"

#define SID_MAX_STYLES 64

/* Where in a layer features are injected. The arrays are the backend's memory. */
typedef struct {
    const float *bias; /* NULL, or [styles][queries]: added to a query's logits with a style's keys; may be -INFINITY */
    const float *cover; /* NULL, or [queries], 0 to 1: the share of the injected attention in the output; the rest of it
                         * is the layer's attention as it would be without any injection */
    const float *key_bias[SID_MAX_STYLES]; /* NULL, or [the style's tokens]: added to all logits of a key */
} sid_region;

/* What is injected into a batch of one, in the layers that the banks have features of. Where a bank has no queries,
 * keys or values of a layer, the layer's own stay. All styles have the same kinds of features. */
typedef struct {
    const sid_bank *content;          /* queries; NULL: none */
    const sid_bank *const *styles;    /* keys and values, concatenated */
    const float *weights;             /* [style_count]: each style's share of the attention */
    size_t style_count;               /* at most SID_MAX_STYLES */
    size_t layers;                    /* the model's decoder layers */
    const float *gamma, *temperature; /* [steps][layers], the host's */
    const uint8_t *where;             /* NULL, or [steps][layers]: whether a step injects into a layer; the host's */
    const sid_region *regions;        /* NULL, or [layers], the same at all steps */
} sid_injection;

/* The inputs of one sample's attention, dense float32 on the host: Q (queries, channels), K and V (keys, channels). Of
 * several styles, K and V are one after the other. */
typedef struct {
    const float *q, *k, *v;
    size_t queries, keys, channels;
} sid_attention_inputs;

/* Sees the inputs before an attention runs on them. The call may set the pointers and `keys` to others, which stay as
 * they are until the next call; any result but 0 ends the run with SID_ECANCELLED. */
typedef struct {
    int (*call)(void *self, size_t step, size_t layer, sid_attention_inputs *inputs); /* NULL: none */
    void *self;
    uint8_t layers[SID_MAX_LAYERS]; /* whether the layer's attention is seen */
} sid_attention_hook;

typedef struct {
    size_t step;                    /* feature slot */
    const sid_attention_hook *hook; /* NULL: none */
    sid_bank *const *saved;         /* one bank per sample of the batch, all of the same layers, to keep features in;
                                     * NULL: none are kept */
    const sid_injection *injection; /* NULL: none */
} sid_tap;

/* The last layer that features are kept of. */
static inline size_t sid_tap_last_layer(const sid_tap *tap) {
    size_t layer = SID_MAX_LAYERS - 1;
    while (layer && !tap->saved[0]->layers[layer].tokens) layer--;
    return layer;
}

#endif
