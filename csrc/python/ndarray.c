#include "python/ndarray.h"

#define NPY_NO_DEPRECATED_API NPY_1_23_API_VERSION
#define NPY_TARGET_VERSION NPY_1_23_API_VERSION
#include <numpy/arrayobject.h>
#include <string.h>

static const struct {
    sid_element element;
    int number;
    const char *name;
} elements[] = {
    {SID_FLOAT32, NPY_FLOAT32, "float32"}, {SID_FLOAT64, NPY_FLOAT64, "float64"}, {SID_UINT8, NPY_UINT8, "uint8"},
    {SID_UINT16, NPY_UINT16, "uint16"},    {SID_INT32, NPY_INT32, "int32"},       {SID_FLOAT16, NPY_FLOAT16, "float16"},
};
#define ELEMENTS (sizeof elements / sizeof *elements)

int sid_numpy_import(void) { return _import_array(); }

/* ---- error texts ---- */

typedef struct {
    char text[320];
    size_t length;
} text;

static void add(text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(text *t, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int written = PyOS_vsnprintf(t->text + t->length, sizeof t->text - t->length, format, arguments);
    va_end(arguments);
    if (written > 0) t->length += (size_t)written;
    if (t->length >= sizeof t->text) t->length = sizeof t->text - 1;
}

/* "float32 of shape (N, 4, h, w) with h and w multiples of 8" */
static void describe(text *t, const sid_array_spec *spec) {
    const char *separator = "";
    for (size_t i = 0; i < ELEMENTS; i++)
        if (spec->elements & elements[i].element) {
            add(t, "%s%s", separator, elements[i].name);
            separator = " or ";
        }
    add(t, " of shape (");
    for (size_t i = 0; i < spec->rank; i++) {
        if (i) add(t, ", ");
        if (spec->shape[i]) add(t, "%zu", spec->shape[i]);
        else add(t, "%c", spec->letters[i]);
    }
    add(t, spec->rank == 1 ? ",)" : ")");
    if (spec->multiple > 1)
        add(t, " with %c and %c multiples of %zu", spec->letters[spec->sides], spec->letters[spec->sides + 1],
            spec->multiple);
}

static int mismatch(PyObject *exception, PyObject *object, const sid_array_spec *spec) {
    text expected = {"", 0};
    describe(&expected, spec);
    if (!PyArray_Check(object)) {
        PyErr_Format(exception, "%s: expected %s, got %.100s", spec->name, expected.text, Py_TYPE(object)->tp_name);
        return -1;
    }
    PyObject *shape = PyObject_GetAttrString(object, "shape");
    if (shape)
        PyErr_Format(exception, "%s: expected %s, got %S of shape %S", spec->name, expected.text,
                     (PyObject *)PyArray_DESCR((PyArrayObject *)object), shape);
    Py_XDECREF(shape);
    return -1;
}

/* ---- reading ---- */

static int too_large(PyObject *object, const sid_array_spec *spec) {
    PyObject *shape = PyObject_GetAttrString(object, "shape");
    if (shape)
        PyErr_Format(PyExc_ValueError, "%s: expected at most %zu numbers, got shape %S", spec->name, spec->limit,
                     shape);
    Py_XDECREF(shape);
    return -1;
}

static int shape_fits(PyArrayObject *source, const sid_array_spec *spec) {
    if ((size_t)PyArray_NDIM(source) != spec->rank) return 0;
    for (size_t i = 0; i < spec->rank; i++) {
        size_t size = (size_t)PyArray_DIM(source, (int)i);
        int is_side = i == spec->sides || i == spec->sides + 1;
        if (size == 0 || (spec->shape[i] && size != spec->shape[i])) return 0;
        if (spec->multiple && is_side && size % spec->multiple) return 0;
    }
    return 1;
}

static int read_held(sid_array *array, PyObject *object, const sid_array_spec *spec) {
    if (!PyArray_Check(object)) return mismatch(PyExc_TypeError, object, spec);
    PyArrayObject *source = (PyArrayObject *)object;
    size_t kind = 0;
    while (kind < ELEMENTS &&
           !(PyArray_TYPE(source) == elements[kind].number && spec->elements & elements[kind].element))
        kind++;
    if (kind == ELEMENTS) return mismatch(PyExc_TypeError, object, spec);
    if (!shape_fits(source, spec)) return mismatch(PyExc_ValueError, object, spec);
    if (spec->limit && (size_t)PyArray_SIZE(source) > spec->limit) return too_large(object, spec);

    const int flags = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED | (spec->in_place ? NPY_ARRAY_WRITEABLE : 0);
    PyArrayObject *dense =
        (PyArrayObject *)PyArray_FromArray(source, PyArray_DescrFromType(elements[kind].number), flags);
    if (!dense) return -1;
    if (spec->in_place && dense != source) {
        PyErr_Format(PyExc_ValueError, "%s: expected a writable array in C order", spec->name);
        Py_DECREF(dense);
        return -1;
    }
    *array = (sid_array){(PyObject *)dense, PyArray_DATA(dense), elements[kind].element, spec->rank, {0}};
    for (size_t i = 0; i < spec->rank; i++) array->shape[i] = (size_t)PyArray_DIM(dense, (int)i);
    return 0;
}

int sid_array_read(sid_array *array, PyObject *object, const sid_array_spec *spec) {
    Py_INCREF(object); /* NumPy lets other threads run while it copies; they may drop the caller's reference */
    int failed = read_held(array, object, spec);
    Py_DECREF(object);
    return failed;
}

/* ---- making ---- */

int sid_array_new(sid_array *array, sid_element element, size_t rank, const size_t *shape) {
    npy_intp sizes[SID_MAX_RANK];
    size_t kind = 0;
    while (elements[kind].element != element) kind++;
    *array = (sid_array){.element = element, .rank = rank};
    for (size_t i = 0; i < rank; i++) {
        array->shape[i] = shape[i];
        sizes[i] = (npy_intp)shape[i];
    }
    array->object = PyArray_SimpleNew((int)rank, sizes, elements[kind].number);
    if (!array->object) return -1;
    array->data = PyArray_DATA((PyArrayObject *)array->object);
    return 0;
}

int sid_array_copy(sid_array *copy, const sid_array *array) {
    if (sid_array_new(copy, array->element, array->rank, array->shape)) return -1;
    memcpy(copy->data, array->data, (size_t)PyArray_NBYTES((PyArrayObject *)array->object));
    return 0;
}

PyObject *sid_array_view(const sid_array *array) {
    if (!PyArray_Check(array->object)) return Py_NewRef(array->object);
    return PyArray_View((PyArrayObject *)array->object, NULL, &PyArray_Type);
}

void sid_array_close(sid_array *array) {
    Py_CLEAR(array->object);
    array->data = NULL;
}

PyObject *sid_element_dtype(sid_element element) {
    size_t kind = 0;
    while (elements[kind].element != element) kind++;
    return (PyObject *)PyArray_DescrFromType(elements[kind].number);
}
