/* What happens at the decoder's self-attention; read in exactly one place, sid_self_attention(). */
#ifndef SID_MODEL_TAP_H
#define SID_MODEL_TAP_H

#include "model/bank.h"

#define SID_MAX_STYLES 64

typedef enum { SID_TAP_SAVE, SID_TAP_INJECT } sid_tap_mode;

/* Where in a layer features are injected. */
typedef struct {
    const float *bias; /* NULL, or [styles][queries]: added to a query's logits with a style's keys; may be -INFINITY */
    const float *cover; /* NULL, or [queries], 0 to 1: the share of the injected attention in the output; the rest of it
                         * is the layer's attention as it would be without any injection */
} sid_region;

typedef struct {
    sid_tap_mode mode;
    size_t step; /* feature slot */
    /* SAVE: one bank per sample of the batch. */
    sid_bank *const *saved;
    /* INJECT: into a batch of one, in the layers that the banks have features of. */
    /* Where a bank has no queries, keys or values of a layer, the layer's own stay. All styles have the same kinds. */
    const sid_bank *content;       /* queries; NULL: none */
    const sid_bank *const *styles; /* keys and values, concatenated */
    const float *weights;          /* [style_count] */
    size_t style_count; /* at most SID_MAX_STYLES */
    const float *gamma, *temperature; /* [layers], of this step */
    const sid_region *regions;        /* NULL, or [layers] */
} sid_tap;

#endif
