#include "style/image.h"

#include <math.h>

void sid_image_to_planes(float *planes, const sid_image *image) {
    size_t area = image->height * image->width, channels = image->channels;
    const float *numbers = image->pixels;
    const uint8_t *bytes = image->pixels;
    for (size_t n = 0; n < image->n; n++)
        for (size_t c = 0; c < channels; c++)
            for (size_t p = 0; p < area; p++) {
                size_t from = (n * area + p) * channels + c;
                *planes++ = image->is_float ? numbers[from] * 2.0f - 1.0f : (float)bytes[from] / 127.5f - 1.0f;
            }
}

static uint8_t to_byte(float x, int truncate) {
    /* Written so that a NaN fails both comparisons and ends as 0. */
    float unit = (x + 1.0f) / 2.0f;
    float level = unit > 0.0f ? (unit < 1.0f ? unit : 1.0f) * 255.0f : 0.0f;
    return (uint8_t)(truncate ? level : rintf(level));
}

void sid_image_from_planes(uint8_t *pixels, const float *planes, size_t n, size_t height, size_t width, size_t channels,
                           int truncate) {
    size_t area = height * width;
    for (size_t i = 0; i < n; i++)
        for (size_t p = 0; p < area; p++)
            for (size_t c = 0; c < channels; c++) *pixels++ = to_byte(planes[(i * channels + c) * area + p], truncate);
}
