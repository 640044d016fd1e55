/* Feature maps. Always NHWC, so a feature map of h x w pixels *is* a matrix of h*w tokens. */
#ifndef SID_CORE_TENSOR_H
#define SID_CORE_TENSOR_H

#include <stddef.h>
#include <stdint.h>

typedef enum { SID_F32, SID_BF16, SID_F16 } sid_dtype; /* SID_F16: weights as stored, never computed in */

typedef struct {
    void *data;
    sid_dtype dtype;
    size_t n, h, w, c;
    size_t stride; /* elements from one pixel to the next; c where dense, more in a slice of channels */
} sid_tensor;

static inline size_t sid_dtype_size(sid_dtype dtype) { return dtype == SID_F32 ? 4 : 2; }

static inline const char *sid_dtype_name(sid_dtype dtype) {
    return dtype == SID_F32 ? "float32" : dtype == SID_BF16 ? "bfloat16" : "float16";
}

/* Pixels of the whole batch: the rows of the token matrix. */
static inline size_t sid_rows(const sid_tensor *t) { return t->n * t->h * t->w; }

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

static inline float sid_from_bf16(uint16_t value) {
    union {
        uint32_t bits;
        float number;
    } u = {(uint32_t)value << 16};
    return u.number;
}

/* Round to nearest, ties to even; a NaN stays one. */
static inline uint16_t sid_to_bf16(float value) {
    union {
        float number;
        uint32_t bits;
    } u = {value};
    if ((u.bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((u.bits >> 16) | 0x40);
    return (uint16_t)((u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16);
}

static inline float sid_load(const void *data, sid_dtype dtype, size_t i) {
    return dtype == SID_F32 ? ((const float *)data)[i] : sid_from_bf16(((const uint16_t *)data)[i]);
}

static inline void sid_store(void *data, sid_dtype dtype, size_t i, float value) {
    if (dtype == SID_F32) ((float *)data)[i] = value;
    else ((uint16_t *)data)[i] = sid_to_bf16(value);
}

#endif
