#include "core/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "core/finite.h"
#include "core/floats.h"

#define NAME_SIZE 256

int sid_weights_open(sid_weights **weights, size_t count) {
    sid_weights *w = *weights = calloc(1, sizeof *w);
    if (!w) return sid_fail(SID_EMEMORY, "out of memory");
    w->items = calloc(count ? count : 1, sizeof *w->items);
    if (!w->items) return sid_fail(SID_EMEMORY, "out of memory for a table of %zu weights", count);
    return SID_OK;
}

void sid_weights_close(sid_weights **weights) {
    sid_weights *w = *weights;
    if (!w) return;
    for (size_t i = 0; w->items && i < w->count; i++) free(w->items[i].name);
    free(w->items);
    free(w);
    *weights = NULL;
}

int sid_weights_add(sid_weights *weights, const char *name, sid_dtype dtype, size_t rank, const size_t *shape,
                    const void *data) {
    if (rank > 4) return sid_fail(SID_EMODEL, "weight %s has %zu dimensions, expected at most 4", name, rank);
    sid_weight *weight = &weights->items[weights->count];
    weight->name = strdup(name);
    if (!weight->name) return sid_fail(SID_EMEMORY, "out of memory");
    weights->count++;
    weight->dtype = dtype;
    weight->rank = rank;
    memcpy(weight->shape, shape, rank * sizeof *shape);
    weight->stride = 1;
    for (size_t i = 1; i < rank; i++) weight->stride *= shape[i];
    weight->data = data;
    return SID_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const sid_weight *)a)->name, ((const sid_weight *)b)->name);
}

int sid_weights_sort(sid_weights *weights) {
    qsort(weights->items, weights->count, sizeof *weights->items, by_name);
    for (size_t i = 1; i < weights->count; i++)
        if (strcmp(weights->items[i - 1].name, weights->items[i].name) == 0)
            return sid_fail(SID_EMODEL, "weight %s is there twice", weights->items[i].name);
    return SID_OK;
}

static sid_weight *find(const sid_weights *weights, char *name) {
    sid_weight key = {.name = name};
    return bsearch(&key, weights->items, weights->count, sizeof key, by_name);
}

static void print_shape(char *text, size_t size, size_t rank, const size_t *shape) {
    size_t used = (size_t)snprintf(text, size, "(");
    for (size_t i = 0; i < rank && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, i ? ", %zu" : "%zu", shape[i]);
    if (used < size) snprintf(text + used, size - used, ")");
}

int sid_weights_take(sid_weights *weights, const sid_weight **weight, const char *prefix, const char *suffix,
                     size_t rank, const size_t *shape) {
    char name[NAME_SIZE], expected[96], found[96];
    snprintf(name, sizeof name, "%s.%s", prefix, suffix);
    print_shape(expected, sizeof expected, rank, shape);
    sid_weight *w = find(weights, name);
    if (!w) return sid_fail(SID_EMODEL, "weight %s of shape %s is missing", name, expected);
    if (w->rank != rank || memcmp(w->shape, shape, rank * sizeof *shape) != 0) {
        print_shape(found, sizeof found, w->rank, w->shape);
        return sid_fail(SID_EMODEL, "weight %s has shape %s, expected %s", name, found, expected);
    }
    w->taken = 1;
    *weight = w;
    return SID_OK;
}

sid_weight sid_weight_rows(const sid_weight *weight, size_t first, size_t count) {
    sid_weight slice = *weight;
    slice.data = (const char *)weight->data + first * weight->stride * sid_dtype_size(weight->dtype);
    slice.shape[0] = count;
    return slice;
}

sid_weight sid_weight_columns(const sid_weight *weight, size_t first, size_t count) {
    sid_weight slice = *weight;
    size_t column = weight->stride / weight->shape[1];
    slice.data = (const char *)weight->data + first * column * sid_dtype_size(weight->dtype);
    slice.shape[1] = count;
    return slice;
}

size_t sid_weight_count(const sid_weight *weight) {
    size_t count = 1;
    for (size_t i = 0; i < weight->rank; i++) count *= weight->shape[i];
    return count;
}

int sid_weight_floats(float *dst, const sid_weight *weight) {
    const float *first = dst;
    size_t columns = 1;
    for (size_t i = 1; i < weight->rank; i++) columns *= weight->shape[i];
    for (size_t row = 0; row < weight->shape[0]; row++)
        for (size_t i = 0; i < columns; i++) *dst++ = sid_load(weight->data, weight->dtype, row * weight->stride + i);
    return sid_all_fit(first, SID_F32, (size_t)(dst - first), SID_F32) ? SID_OK : sid_refuse_weight(weight, SID_F32);
}

int sid_weights_all_taken(const sid_weights *weights) {
    for (size_t i = 0; i < weights->count; i++)
        if (!weights->items[i].taken)
            return sid_fail(SID_EMODEL, "weight %s is not one that this configuration has", weights->items[i].name);
    return SID_OK;
}
