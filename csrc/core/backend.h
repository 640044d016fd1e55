/* THE narrow interface between the model and the device that runs it. Only core/ops.c calls its operations.
 *
 * The memory rule: every pointer in tensors, planes, norms, biases and shares is memory of the backend, taken from
 * backend->memory or from an arena over it. Only the backend dereferences it; only `write` and `read` cross to the
 * host. Weights that are opened, and the numbers in the parameter structures themselves, are the host's.
 *
 * Every operation takes a sid_exec. While its arena measures, an operation creates what it needs for the shapes it sees
 * (primitives, kernels), takes its scratch from the arena and touches no memory; write, read, copy and zero are not
 * called then. Operations of one exec take effect in the order in which they were called; a backend may return before
 * they are done. */
#ifndef SID_CORE_BACKEND_H
#define SID_CORE_BACKEND_H

#include "core/arena.h"
#include "core/tensor.h"
#include "core/weights.h"

typedef struct sid_backend sid_backend;

/* What one pass through a model needs: the device and its memory. {.backend = b} is one outside of any run: it has no
 * arena, and write, read, copy, zero, mix and combine are what it can be used for, in turn with the backend's runs. */
typedef struct {
    sid_backend *backend;
    sid_arena arena;
    void *run; /* the backend's own, set by begin and cleared by end */
} sid_exec;

typedef struct {
    size_t in, out;               /* channels */
    size_t kernel, stride;        /* square: 1 or 3; 1 or 2 */
    size_t pad_before, pad_after; /* zeros on top and left, on bottom and right */
    int upsample;                 /* the input is doubled by nearest neighbour first */
    int no_bias;
    size_t height, width; /* of the usual input: weights may be packed for it, other sizes work as well */
} sid_conv_shape;

typedef struct {
    size_t in, out;
    size_t rows; /* of the usual input, as above */
} sid_linear_shape;

/* A convolution and a matrix product with packed weights; a backend's own structures begin with these. */
typedef struct {
    sid_conv_shape shape;
} sid_conv;
typedef struct {
    sid_linear_shape shape;
} sid_linear;

typedef enum { SID_NO_ACTIVATION, SID_GELU_ERF, SID_GELU_QUICK, SID_SILU } sid_activation;

/* What happens to a product before it is stored: dst = activation(product + bias) * factor + residual, and of that
 * the positive part where relu is set. SID_SILU comes without factor and residual. */
typedef struct {
    sid_activation activation;
    const sid_tensor *factor;   /* NULL, or of dst's shape */
    const sid_tensor *residual; /* NULL, or of dst's shape; dst itself (the same pointer) accumulates */
    int relu;
} sid_post;

typedef struct {
    const sid_tensor *a, *b;    /* concatenated along the channels; b may be NULL. Both (n, h, w, *) */
    const sid_tensor *add;      /* NULL, or float32 (1 or n, 1, 1, channels): added to the input before anything else */
    const float *scale, *shift; /* [channels] */
    size_t groups;
    float eps;
    int silu; /* apply x * sigmoid(x) to the result */
} sid_group_norm;

/* One source of keys and values. */
typedef struct {
    sid_tensor k, v; /* (1 or n, *, *, channels) in the backend's dtype, as many tokens each; 1: for all samples */
    float bias;      /* added to all logits of this source: the logarithm of its weight */
    const float *query_bias; /* NULL, or [queries]: added as well, to all logits of a query; may be -INFINITY */
    const float *key_bias;   /* NULL, or [tokens]: added as well, to all logits of a key; may be -INFINITY */
} sid_keys;

/* softmax(scale * Q K^T + biases) V over the concatenation of all sources, for every sample and head. Head i of a token
 * is the channels i * size .. (i + 1) * size - 1, size = channels / heads. A query whose logits are all -INFINITY gets
 * zeros. Biases are the same for all samples and heads. */
typedef struct {
    const sid_tensor *q; /* (n, *, *, channels) in the backend's dtype */
    const sid_keys *sources;
    size_t source_count;
    size_t heads;
    float scale;
    int causal; /* query i sees the keys up to i; with one source of as many tokens as queries */
} sid_attention;

/* y = factor * x + offset; where bound > 0: bound * tanh(y / bound). */
typedef struct {
    float factor, offset, bound;
} sid_curve;

/* A rectangle of (planes, height, width). */
typedef struct {
    size_t planes, height, width, top, left, rows, columns;
} sid_window;

struct sid_backend {
    sid_memory memory;   /* the first member */
    sid_dtype dtype;     /* of every activation */
    int threads;         /* of the host */
    size_t packed_bytes; /* of all packed weights */

