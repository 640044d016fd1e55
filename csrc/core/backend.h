/* THE narrow interface between the model and the device that runs it. Only core/ops.c calls it.
 *
 * Every function but the open and close ones takes a sid_exec. While its arena measures, a function creates what it
 * needs for the shapes it sees (primitives, kernels), takes its scratch from the arena and touches no tensor data. */
#ifndef SID_CORE_BACKEND_H
#define SID_CORE_BACKEND_H

#include "core/arena.h"
#include "core/tensor.h"
#include "core/weights.h"

typedef struct sid_backend sid_backend;

/* What one pass through a model needs: the device and its memory. */
typedef struct {
    sid_backend *backend;
    sid_arena arena;
} sid_exec;

typedef struct {
    size_t in, out;              /* channels */
    size_t kernel, stride;       /* square: 1 or 3; 1 or 2 */
    size_t pad_before, pad_after; /* zeros on top and left, on bottom and right */
    int upsample;                /* the input is doubled by nearest neighbour first */
    int no_bias;
} sid_conv_shape;

/* A convolution and a matrix product with packed weights; a backend's own structures begin with these. */
typedef struct {
    sid_conv_shape shape;
} sid_conv;
typedef struct {
    size_t in, out;
} sid_linear;

typedef enum { SID_NO_ACTIVATION, SID_GELU_ERF, SID_GELU_QUICK } sid_activation;

/* What happens to a product before it is stored: dst = activation(product + bias) * factor + residual, and of that
 * the positive part where relu is set. */
typedef struct {
    sid_activation activation;
    const sid_tensor *factor;   /* NULL, or of dst's shape */
    const sid_tensor *residual; /* NULL, or of dst's shape; dst itself (the same pointer) accumulates */
    int relu;
} sid_post;

typedef struct {
    const sid_tensor *a, *b;  /* concatenated along the channels; b may be NULL. Both (n, h, w, *) */
    const float *channel_add; /* NULL, or [n][channels]: added to the input before anything else */
    const float *scale, *shift; /* [channels] */
    size_t groups;
    float eps;
    int silu; /* apply x * sigmoid(x) to the result */
} sid_group_norm;

/* One source of keys and values for the queries of one sample. */
typedef struct {
    const void *k, *v;
    size_t tokens;
    size_t k_stride, v_stride; /* elements from one token to the next */
    float bias;                /* added to all logits of this source: the logarithm of its weight */
    const float *query_bias;   /* NULL, or [queries]: added as well, to all logits of a query; may be -INFINITY */
    const float *key_bias;     /* NULL, or [tokens]: added as well, to all logits of a key; may be -INFINITY */
} sid_keys;

/* Of the logits scale * Q K^T, without biases, of all queries, keys and heads. */
typedef struct {
    double sum, squares;
    double of_means; /* the sum over queries and heads of keys * (mean over the keys)^2 */
    double largest;  /* from -INFINITY on */
} sid_moments;

/* softmax(scale * Q K^T + bias) V over the concatenation of all sources, for one sample and all heads.
 * Head i of a token is the channels i * head_size .. (i + 1) * head_size - 1. A query whose logits are all -INFINITY gets zeros. */
typedef struct {
    void *dst;
    const void *q;
    size_t queries, dst_stride, q_stride;
    const sid_keys *sources;
    size_t source_count;
    size_t heads, head_size;
    float scale;
    sid_moments *moments; /* NULL, or what is added to */
} sid_attention;

struct sid_backend {
    sid_dtype dtype; /* of every activation */
    int threads;
    size_t packed_bytes; /* of all packed weights */

    void (*close)(sid_backend **backend);

    /* Weight (out, in, kernel, kernel) and bias (out; NULL: none) in any stored dtype; packed at the first measuring
     * pass, until when they must stay valid. */
    int (*conv_open)(sid_backend *backend, sid_conv **conv, const sid_conv_shape *shape, const sid_weight *weight,
                     const sid_weight *bias);
    void (*conv_close)(sid_conv **conv);
    /* dst (n, h', w', out) in the backend's dtype or float32, src (n, h, w, in); dense.
     * Of post only residual and relu, and not even those with upsample. */
    int (*conv)(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_conv *conv, const sid_post *post);

    /* parts weights (out_i, in[, 1, 1]), stacked along out; bias NULL or one per part (out_i). */
    int (*linear_open)(sid_backend *backend, sid_linear **linear, size_t in, size_t out, size_t parts,
                       const sid_weight *const *weights, const sid_weight *const *biases);
    void (*linear_close)(sid_linear **linear);
    /* dst (rows, out), src (rows, in); either may be a slice of channels. */
    int (*linear)(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_linear *linear, const sid_post *post);

    /* dst (n, h, w, a.c + b.c); may be a itself where b is NULL. */
    int (*group_norm)(sid_exec *exec, sid_tensor *dst, const sid_group_norm *norm);
    /* dst, src (rows, c); scale, shift [c]. */
    int (*layer_norm)(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, const float *scale, const float *shift,
                      float eps);
    int (*attention)(sid_exec *exec, const sid_attention *problems, size_t count);
    /* dst = a * x + b * y, of one shape; dtypes may differ; y may be NULL. dst may be x or y. */
    int (*combine)(sid_exec *exec, sid_tensor *dst, float a, const sid_tensor *x, float b, const sid_tensor *y);
    /* Row by row: dst = a[row] * x + (1 - a[row]) * y, of one shape in the backend's dtype. dst may be x or y. */
    int (*blend_rows)(sid_exec *exec, sid_tensor *dst, const float *a, const sid_tensor *x, const sid_tensor *y);
    /* (n, c, h, w) float32 <-> (n, h, w, c) in the backend's dtype, multiplied by factor on the way. */
    int (*from_planes)(sid_exec *exec, sid_tensor *dst, const float *planes, float factor);
    int (*to_planes)(sid_exec *exec, float *planes, const sid_tensor *src, float factor);
};

/* dtype SID_F32 or SID_BF16; threads >= 1. */
int sid_cpu_open(sid_backend **backend, sid_dtype dtype, int threads);

#endif
