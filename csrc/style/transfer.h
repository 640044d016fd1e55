/* From images to an image: the whole method in one call. */
#ifndef SID_STYLE_TRANSFER_H
#define SID_STYLE_TRANSFER_H

#include "style/image.h"
#include "style/styleid.h"

/* AdaIN from content to the styles, sampling with injection, decoding. picture (H, W, 3); z, of the content's shape: the
 * latent that is sampled. content, styles: latents of one sample. styles and their weights are the injection's
 * (injection->style_count of them), also where injection->content is NULL and nothing is injected. */
typedef struct {
    const sid_planes *content, *styles;
    int adain;
} sid_latents;
int sid_inject_styles(sid_model *model, uint8_t *picture, sid_planes *z, const sid_latents *latents,
                      const sid_sampling *how);

/* Encodes and inverts both images, as one batch where their sizes agree, then sid_inject_styles(). The images' sides are
 * multiples of sid_vae_factor() * sid_latent_multiple(). gamma, temperature [steps][layers].
 * recompute: no features are kept, but evaluated again for each sampling step.
 * The progress counts evaluations of single images and gets no latents. */
typedef struct {
    const sid_schedule *schedule;
    const sid_prompt *prompt;
    const size_t *layers;
    size_t layer_count;
    const float *gamma, *temperature;
    int adain, recompute;
    const sid_progress *progress;
} sid_transferring;
int sid_transfer(sid_model *model, uint8_t *picture, const sid_image *content, const sid_image *style,
                 const sid_transferring *how);

#endif
