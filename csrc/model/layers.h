/* The small parts that blocks are made of, taken from the named weights. */
#ifndef SID_MODEL_LAYERS_H
#define SID_MODEL_LAYERS_H

#include "core/ops.h"

/* Where parts come from while a model is built. They are opened in the order in which they run, so that each can be
 * packed for the size that it has there. */
typedef struct {
    sid_backend *backend;
    sid_weights *weights;
    size_t height, width; /* of the next part's input at the model's native size */
} sid_builder;

typedef struct {
    float *scale, *shift; /* [channels], one block of the backend's memory */
} sid_norm;

/* Prints the name of a part, which ".weight" and ".bias" follow. */
#define SID_NAME_SIZE 192
int sid_name(char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));

int sid_norm_open(sid_builder *builder, sid_norm *norm, const char *prefix, size_t channels);
void sid_norm_close(sid_backend *backend, sid_norm *norm);

/* The builder goes on with the size of the convolution's output. */
int sid_conv_open(sid_builder *builder, sid_conv **conv, const char *prefix, sid_conv_shape shape);
void sid_conv_close(sid_backend *backend, sid_conv **conv);

/* Replaces x by its convolution, which has as many channels and the size that the shape makes of it. */
int sid_resample(sid_exec *exec, sid_tensor *x, sid_conv *conv);

/* 3x3, stride 1, same size. */
static inline sid_conv_shape sid_conv3x3(size_t in, size_t out) {
    return (sid_conv_shape){.in = in, .out = out, .kernel = 3, .stride = 1, .pad_before = 1, .pad_after = 1};
}
/* 3x3, to half the size, with zeros before the first pixel or not. */
static inline sid_conv_shape sid_conv_halving(size_t width, size_t pad_before) {
    return (sid_conv_shape){
        .in = width, .out = width, .kernel = 3, .stride = 2, .pad_before = pad_before, .pad_after = 1};
}
/* 3x3, of the doubled input. */
static inline sid_conv_shape sid_conv_doubling(size_t width) {
    sid_conv_shape shape = sid_conv3x3(width, width);
    shape.upsample = 1;
    return shape;
}

/* How a matrix product is stored. */
typedef enum {
    SID_PLAIN = 0,
    SID_NO_BIAS = 1,
    SID_CONV1X1 = 2 /* weights (out, in, 1, 1) */
} sid_linear_kind;

int sid_linear_open(sid_builder *builder, sid_linear **linear, const char *prefix, size_t in, size_t out, int kind);
/* Opens several products of the same input as one, stacked along out: the i-th has outs[i] channels. */
#define SID_MAX_PARTS 128
int sid_linear_open_stacked(sid_builder *builder, sid_linear **linear, size_t parts, char (*prefixes)[SID_NAME_SIZE],
                            size_t in, const size_t *outs, int kind);
/* A part of a product: rows first_row .. first_row + out - 1 and columns first_column .. first_column + in - 1 of a
 * (rows, columns) product, with those rows of its bias. */
typedef struct {
    size_t rows, columns, first_row, out, first_column, in;
} sid_linear_part;
int sid_linear_open_part(sid_builder *builder, sid_linear **linear, const char *prefix, const sid_linear_part *part,
                         int kind);
void sid_linear_close(sid_backend *backend, sid_linear **linear);

#endif
