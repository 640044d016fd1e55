/* Group and layer normalization. Each instruction set's file includes this and defines SID_TARGET. */
#ifndef SID_CPU_NORM_TMPL_H
#define SID_CPU_NORM_TMPL_H

#include "cpu/floats.h"
#include "cpu/kernels.h"

#include <math.h>
#include <omp.h>

/* Group norm reads its input twice: for the statistics, then to apply them. The statistics are computed for blocks
 * of pixels, whose size never depends on the threads. Within a block they are float32 sums of differences from the
 * block's first pixel, so that a large mean causes no cancellation; across blocks they are merged in float64 by
 * Chan's formula. */
#define SID_NORM_BLOCK 64

/* The statistics of one group's values in one block. */
typedef struct {
    double mean, squares; /* squares: the sum of the squared differences from the mean */
} spread;

/* The sizes and the scratch of one call. */
typedef struct {
    size_t pixels, blocks, channels;
    size_t spread_count;      /* n * blocks * groups */
    size_t coefficient_count; /* n * 2 * channels: factor and offset */
    size_t sum_count;         /* 3 * channels for each thread */
    const float *add;         /* NULL, or sample n's values at n * add_step */
    size_t add_step;
    spread *spreads;
    float *coefficients, *sums;
} group_norm_plan;

static group_norm_plan plan_group_norm(const sid_group_norm *norm, int threads) {
    group_norm_plan p = {.pixels = norm->a->h * norm->a->w, .channels = norm->a->c + (norm->b ? norm->b->c : 0)};
    p.blocks = (p.pixels + SID_NORM_BLOCK - 1) / SID_NORM_BLOCK;
    p.spread_count = norm->a->n * p.blocks * norm->groups;
    p.coefficient_count = norm->a->n * 2 * p.channels;
    p.sum_count = (size_t)threads * 3 * p.channels;
    if (norm->add) p.add = norm->add->data, p.add_step = norm->add->n > 1 ? norm->add->stride : 0;
    return p;
}

/* Stores the first pixel in pivot[c], and the sums of the pixels' differences from it and of their squares in sum[c]
 * and squares[c], for channels 0 .. c - 1 of src. */
SID_TARGET static void sum_pixels(const void *src, sid_dtype dtype, size_t stride, size_t pixels, size_t c,
                                  float *pivot, float *sum, float *squares) {
    float buffer[SID_CHUNK];
    for (size_t first = 0; first < c; first += SID_CHUNK) {
        size_t count = c - first < SID_CHUNK ? c - first : SID_CHUNK;
        const float *x = read_floats(buffer, src, dtype, first, count);
        for (size_t i = 0; i < count; i++) pivot[first + i] = x[i], sum[first + i] = squares[first + i] = 0;
    }
    for (size_t pixel = 1; pixel < pixels; pixel++)
        for (size_t first = 0; first < c; first += SID_CHUNK) {
            size_t count = c - first < SID_CHUNK ? c - first : SID_CHUNK;
            const float *x = read_floats(buffer, src, dtype, pixel * stride + first, count);
            float *of_pivot = pivot + first, *of_sum = sum + first, *of_squares = squares + first;
#pragma omp simd
            for (size_t i = 0; i < count; i++) {
                float d = x[i] - of_pivot[i];
                of_sum[i] += d;
                of_squares[i] = SID_FMA(d, d, of_squares[i]);
            }
        }
}

/* Turns the channels' sums in one block into the groups' spreads. */
SID_TARGET static void spread_groups(spread *spreads, size_t groups, size_t channels, size_t pixels, const float *add,
                                     const float *pivot, const float *sum, const float *squares) {
    size_t size = channels / groups;
    for (size_t g = 0; g < groups; g++) {
        size_t first = g * size;
        double reference = (double)pivot[first] + (add ? add[first] : 0), total = 0, total_squares = 0;
        for (size_t c = first; c < first + size; c++) {
            double apart = (double)pivot[c] + (add ? add[c] : 0) - reference;
            total += sum[c] + (double)pixels * apart;
            total_squares += squares[c] + apart * (2 * (double)sum[c] + (double)pixels * apart);
        }
        double mean = total / (double)(pixels * size);
        spreads[g] = (spread){reference + mean, total_squares - mean * total};
    }
}

