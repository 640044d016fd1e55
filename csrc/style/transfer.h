/* From pictures to a picture: the whole method in one call. */
#ifndef SID_STYLE_TRANSFER_H
#define SID_STYLE_TRANSFER_H

#include "style/image.h"
#include "style/styleid.h"

typedef struct {
    const float *z; /* (C, h, w) */
    size_t h, w;
} sid_latent;

/* AdaIN from content to the styles, sampling with injection, decoding. picture (H, W, 3); z (C, h, w): the latent that
 * is sampled, what the progress sees. styles and their weights are the injection's (injection->style_count of them),
 * also where injection->content is NULL and nothing is injected. */
int sid_inject_styles(sid_model *model, const sid_schedule *schedule, uint8_t *picture, float *z,
                      const sid_latent *content, const sid_latent *styles, int adain, const sid_prompt *prompt,
                      const sid_injection *injection, const sid_progress *progress);

/* Encodes and inverts both pictures, as one batch where their sizes agree, then sid_inject_styles(). The pictures'
 * sides are multiples of sid_vae_factor() * sid_latent_multiple(). gamma, temperature [steps][layers].
 * recompute: no features are kept, but evaluated again for each sampling step.
 * The progress counts evaluations of single pictures and gets no latents. */
int sid_transfer(sid_model *model, const sid_schedule *schedule, uint8_t *picture, const sid_image *content,
                 const sid_image *style, const size_t *layers, size_t layer_count, int adain, int recompute,
                 const sid_prompt *prompt, const float *gamma, const float *temperature, const sid_progress *progress);

#endif