    void (*close)(sid_backend **backend);

    /* --- memory --- */

    /* Host memory may change when write returns; read waits for all that was asked for. */
    int (*write)(sid_exec *exec, void *block, const void *host, size_t size);
    int (*read)(sid_exec *exec, void *host, const void *block, size_t size);
    int (*copy)(sid_exec *exec, void *block, const void *from, size_t size);
    int (*zero)(sid_exec *exec, void *block, size_t size);

    /* --- runs --- */

    /* Around a run's second pass. key: runs of one key are alike in everything but the numbers in their arguments and
     * the addresses of what is outside of the arena, so that they can be recorded; 0: never. */
    int (*begin)(sid_exec *exec, uint64_t key);
    /* status: the pass's, returned where it is not SID_OK. *again: whether the pass has to be run once more. */
    int (*end)(sid_exec *exec, int status, int *again);
    /* Waits until at most `runs` of the last runs are in flight. */
    int (*pace)(sid_backend *backend, size_t runs);

    /* --- parts of a model; weights, in any stored dtype, can go as soon as these return --- */

    /* Weight (out, in, kernel, kernel) and bias (out; NULL: none). */
    int (*conv_open)(sid_backend *backend, sid_conv **conv, const sid_conv_shape *shape, const sid_weight *weight,
                     const sid_weight *bias);
    void (*conv_close)(sid_conv **conv);
    /* parts weights (out_i, in[, 1, 1]), stacked along out; biases NULL or one per part (out_i). */
    int (*linear_open)(sid_backend *backend, sid_linear **linear, const sid_linear_shape *shape, size_t parts,
                       const sid_weight *const *weights, const sid_weight *const *biases);
    void (*linear_close)(sid_linear **linear);
    /* The weights' numbers as float32, one after the other; memory.give() closes them. */
    int (*floats_open)(sid_backend *backend, float **floats, size_t parts, const sid_weight *const *weights);

    /* --- operations --- */

    /* dst (n, h', w', out) in the backend's dtype or float32, src (n, h, w, in); dense.
     * Of post only residual and relu, and not even those with upsample. */
    int (*conv)(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_conv *conv, const sid_post *post);
    /* dst (rows, out) in the backend's dtype or float32, src (rows, in); either may be a slice of channels. */
    int (*linear)(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_linear *linear, const sid_post *post);
    /* dst (n, h, w, a.c + b.c); may be a itself where b is NULL. */
    int (*group_norm)(sid_exec *exec, sid_tensor *dst, const sid_group_norm *norm);
    /* dst, src (rows, c); scale, shift [c]. */
    int (*layer_norm)(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, const float *scale, const float *shift,
                      float eps);
    /* dst of q's shape, in the backend's dtype. */
    int (*attention)(sid_exec *exec, sid_tensor *dst, const sid_attention *attention);
    /* dst = a * x + b * y, of one shape; any dtypes; y may be NULL. dst may be x or y. */
    int (*combine)(sid_exec *exec, sid_tensor *dst, float a, const sid_tensor *x, float b, const sid_tensor *y);
    /* Row by row: dst = a[row] * x + (1 - a[row]) * y, of one shape in the backend's dtype. dst may be x or y. */
    int (*blend_rows)(sid_exec *exec, sid_tensor *dst, const float *a, const sid_tensor *x, const sid_tensor *y);
    /* (n, c, h, w) <-> (n, h, w, c) in any dtype, through a curve. src may be a slice of channels. */
    int (*from_planes)(sid_exec *exec, sid_tensor *dst, const sid_planes *planes, const sid_curve *curve);
    int (*to_planes)(sid_exec *exec, sid_planes *planes, const sid_tensor *src, const sid_curve *curve);
    /* z = up z + down (a p + b z), in double: a DDIM move; z, p of count numbers. */
    int (*mix)(sid_exec *exec, float *z, const float *p, size_t count, double up, double down, double a, double b);
    /* tile (planes, rows, columns) = the window of planes (planes, height, width); and
     * the window of planes += row_shares[rows] * column_shares[columns] * tile. */
    int (*tile_take)(sid_exec *exec, float *tile, const float *planes, const sid_window *window);
    int (*tile_add)(sid_exec *exec, float *planes, const float *tile, const sid_window *window, const float *row_shares,
                    const float *column_shares);
};

/* dtype SID_F32 or SID_BF16; threads >= 1. */
int sid_cpu_open(sid_backend **backend, sid_dtype dtype, int threads);
/* Any dtype; device: the GPU's number; threads: of what is left to the host. */
int sid_cuda_open(sid_backend **backend, sid_dtype dtype, int device, int threads);

#endif
