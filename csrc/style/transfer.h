/* From images to an image: the whole method in one call. */
#ifndef SID_STYLE_TRANSFER_H
#define SID_STYLE_TRANSFER_H

#include "style/image.h"
#include "style/styleid.h"

/* Samples z as sid_denoise() does, and decodes it: image (H, W, 3). */
int sid_inject_styles(sid_model *model, uint8_t *image, sid_planes *z, const sid_sampling *how);

/* How one image gets the style of another. */
typedef struct {
    const sid_schedule *schedule;
    const sid_prompt *prompt;
    const size_t *layers; /* that are injected */
    size_t layer_count;
    const float *gamma, *temperature; /* [steps][layers] */
    int adain;                        /* whether the sampling starts from the AdaIN of both zT, or from the content's */
    const sid_progress *progress;     /* counts evaluations of single images, and gets no latents */
} sid_transferring;

/* Encodes and inverts both images, as one batch where their sizes agree, then sid_inject_styles(). The images' sides
 * are multiples of sid_vae_factor() * sid_latent_multiple(). */
int sid_transfer(sid_model *model, uint8_t *image, const sid_image *content, const sid_image *style,
                 const sid_transferring *how);

#endif
