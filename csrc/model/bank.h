/* Where the features of one inversion are kept: borrowed memory, one slot per step and layer. A bank of one step holds
 * those of the last step that was saved. */
#ifndef SID_MODEL_BANK_H
#define SID_MODEL_BANK_H

#include "core/config.h"
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

/* Sets the sizes of the features of `count` layers, where the latent is h x w. */
static inline void sid_bank_fit(sid_bank *bank, const sid_unet_config *config, const size_t *layers, size_t count,
                                size_t h, size_t w) {
    for (size_t i = 0; i < count; i++) {
        bank->layers[layers[i]].tokens = sid_layer_tokens(config, layers[i], h, w);
        bank->layers[layers[i]].channels = sid_layer_channels(config, layers[i]);
    }
}

/* Bytes of one kind of a layer's features, all steps together. */
static inline size_t sid_bank_size(const sid_bank *bank, const sid_bank_layer *layer) {
    return bank->steps * layer->tokens * layer->channels * sid_dtype_size(bank->dtype);
}

/* The (1, 1, tokens, channels) tensor of one step in `features`, which is a layer's query, key or value. */
static inline sid_tensor sid_bank_slot(const sid_bank *bank, const sid_bank_layer *layer, void *features, size_t step) {
    size_t slot = sid_bank_size(bank, layer) / bank->steps;
    return sid_dense((char *)features + step % bank->steps * slot, bank->dtype, 1, 1, layer->tokens, layer->channels);
}

#endif
