/* Where the features of one inversion are kept: borrowed memory, one slot per step and layer. A bank of one step holds
 * those of the last step that was saved. */
#ifndef SID_MODEL_BANK_H
#define SID_MODEL_BANK_H

#include "core/tensor.h"

#define SID_MAX_LAYERS 64

typedef struct {
    void *query, *key, *value; /* [steps][tokens][channels]; NULL where not kept */
    size_t tokens, channels;
} sid_bank_layer;

typedef struct {
    sid_dtype dtype;
    int on_host; /* whether the features are the host's memory, and not the backend's */
    size_t steps;
    sid_bank_layer layers[SID_MAX_LAYERS]; /* by decoder layer */
} sid_bank;

/* The (1, 1, tokens, channels) tensor of one step in `features`, which is a layer's query, key or value. */
static inline sid_tensor sid_bank_slot(const sid_bank *bank, const sid_bank_layer *layer, void *features, size_t step) {
    size_t slot = layer->tokens * layer->channels * sid_dtype_size(bank->dtype);
    return sid_dense((char *)features + step % bank->steps * slot, bank->dtype, 1, 1, layer->tokens, layer->channels);
}

#endif
