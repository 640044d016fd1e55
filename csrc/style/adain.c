#include "style/adain.h"

#include <math.h>

static void moments(double *mean, double *deviation, const float *plane, size_t pixels) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < pixels; i++) sum += plane[i];
    *mean = sum / (double)pixels;
    for (size_t i = 0; i < pixels; i++) squares += (plane[i] - *mean) * (plane[i] - *mean);
    *deviation = sqrt(squares / (double)(pixels - 1));
}

void sid_adain(sid_planes *dst, const sid_planes *content, const sid_planes *style, float epsilon) {
    const size_t pixels = content->h * content->w, style_pixels = style->h * style->w;
    for (size_t c = 0; c < content->c; c++) {
        double content_mean, content_deviation, style_mean, style_deviation;
        moments(&content_mean, &content_deviation, content->data + c * pixels, pixels);
        moments(&style_mean, &style_deviation, style->data + c * style_pixels, style_pixels);
        double factor = style_deviation / (content_deviation + epsilon);
        for (size_t i = c * pixels; i < (c + 1) * pixels; i++)
            dst->data[i] = (float)(factor * (content->data[i] - content_mean) + style_mean);
    }
}
