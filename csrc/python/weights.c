#include "python/config.h"

#include <string.h>

#include "core/err.h"
#include "python/arguments.h"

static const struct {
    const char *name;
    sid_dtype dtype;
} dtypes[] = {{"F32", SID_F32}, {"F16", SID_F16}, {"BF16", SID_BF16}};
#define DTYPES (sizeof dtypes / sizeof *dtypes)
#define MAX_RANK 4

static int read_dtype(sid_dtype *dtype, PyObject *object, const char *name, PyObject *error) {
    for (size_t i = 0; object && PyUnicode_Check(object) && i < DTYPES; i++)
        if (PyUnicode_CompareWithASCIIString(object, dtypes[i].name) == 0) {
            *dtype = dtypes[i].dtype;
            return 0;
        }
    if (!PyErr_Occurred())
        PyErr_Format(error, "weight %s: expected dtype 'F32', 'F16' or 'BF16', got %R", name,
                     object ? object : Py_None);
    return -1;
}

/* *size starts as the bytes of a number and becomes those that the shape says. */
static int read_shape(size_t *rank, size_t *shape, size_t *size, PyObject *object, const char *name, PyObject *error) {
    PyObject *list = object && (PyList_Check(object) || PyTuple_Check(object)) ? PySequence_Tuple(object) : NULL;
    if (!list && PyErr_Occurred()) return -1;
    int fits = list && PyTuple_GET_SIZE(list) >= 1 && PyTuple_GET_SIZE(list) <= MAX_RANK;
    *rank = fits ? (size_t)PyTuple_GET_SIZE(list) : 0;
    for (size_t i = 0; fits && i < *rank; i++) {
        PyObject *item = PyTuple_GET_ITEM(list, (Py_ssize_t)i);
        shape[i] = PyLong_Check(item) ? PyLong_AsSize_t(item) : 0;
        if (PyErr_Occurred()) PyErr_Clear(); /* negative or beyond 64 bits: reported below */
        fits = shape[i] > 0 && shape[i] <= (size_t)PY_SSIZE_T_MAX / *size;
        *size *= fits ? shape[i] : 1;
    }
    Py_XDECREF(list);
    if (!fits)
        PyErr_Format(error, "weight %s: expected a shape of 1 to %d positive sizes, got %R", name, MAX_RANK,
                     object ? object : Py_None);
    return fits ? 0 : -1;
}

/* The engine reads numbers, so that memory which is not aligned to them (a file's) has to be copied. */
static int align(const void **data, void **copy, const Py_buffer *buffer, sid_dtype dtype) {
    *data = buffer->buf;
    if ((uintptr_t)buffer->buf % sid_dtype_size(dtype) == 0) return 0;
    *copy = PyMem_RawMalloc((size_t)buffer->len);
    if (!*copy) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(*copy, buffer->buf, (size_t)buffer->len);
    *data = *copy;
    return 0;
}

static int add_weight(sid_buffers *buffers, PyObject *key, PyObject *value, const sid_state *state) {
    size_t rank, shape[MAX_RANK], size;
    sid_dtype dtype;
    const void *data;
    Py_ssize_t length;
    PyObject *error = state->model_error;

    if (!PyUnicode_Check(key) || !PyDict_Check(value)) {
        PyErr_Format(PyExc_TypeError, "weights: expected dictionaries by name, got %R: %.100s", key,
                     Py_TYPE(value)->tp_name);
        return -1;
    }
    const char *name = PyUnicode_AsUTF8AndSize(key, &length);
    if (!name) return -1;
    if (strlen(name) != (size_t)length) {
        PyErr_Format(error, "weights: a name with a null character, %R", key);
        return -1;
    }
    if (read_dtype(&dtype, sid_entry(value, "dtype"), name, error)) return -1;
    size = sid_dtype_size(dtype);
    if (read_shape(&rank, shape, &size, sid_entry(value, "shape"), name, error)) return -1;
    PyObject *source = sid_entry(value, "data");
    Py_buffer *buffer = &buffers->buffers[buffers->count];
    if (!source || PyObject_GetBuffer(source, buffer, PyBUF_SIMPLE)) {
        if (!PyErr_ExceptionMatches(PyExc_MemoryError))
            PyErr_Format(PyExc_TypeError, "weight %s: expected data to be a contiguous buffer, got %.100s", name,
                         source ? Py_TYPE(source)->tp_name : "none");
        return -1;
    }
    void **copy = &buffers->copies[buffers->count++];
    if ((size_t)buffer->len != size) {
        PyErr_Format(error, "weight %s: its shape says %zu bytes, its data are %zd", name, size, buffer->len);
        return -1;
    }
    if (align(&data, copy, buffer, dtype)) return -1;
    int status = sid_weights_add(buffers->weights, name, dtype, rank, shape, data);
    if (status != SID_OK) sid_raise(state, status);
    return status == SID_OK ? 0 : -1;
}

static int add_all(sid_buffers *buffers, PyObject *items, const sid_state *state) {
    size_t count = (size_t)PyList_GET_SIZE(items);
    buffers->buffers = PyMem_New(Py_buffer, count);
    buffers->copies = PyMem_Calloc(count, sizeof *buffers->copies);
    if (!buffers->buffers || !buffers->copies) {
        PyErr_NoMemory();
        return -1;
    }
    int status = sid_weights_open(&buffers->weights, count);
    if (status != SID_OK) {
        sid_raise(state, status);
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        PyObject *item = PyList_GET_ITEM(items, (Py_ssize_t)i);
        if (add_weight(buffers, PyTuple_GET_ITEM(item, 0), PyTuple_GET_ITEM(item, 1), state)) return -1;
    }
    return 0;
}

/* Pairs, as items() of any mapping gives them. */
static int check_items(PyObject *items) {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(items); i++) {
        PyObject *item = PyList_GET_ITEM(items, i);
        if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2) {
            PyErr_SetString(PyExc_TypeError, "weights: expected a mapping whose items are pairs");
            return -1;
        }
    }
    return 0;
}

int sid_buffers_open(sid_buffers *buffers, PyObject *weights, const sid_state *state) {
    *buffers = (sid_buffers){0};
    PyObject *items = PyMapping_Check(weights) ? PyMapping_Items(weights) : NULL;
    if (!items) {
        if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_AttributeError))
            PyErr_Format(PyExc_TypeError, "weights: expected a mapping, got %.100s", Py_TYPE(weights)->tp_name);
        return -1;
    }
    int failed = check_items(items) || add_all(buffers, items, state) ? -1 : 0;
    Py_DECREF(items);
    return failed;
}

void sid_buffers_close(sid_buffers *buffers) {
    sid_weights_close(&buffers->weights);
    for (size_t i = 0; i < buffers->count; i++) {
        PyBuffer_Release(&buffers->buffers[i]);
        PyMem_RawFree(buffers->copies[i]);
    }
    PyMem_Free(buffers->buffers);
    PyMem_Free(buffers->copies);
}
