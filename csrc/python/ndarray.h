/* NumPy arrays as checked C memory. ndarray.c is the only file that uses NumPy's C API. */
#ifndef SID_PYTHON_NDARRAY_H
#define SID_PYTHON_NDARRAY_H

#include "python/binding.h"

#define SID_MAX_RANK 4
#define SID_MAX_LATENT_PIXELS ((size_t)1 << 24) /* of a whole batch: no product of sizes in the engine overflows */

/* Types of elements, which may be or'ed. */
typedef enum {
    SID_FLOAT32 = 1,
    SID_FLOAT64 = 2,
    SID_UINT8 = 4,
    SID_UINT16 = 8,
    SID_INT32 = 16,
    SID_FLOAT16 = 32
} sid_element;

typedef struct {
    PyObject *object; /* owned; NULL: none */
    void *data;       /* dense, in C order, aligned, of the machine's byte order */
    sid_element element;
    size_t rank, shape[SID_MAX_RANK];
} sid_array;

/* What an argument must be. No axis is ever empty. */
typedef struct {
    const char *name;  /* of the argument, for error texts */
    unsigned elements; /* the types that are taken */
    size_t rank;
    size_t shape[SID_MAX_RANK]; /* 0: any */
    const char *letters;        /* what error texts call the axes of any size; one for each axis */
    size_t sides, multiple;     /* unless multiple is 0: axes sides and sides + 1 are multiples of it */
    size_t limit;               /* most numbers in all; 0: any */
    int in_place;               /* to be written: never a copy */
} sid_array_spec;

int sid_numpy_import(void);

/* array refers to the object's memory, or to a converted copy where it is strided or of foreign byte order. Below, 0 is
 * success and -1 an exception. */
int sid_array_read(sid_array *array, PyObject *object, const sid_array_spec *spec);

/* A new array of undefined content. */
int sid_array_new(sid_array *array, sid_element element, size_t rank, const size_t *shape);

/* A new array of the same content. */
int sid_array_copy(sid_array *copy, const sid_array *array);

/* Another array object over the same memory, which it keeps alive; where the object is no NumPy array, the object
 * itself. */
PyObject *sid_array_view(const sid_array *array);

void sid_array_close(sid_array *array);

/* NumPy's dtype of the type. */
PyObject *sid_element_dtype(sid_element element);

static inline size_t sid_array_count(const sid_array *array) {
    size_t count = 1;
    for (size_t i = 0; i < array->rank; i++) count *= array->shape[i];
    return count;
}

#endif
