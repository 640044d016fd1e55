/* Converts between images as Python has them, with interleaved pixels, and as the VAE takes them, planes in [-1, 1]. */
#ifndef SID_STYLE_IMAGE_H
#define SID_STYLE_IMAGE_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const void *pixels; /* (n, height, width, channels) */
    int is_float;       /* float32 in [0, 1], or else uint8 */
    size_t n, height, width, channels;
} sid_image;

/* planes (n, channels, height, width). */
void sid_image_to_planes(float *planes, const sid_image *image);

/* pixels (n, height, width, channels) from planes (n, channels, height, width) of any range, clamped to [-1, 1];
 * truncated to 8 bits, or else rounded half to even. A NaN gives 0. */
void sid_image_from_planes(uint8_t *pixels, const float *planes, size_t n, size_t height, size_t width, size_t channels,
                           int truncate);

#endif
