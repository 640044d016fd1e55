/* The backend's convolutions. When a convolution is opened, its algorithm is chosen for the usual size. */
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "core/ops.h"
#include "cpu/direct.h"
#include "cpu/winograd.h"

#define PHASES 4

/* A convolution of a doubled input is four 2x2 convolutions of the input itself, one for each parity of the output's
 * row and column. That takes 4/9 of the multiplications and no doubled input. */
typedef struct {
    sid_conv base;
    sid_direct *parts[PHASES]; /* either one, or one for each parity (2 * row + column) */
    sid_winograd *winograd;    /* used instead of parts where it is faster */
} cpu_conv;

/* Turns one dimension's three taps on the doubled input into two taps on the input. Even outputs see the preceding
 * pixel once and their own twice; odd ones see their own twice and the following one once. */
static void fold_taps(float *two, size_t two_step, const float *three, size_t three_step, int odd) {
    two[0] = odd ? three[0] + three[three_step] : three[0];
    two[two_step] = odd ? three[2 * three_step] : three[three_step] + three[2 * three_step];
}

/* Folds weights (out, in, 3, 3) to (out, in, 2, 2) for one parity. */
static void fold_weights(float *folded, const float *weights, size_t count, int odd_row, int odd_column) {
    for (size_t i = 0; i < count; i++, folded += 4, weights += 9) {
        float rows[2][3];
        for (size_t x = 0; x < 3; x++) fold_taps(&rows[0][x], 3, weights + x, 3, odd_row);
        for (size_t y = 0; y < 2; y++) fold_taps(folded + 2 * y, 1, rows[y], 1, odd_column);
    }
}

static int open_parity(sid_cpu *cpu, cpu_conv *c, size_t parity, const float *weights, const sid_weight *bias) {
    const sid_conv_shape *s = &c->base.shape;
    size_t odd_row = parity / 2, odd_column = parity % 2, pairs = s->out * s->in;
    sid_direct_shape shape = {s->in,          s->out,  2,          1,         1 - odd_row,
                              1 - odd_column, odd_row, odd_column, s->height, s->width};
    float *folded = malloc(pairs * 4 * sizeof *folded);
    if (!folded) return sid_fail(SID_EMEMORY, "out of memory");
    fold_weights(folded, weights, pairs, (int)odd_row, (int)odd_column);
    sid_weight weight = {
        .dtype = SID_F32, .rank = 4, .shape = {s->out, s->in, 2, 2}, .stride = s->in * 4, .data = folded};
    int status = sid_direct_open(cpu, &c->parts[parity], &shape, &weight, bias);
    free(folded);
    return status;
}

static int open_doubled(sid_cpu *cpu, cpu_conv *c, const sid_weight *weight, const sid_weight *bias) {
    float *weights = malloc(sid_weight_count(weight) * sizeof *weights);
    if (!weights) return sid_fail(SID_EMEMORY, "out of memory");
    int status = sid_weight_floats(weights, weight);
    for (size_t parity = 0; parity < PHASES && status == SID_OK; parity++)
        status = open_parity(cpu, c, parity, weights, bias);
    free(weights);
    return status;
}

static int open_with_bias(sid_cpu *cpu, cpu_conv *c, const sid_weight *weight, const sid_weight *bias) {
    const sid_conv_shape *s = &c->base.shape;
    if (s->upsample) return open_doubled(cpu, c, weight, bias);
    if (sid_winograd_suits(cpu, s)) return sid_winograd_open(cpu, &c->winograd, s, weight, bias);
    sid_direct_shape shape = {s->in,         s->out,       s->kernel,    s->stride, s->pad_before,
                              s->pad_before, s->pad_after, s->pad_after, s->height, s->width};
    return sid_direct_open(cpu, &c->parts[0], &shape, weight, bias);
}

int sid_cpu_conv_open(sid_backend *backend, sid_conv **conv, const sid_conv_shape *shape, const sid_weight *weight,
                      const sid_weight *bias) {
    cpu_conv *c = calloc(1, sizeof *c);
    float *zeros = calloc(shape->out, sizeof *zeros);
    sid_weight no_bias = {.dtype = SID_F32, .rank = 1, .shape = {shape->out}, .stride = 1, .data = zeros};
    int status = SID_EMEMORY;
    *conv = (sid_conv *)c;
    if (c && zeros) {
        c->base.shape = *shape;
        status = open_with_bias((sid_cpu *)backend, c, weight, bias ? bias : &no_bias);
    } else {
        sid_fail(SID_EMEMORY, "out of memory");
    }
    free(zeros);
    return status;
}

void sid_cpu_conv_close(sid_conv **conv) {
    cpu_conv *c = (cpu_conv *)*conv;
    if (!c) return;
    for (size_t i = 0; i < PHASES; i++) sid_direct_close(&c->parts[i]);
    sid_winograd_close(&c->winograd);
    free(c);
    *conv = NULL;
}

/* Copies the pixels of src to those of dst, which is twice as high and wide, with the given parity. */
static void scatter(sid_tensor *dst, const sid_tensor *src, size_t parity, int threads) {
    size_t pixel = src->c * sid_dtype_size(src->dtype), rows = src->n * src->h;
    const char *from = src->data;
    char *to = (char *)dst->data + (parity / 2 * dst->w + parity % 2) * pixel;
#pragma omp parallel for num_threads(threads)
    for (size_t row = 0; row < rows; row++)
        for (size_t x = 0; x < src->w; x++)
            memcpy(to + (row * 2 * dst->w + 2 * x) * pixel, from + (row * src->w + x) * pixel, pixel);
}

static int run_doubled(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, cpu_conv *c) {
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor part;
    SID_TRY(sid_arena_tensor(&exec->arena, &part, dst->dtype, src->n, src->h, src->w, dst->c));
    for (size_t parity = 0; parity < PHASES; parity++) {
        SID_TRY(sid_direct_run(exec, &part, src, c->parts[parity], &(sid_post){0}));
        if (!sid_measuring(&exec->arena)) scatter(dst, &part, parity, exec->backend->threads);
    }
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

int sid_cpu_conv(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_conv *conv, const sid_post *post) {
    cpu_conv *c = (cpu_conv *)conv;
    if (c->base.shape.upsample) return run_doubled(exec, dst, src, c);
    return c->winograd ? sid_winograd_run(exec, dst, src, c->winograd, post)
                       : sid_direct_run(exec, dst, src, c->parts[0], post);
}
