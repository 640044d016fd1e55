/* The numbers that a model is built from. Nothing else tells one model family from another. */
#ifndef SID_CORE_CONFIG_H
#define SID_CORE_CONFIG_H

#include <stddef.h>

#define SID_MAX_LEVELS 8
#define SID_TRAIN_STEPS 1000

typedef enum { SID_EPSILON, SID_V_PREDICTION } sid_prediction;
typedef enum { SID_QUICK_GELU, SID_GELU } sid_text_activation;

typedef struct {
    size_t in_channels, out_channels; /* equal: the latent's channels */
    size_t levels;
    size_t channels[SID_MAX_LEVELS]; /* width per level, full resolution first */
    size_t heads[SID_MAX_LEVELS];    /* number of attention heads per level */
    int attention[SID_MAX_LEVELS];   /* whether a level has transformers */
    size_t layers_per_block;         /* ResNets a level in the encoder; one more in the decoder */
    int linear_projection; /* whether the transformers' projections are linear maps, or else 1x1 convolutions */
    size_t context_size;   /* channels of the text context */
    size_t groups;
    float eps; /* the ResNets' norms add it to the variance; the transformers' add 1e-6 */
    sid_prediction prediction;
    size_t sample_size; /* native latent height and width */
} sid_unet_config;

typedef enum { SID_VAE_KL, SID_VAE_TINY } sid_vae_kind;
#define SID_MAX_TINY_BLOCKS 8

typedef struct {
    sid_vae_kind kind;
    size_t image_channels, latent_channels;
    size_t levels;
    size_t channels[SID_MAX_LEVELS]; /* SID_VAE_TINY: all the same */
    float scaling_factor;
    /* SID_VAE_KL */
    size_t layers_per_block;
    size_t groups;
    int mid_attention, quant_conv, post_quant_conv;
    /* SID_VAE_TINY: blocks per level, in the order in which they run */
    size_t encoder_blocks[SID_MAX_LEVELS], decoder_blocks[SID_MAX_LEVELS];
} sid_vae_config;

typedef struct {
    size_t vocabulary, positions, channels, hidden, layers, heads;
    sid_text_activation activation;
} sid_text_config;

typedef struct {
    sid_unet_config unet; /* levels is 0 where the model is a VAE alone */
    sid_vae_config vae;
    sid_text_config text;           /* layers is 0 where there is no text encoder */
    double alphas[SID_TRAIN_STEPS]; /* cumulative product of 1 - beta */
} sid_config;

/* Checks every number's range and that they fit each other, so that model code needs no checks of its own. */
int sid_config_check(const sid_config *config);

/* The decoder's layers are numbered from the lowest resolution up, layers_per_block + 1 a level. */
static inline size_t sid_layer_count(const sid_unet_config *c) { return c->levels * (c->layers_per_block + 1); }
static inline size_t sid_layer_level(const sid_unet_config *c, size_t layer) {
    return c->levels - 1 - layer / (c->layers_per_block + 1);
}
static inline int sid_layer_has_attention(const sid_unet_config *c, size_t layer) {
    return layer < sid_layer_count(c) && c->attention[sid_layer_level(c, layer)];
}
static inline size_t sid_layer_channels(const sid_unet_config *c, size_t layer) {
    return c->channels[sid_layer_level(c, layer)];
}
/* Tokens of a layer where the latent is h x w. */
static inline size_t sid_layer_tokens(const sid_unet_config *c, size_t layer, size_t h, size_t w) {
    return (h >> sid_layer_level(c, layer)) * (w >> sid_layer_level(c, layer));
}

/* Latent height and width must be multiples of this. */
static inline size_t sid_latent_multiple(const sid_unet_config *c) {
    return c->levels ? (size_t)1 << (c->levels - 1) : 1;
}
/* Image pixels per latent pixel. */
static inline size_t sid_vae_factor(const sid_vae_config *c) { return (size_t)1 << (c->levels - 1); }

#endif
