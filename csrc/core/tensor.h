/* Feature maps and planes. Their data is memory of the backend: only the backend reads or writes it. */
#ifndef SID_CORE_TENSOR_H
#define SID_CORE_TENSOR_H

#include <stddef.h>
#include <stdint.h>

/* The types of stored weights, activations and features. A backend says in which of them it computes. */
typedef enum { SID_F32, SID_BF16, SID_F16, SID_DTYPE_COUNT } sid_dtype;

/* A feature map. Its layout is always NHWC, so that a feature map of h x w pixels *is* a matrix of h*w tokens. */
typedef struct {
    void *data; /* NULL while a run is measured */
    sid_dtype dtype;
    size_t n, h, w, c;
    size_t stride; /* elements from one pixel to the next; c where dense, more in a slice of channels */
} sid_tensor;

/* Images and latents, one plane per channel: float32 of (n, c, h, w), dense. */
typedef struct {
    float *data;
    size_t n, c, h, w;
} sid_planes;

static inline size_t sid_dtype_size(sid_dtype dtype) { return dtype == SID_F32 ? 4 : 2; }

/* The words for the dtypes, in their order; NULL follows the last. */
static inline const char *const *sid_dtype_names(void) {
    static const char *const names[SID_DTYPE_COUNT + 1] = {"float32", "bfloat16", "float16", NULL};
    return names;
}

static inline const char *sid_dtype_name(sid_dtype dtype) { return sid_dtype_names()[dtype]; }

/* Pixels of the whole batch: the rows of the token matrix. */
static inline size_t sid_rows(const sid_tensor *t) { return t->n * t->h * t->w; }

static inline size_t sid_planes_count(const sid_planes *p) { return p->n * p->c * p->h * p->w; }

static inline sid_tensor sid_dense(void *data, sid_dtype dtype, size_t n, size_t h, size_t w, size_t c) {
    return (sid_tensor){data, dtype, n, h, w, c, c};
}

/* Channels first .. first+count-1 of t, sharing its memory. */
static inline sid_tensor sid_channels(const sid_tensor *t, size_t first, size_t count) {
    sid_tensor slice = *t;
    if (slice.data) slice.data = (char *)t->data + first * sid_dtype_size(t->dtype);
    slice.c = count;
    return slice;
}

/* Sample i of the batch, sharing its memory. */
static inline sid_tensor sid_sample(const sid_tensor *t, size_t i) {
    sid_tensor one = *t;
    if (one.data) one.data = (char *)t->data + i * t->h * t->w * t->stride * sid_dtype_size(t->dtype);
    one.n = 1;
    return one;
}

#endif