/* Computes factor[c] and offset[c] for one group: the norm is x * factor + offset. */
SID_TARGET static void group_coefficients(const group_norm_plan *p, const sid_group_norm *norm, size_t n, size_t g) {
    size_t size = p->channels / norm->groups;
    double count = 0, mean = 0, squares = 0;
    for (size_t block = 0; block < p->blocks; block++) {
        spread s = p->spreads[(n * p->blocks + block) * norm->groups + g];
        size_t pixels =
            p->pixels - block * SID_NORM_BLOCK < SID_NORM_BLOCK ? p->pixels - block * SID_NORM_BLOCK : SID_NORM_BLOCK;
        double added = (double)(pixels * size), apart = s.mean - mean;
        squares += s.squares + apart * apart * (count * added / (count + added));
        count += added;
        mean += apart * (added / count);
    }
    double inverse = 1 / sqrt((squares > 0 ? squares : 0) / count + norm->eps);
    float *factor = p->coefficients + n * 2 * p->channels, *offset = factor + p->channels;
    for (size_t c = g * size; c < (g + 1) * size; c++) {
        double add = p->add ? p->add[n * p->add_step + c] : 0;
        factor[c] = (float)(inverse * norm->scale[c]);
        offset[c] = (float)((add - mean) * inverse * norm->scale[c] + norm->shift[c]);
    }
}

SID_TARGET static void apply_pixels(void *dst, size_t dst_stride, const sid_tensor *src, size_t pixel, size_t pixels,
                                    const float *factor, const float *offset, int silu) {
    float in[SID_CHUNK], out[SID_CHUNK];
    for (size_t i = 0; i < pixels; i++)
        for (size_t first = 0; first < src->c; first += SID_CHUNK) {
            size_t count = src->c - first < SID_CHUNK ? src->c - first : SID_CHUNK;
            const float *x = read_floats(in, src->data, src->dtype, (pixel + i) * src->stride + first, count);
            float *y = floats_of(out, dst, src->dtype, (pixel + i) * dst_stride + first);
            const float *of_factor = factor + first, *of_offset = offset + first;
            if (silu) {
#pragma omp simd
                for (size_t c = 0; c < count; c++) {
                    float z = SID_FMA(x[c], of_factor[c], of_offset[c]);
                    y[c] = z / (1 + sid_exp2(-SID_LOG2E * z));
                }
            } else {
#pragma omp simd
                for (size_t c = 0; c < count; c++) y[c] = SID_FMA(x[c], of_factor[c], of_offset[c]);
            }
            write_floats(dst, src->dtype, (pixel + i) * dst_stride + first, count, y);
        }
}

