/* Adaptive instance normalisation of latents, on the host. */
#ifndef SID_STYLE_ADAIN_H
#define SID_STYLE_ADAIN_H

#include "core/tensor.h"

/* dst = std(style) * (content - mean(content)) / (std(content) + epsilon) + mean(style) per channel, of one sample; dst
 * is of the content's shape. The statistics are over each image's own pixels; std is the unbiased one. */
void sid_adain(sid_planes *dst, const sid_planes *content, const sid_planes *style, float epsilon);

#endif
