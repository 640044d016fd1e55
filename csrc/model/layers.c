#include "model/layers.h"

#include <stdarg.h>
#include <stdio.h>

#include "core/err.h"

int sid_name(char *name, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(name, SID_NAME_SIZE, format, arguments);
    va_end(arguments);
    return length >= 0 && length < SID_NAME_SIZE ? SID_OK : sid_fail(SID_EINTERNAL, "a weight's name is too long");
}

int sid_norm_open(sid_builder *builder, sid_norm *norm, const char *prefix, size_t channels) {
    const sid_weight *parts[2];
    SID_TRY(sid_weights_take(builder->weights, &parts[0], prefix, "weight", 1, &channels));
    SID_TRY(sid_weights_take(builder->weights, &parts[1], prefix, "bias", 1, &channels));
    SID_TRY(builder->backend->floats_open(builder->backend, &norm->scale, 2, parts));
    norm->shift = norm->scale + channels;
    return SID_OK;
}

void sid_norm_close(sid_backend *backend, sid_norm *norm) {
    sid_memory_give(&backend->memory, norm->scale);
    *norm = (sid_norm){0};
}

int sid_conv_open(sid_builder *builder, sid_conv **conv, const char *prefix, sid_conv_shape shape) {
    size_t dims[] = {shape.out, shape.in, shape.kernel, shape.kernel};
    const sid_weight *weight, *bias = NULL;
    SID_TRY(sid_weights_take(builder->weights, &weight, prefix, "weight", 4, dims));
    if (!shape.no_bias) SID_TRY(sid_weights_take(builder->weights, &bias, prefix, "bias", 1, dims));
    shape.height = builder->height;
    shape.width = builder->width;
    builder->height = sid_conv_size(&shape, builder->height);
    builder->width = sid_conv_size(&shape, builder->width);
    return builder->backend->conv_open(builder->backend, conv, &shape, weight, bias);
}

void sid_conv_close(sid_backend *backend, sid_conv **conv) {
    if (*conv) backend->conv_close(conv);
}

int sid_resample(sid_exec *exec, sid_tensor *x, sid_conv *conv) {
    sid_tensor out;
    SID_TRY(sid_new(exec, &out, x->n, sid_conv_size(&conv->shape, x->h), sid_conv_size(&conv->shape, x->w), x->c));
    SID_TRY(sid_conv2d(exec, &out, x, conv, NULL));
    *x = out;
    return SID_OK;
}

static int take_linear(sid_builder *builder, const sid_weight **weight, const sid_weight **bias, const char *prefix,
                       size_t rows, size_t columns, int kind) {
    size_t shape[] = {rows, columns, 1, 1};
    *bias = NULL;
    SID_TRY(sid_weights_take(builder->weights, weight, prefix, "weight", kind & SID_CONV1X1 ? 4 : 2, shape));
    if (!(kind & SID_NO_BIAS)) SID_TRY(sid_weights_take(builder->weights, bias, prefix, "bias", 1, shape));
    return SID_OK;
}

int sid_linear_open_stacked(sid_builder *builder, sid_linear **linear, size_t parts, char (*prefixes)[SID_NAME_SIZE],
                            size_t in, const size_t *outs, int kind) {
    const sid_weight *weights[SID_MAX_PARTS], *biases[SID_MAX_PARTS];
    sid_linear_shape shape = {.in = in, .rows = builder->height * builder->width};
    if (parts > SID_MAX_PARTS) return sid_fail(SID_EINTERNAL, "too many products to stack");
    for (size_t i = 0; i < parts; shape.out += outs[i++])
        SID_TRY(take_linear(builder, &weights[i], &biases[i], prefixes[i], outs[i], in, kind));
    return builder->backend->linear_open(builder->backend, linear, &shape, parts, weights,
                                         kind & SID_NO_BIAS ? NULL : biases);
}

int sid_linear_open(sid_builder *builder, sid_linear **linear, const char *prefix, size_t in, size_t out, int kind) {
    return sid_linear_open_part(builder, linear, prefix, &(sid_linear_part){out, in, 0, out, 0, in}, kind);
}

int sid_linear_open_part(sid_builder *builder, sid_linear **linear, const char *prefix, const sid_linear_part *p,
                         int kind) {
    const sid_weight *weight, *bias;
    SID_TRY(take_linear(builder, &weight, &bias, prefix, p->rows, p->columns, kind));
    sid_weight part = sid_weight_rows(weight, p->first_row, p->out), bias_part;
    part = sid_weight_columns(&part, p->first_column, p->in);
    const sid_weight *parts[] = {&part}, *biases[] = {&bias_part};
    if (bias) bias_part = sid_weight_rows(bias, p->first_row, p->out);
    sid_linear_shape shape = {p->in, p->out, builder->height * builder->width};
    return builder->backend->linear_open(builder->backend, linear, &shape, 1, parts, bias ? biases : NULL);
}

void sid_linear_close(sid_backend *backend, sid_linear **linear) {
    if (*linear) backend->linear_close(linear);
}