static void group_norm(void *dst, const sid_group_norm *norm, void *scratch, int threads) {
    const sid_tensor *a = norm->a, *b = norm->b;
    group_norm_plan p = plan_group_norm(norm, threads);
    p.spreads = scratch;
    p.coefficients = (float *)(p.spreads + p.spread_count);
    p.sums = p.coefficients + p.coefficient_count;
    const size_t size = sid_dtype_size(a->dtype), tasks = a->n * p.blocks;
#pragma omp parallel num_threads(threads)
    {
        float *pivot = p.sums + (size_t)omp_get_thread_num() * 3 * p.channels;
        float *sum = pivot + p.channels, *squares = sum + p.channels;
#pragma omp for
        for (size_t i = 0; i < tasks; i++) {
            size_t n = i / p.blocks, block = i % p.blocks, pixel = n * p.pixels + block * SID_NORM_BLOCK;
            size_t pixels =
                p.pixels - block * SID_NORM_BLOCK < SID_NORM_BLOCK ? p.pixels - block * SID_NORM_BLOCK : SID_NORM_BLOCK;
            sum_pixels((char *)a->data + pixel * a->stride * size, a->dtype, a->stride, pixels, a->c, pivot, sum,
                       squares);
            if (b)
                sum_pixels((char *)b->data + pixel * b->stride * size, b->dtype, b->stride, pixels, b->c, pivot + a->c,
                           sum + a->c, squares + a->c);
            spread_groups(p.spreads + i * norm->groups, norm->groups, p.channels, pixels,
                          p.add ? p.add + n * p.add_step : NULL, pivot, sum, squares);
        }
#pragma omp for
        for (size_t i = 0; i < a->n * norm->groups; i++)
            group_coefficients(&p, norm, i / norm->groups, i % norm->groups);
#pragma omp for
        for (size_t i = 0; i < tasks; i++) {
            size_t n = i / p.blocks, block = i % p.blocks, pixel = n * p.pixels + block * SID_NORM_BLOCK;
            size_t pixels =
                p.pixels - block * SID_NORM_BLOCK < SID_NORM_BLOCK ? p.pixels - block * SID_NORM_BLOCK : SID_NORM_BLOCK;
            const float *factor = p.coefficients + n * 2 * p.channels, *offset = factor + p.channels;
            apply_pixels(dst, p.channels, a, pixel, pixels, factor, offset, norm->silu);
            if (b)
                apply_pixels((char *)dst + a->c * size, p.channels, b, pixel, pixels, factor + a->c, offset + a->c,
                             norm->silu);
        }
    }
}

SID_TARGET static void normalize_row(void *dst, const void *src, sid_dtype dtype, size_t c, const float *scale,
                                     const float *shift, float eps) {
    float in[SID_CHUNK], out[SID_CHUNK];
    const float *row = c <= SID_CHUNK ? read_floats(in, src, dtype, 0, c) : NULL; /* converted only once if it fits */
    float sum = 0, squares = 0;
    for (size_t first = 0; first < c; first += SID_CHUNK) {
        size_t count = c - first < SID_CHUNK ? c - first : SID_CHUNK;
        const float *x = row ? row : read_floats(in, src, dtype, first, count);
#pragma omp simd reduction(+ : sum)
        for (size_t i = 0; i < count; i++) sum += x[i];
    }
    float mean = sum / (float)c;
    for (size_t first = 0; first < c; first += SID_CHUNK) {
        size_t count = c - first < SID_CHUNK ? c - first : SID_CHUNK;
        const float *x = row ? row : read_floats(in, src, dtype, first, count);
#pragma omp simd reduction(+ : squares)
        for (size_t i = 0; i < count; i++) squares += (x[i] - mean) * (x[i] - mean);
    }
    float inverse = 1 / sqrtf(squares / (float)c + eps);
    for (size_t first = 0; first < c; first += SID_CHUNK) {
        size_t count = c - first < SID_CHUNK ? c - first : SID_CHUNK;
        const float *x = row ? row : read_floats(in, src, dtype, first, count);
        float *y = floats_of(out, dst, dtype, first);
        const float *of_scale = scale + first, *of_shift = shift + first;
#pragma omp simd
        for (size_t i = 0; i < count; i++) y[i] = SID_FMA((x[i] - mean) * inverse, of_scale[i], of_shift[i]);
        write_floats(dst, dtype, first, count, y);
    }
}

static void layer_norm(const sid_tensor *dst, const sid_tensor *src, const float *scale, const float *shift, float eps,
                       int threads) {
    const size_t size = sid_dtype_size(src->dtype), rows = sid_rows(src);
#pragma omp parallel for num_threads(threads)
    for (size_t row = 0; row < rows; row++)
        normalize_row((char *)dst->data + row * dst->stride * size, (const char *)src->data + row * src->stride * size,
                      src->dtype, src->c, scale, shift, eps);
}

static void fill_norms(sid_kernels *kernels) {
    kernels->group_norm = group_norm;
    kernels->layer_norm = layer_norm;
}

#endif
