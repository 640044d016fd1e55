/* A model's named weights, borrowed from the caller while a model is built. */
#ifndef SID_CORE_WEIGHTS_H
#define SID_CORE_WEIGHTS_H

#include "core/tensor.h"

typedef struct {
    char *name;
    sid_dtype dtype;
    size_t rank, shape[4];
    size_t stride;    /* elements from one row (index of the first dimension) to the next */
    const void *data; /* each row dense, in C order */
    int taken;
} sid_weight;

typedef struct {
    sid_weight *items; /* sorted by name after sid_weights_sort() */
    size_t count;
} sid_weights;

int sid_weights_open(sid_weights **weights, size_t count);
void sid_weights_close(sid_weights **weights);

/* Adds one weight, whose data stays the caller's. The caller has checked that the data has the size that the shape
 * says.
 */
int sid_weights_add(sid_weights *weights, const char *name, sid_dtype dtype, size_t rank, const size_t *shape,
                    const void *data);

/* Sorts the weights, so that they can be found; two of the same name are an error. */
int sid_weights_sort(sid_weights *weights);

/* Finds the weight prefix.suffix. Fails with SID_EMODEL where it is missing or does not have exactly the given shape.
 */
int sid_weights_take(sid_weights *weights, const sid_weight **weight, const char *prefix, const char *suffix,
                     size_t rank, const size_t *shape);

/* Rows (first dimension) and columns (second dimension) of a weight, sharing its memory. */
sid_weight sid_weight_rows(const sid_weight *weight, size_t first, size_t count);
sid_weight sid_weight_columns(const sid_weight *weight, size_t first, size_t count);

size_t sid_weight_count(const sid_weight *weight); /* of its numbers */
/* dst gets the weight's numbers in C order as float32; SID_EMODEL where one is not finite. */
int sid_weight_floats(float *dst, const sid_weight *weight);

/* Fails with SID_EMODEL and names the first weight that nothing took. */
int sid_weights_all_taken(const sid_weights *weights);

#endif
