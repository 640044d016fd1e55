/* What happens at the decoder's self-attention; read in exactly one place, sid_self_attention(). */
#ifndef SID_MODEL_TAP_H
#define SID_MODEL_TAP_H

#include "model/bank.h"

#define SID_MAX_STYLES 64

typedef enum { SID_TAP_SAVE, SID_TAP_INJECT } sid_tap_mode;

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
} sid_tap;

#endif
