#include "python/arguments.h"

#include <float.h>
#include <math.h>

#include "core/err.h"

#define MAX_CONTEXT_TOKENS 65536

PyObject *sid_entry(PyObject *dict, const char *key) {
    PyObject *name = PyUnicode_FromString(key);
    PyObject *value = name ? PyDict_GetItemWithError(dict, name) : NULL;
    Py_XDECREF(name);
    return value;
}

PyObject *sid_finish(const sid_state *state, const sid_array *array, int status) {
    if (status == SID_OK) return Py_NewRef(array->object);
    sid_raise(state, status);
    return NULL;
}

int sid_read_size(size_t *value, PyObject *object, const char *name, size_t least, size_t most) {
    PyObject *integer = PyNumber_Index(object);
    if (!integer) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s: expected an integer, got %.100s", name, Py_TYPE(object)->tp_name);
        return -1;
    }
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(integer, &overflow);
    int fits = !overflow && number >= 0 && (size_t)number >= least && (size_t)number <= most;
    if (fits) *value = (size_t)number;
    else PyErr_Format(PyExc_ValueError, "%s: expected an integer from %zu to %zu, got %S", name, least, most, integer);
    Py_DECREF(integer);
    return fits ? 0 : -1;
}

int sid_read_number(double *value, PyObject *object, const char *name) {
    *value = PyFloat_AsDouble(object);
    if (*value == -1 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s: expected a number, got %.100s", name, Py_TYPE(object)->tp_name);
        return -1;
    }
    if (isfinite(*value)) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected a finite number, got %S", name, object);
    return -1;
}

void sid_append(PyObject **list, PyObject *item) {
    if (*list && (!item || PyList_Append(*list, item))) Py_CLEAR(*list);
    Py_XDECREF(item);
}

PyObject *sid_name_list(const char *const *names, size_t most) {
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < most && names[i]; i++) sid_append(&list, PyUnicode_FromString(names[i]));
    return list;
}

static void choice_error(PyObject *object, const char *name, const char *const *choices) {
    PyObject *list = sid_name_list(choices, SIZE_MAX);
    if (list)
        PyErr_Format(PyUnicode_Check(object) ? PyExc_ValueError : PyExc_TypeError, "%s: expected one of %S, got %R",
                     name, list, object);
    Py_XDECREF(list);
}

int sid_read_choice(int *choice, PyObject *object, const char *name, const char *const *choices) {
    for (int i = 0; PyUnicode_Check(object) && choices[i]; i++)
        if (PyUnicode_CompareWithASCIIString(object, choices[i]) == 0) {
            *choice = i;
            return 0;
        }
    choice_error(object, name, choices);
    return -1;
}

int sid_read_dtype(sid_dtype *dtype, PyObject *object, const char *name) {
    int choice;
    if (sid_read_choice(&choice, object, name, sid_dtype_names())) return -1;
    *dtype = (sid_dtype)choice;
    return 0;
}

int sid_read_steps(size_t *steps, PyObject *object) {
    return sid_read_size(steps, object, "steps", 2, SID_TRAIN_STEPS);
}

PyObject *sid_read_sequence(PyObject *object, const char *name, const char *of) {
    PyObject *sequence = PyUnicode_Check(object) ? NULL : PySequence_Tuple(object);
    if (!sequence && (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_TypeError)))
        PyErr_Format(PyExc_TypeError, "%s: expected a sequence of %s, got %.100s", name, of, Py_TYPE(object)->tp_name);
    return sequence;
}

static int add_layer(sid_layers *layers, PyObject *item, const char *name, const sid_unet_config *config) {
    size_t layer;
    if (sid_read_size(&layer, item, name, 0, sid_layer_count(config) - 1)) return -1;
    if (!sid_layer_has_attention(config, layer)) {
        PyErr_Format(PyExc_ValueError, "%s: layer %zu of this model has no self-attention", name, layer);
        return -1;
    }
    for (size_t i = 0; i < layers->count; i++)
        if (layers->numbers[i] == layer) {
            PyErr_Format(PyExc_ValueError, "%s: layer %zu is given twice", name, layer);
            return -1;
        }
    layers->numbers[layers->count++] = layer;
    return 0;
}

int sid_read_layers(sid_layers *layers, PyObject *object, const char *name, const sid_unet_config *config) {
    PyObject *sequence = sid_read_sequence(object, name, "integers");
    if (!sequence) return -1;
    int failed = 0;
    layers->count = 0;
    for (Py_ssize_t i = 0; !failed && i < PyTuple_GET_SIZE(sequence); i++)
        failed = add_layer(layers, PyTuple_GET_ITEM(sequence, i), name, config);
    Py_DECREF(sequence);
    return failed;
}

PyObject *sid_attention_layers(const sid_unet_config *config, size_t first) {
    PyObject *list = PyList_New(0);
    for (size_t layer = first; list && layer < sid_layer_count(config); layer++)
        if (sid_layer_has_attention(config, layer)) sid_append(&list, PyLong_FromSize_t(layer));
    PyObject *layers = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return layers;
}

static int read_share(float *share, PyObject *object, const char *name) {
    double number;
    if (sid_read_number(&number, object, name)) return -1;
    *share = (float)number;
    if (*share >= FLT_MIN && *share <= FLT_MAX) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected positive numbers, got %S", name, object);
    return -1;
}

int sid_read_shares(float **shares, PyObject *object, const char *name, size_t count) {
    PyObject *sequence = sid_read_sequence(object, name, "numbers");
    if (!sequence) return -1;
    int failed = -1;
    *shares = NULL;
    if ((size_t)PyTuple_GET_SIZE(sequence) != count) {
        PyErr_Format(PyExc_ValueError, "%s: expected %zu, one for each style, got %zd", name, count,
                     PyTuple_GET_SIZE(sequence));
        goto done;
    }
    *shares = PyMem_New(float, count);
    if (!*shares) {
        PyErr_NoMemory();
        goto done;
    }
    failed = 0;
    for (size_t i = 0; !failed && i < count; i++)
        failed = read_share(&(*shares)[i], PyTuple_GET_ITEM(sequence, (Py_ssize_t)i), name);
done:
    Py_DECREF(sequence);
    return failed;
}

int sid_check_unet(const sid_config *config) {
    if (config->unet.levels) return 0;
    PyErr_SetString(PyExc_ValueError, "model: expected one with a UNet, got a VAE alone");
    return -1;
}

int sid_read_callable(PyObject **callable, PyObject *object, const char *name) {
    *callable = object == Py_None ? NULL : object;
    if (!*callable || PyCallable_Check(*callable)) return 0;
    PyErr_Format(PyExc_TypeError, "%s: expected a callable or None, got %.100s", name, Py_TYPE(object)->tp_name);
    return -1;
}

int sid_check_values(const sid_array *array, const char *name, float least, float most, const char *expected) {
    const float *values = array->data;
    size_t count = sid_array_count(array), i = 0;
    while (i < count && values[i] >= least && values[i] <= most) i++;
    if (i == count) return 0;
    PyObject *value = PyFloat_FromDouble(values[i]);
    if (value) PyErr_Format(PyExc_ValueError, "%s: expected %s, got %S", name, expected, value);
    Py_XDECREF(value);
    return -1;
}

int sid_check_finite(const sid_array *array, const char *name) {
    return sid_check_values(array, name, -FLT_MAX, FLT_MAX, "finite numbers");
}

int sid_read_latents(sid_array *array, PyObject *object, const char *name, size_t n, const sid_unet_config *config) {
    const sid_array_spec spec = {.name = name,
                                 .elements = SID_FLOAT32,
                                 .rank = 4,
                                 .shape = {n, config->in_channels, 0, 0},
                                 .letters = "NChw",
                                 .sides = 2,
                                 .multiple = sid_latent_multiple(config),
                                 .limit = SID_MAX_LATENT_PIXELS * config->in_channels};
    if (sid_array_read(array, object, &spec)) return -1;
    return sid_check_finite(array, name);
}

int sid_read_context(sid_array *array, PyObject *object, const char *name, size_t n, const sid_unet_config *config) {
    const sid_array_spec spec = {.name = name,
                                 .elements = SID_FLOAT32,
                                 .rank = 3,
                                 .shape = {n == 1, 0, config->context_size},
                                 .letters = "NLC",
                                 .limit = n * MAX_CONTEXT_TOKENS * config->context_size};
    if (sid_array_read(array, object, &spec)) return -1;
    if (array->shape[0] != 1 && array->shape[0] != n) {
        PyErr_Format(PyExc_ValueError, "%s: expected a batch of 1 or %zu, got %zu", name, n, array->shape[0]);
        return -1;
    }
    return sid_check_finite(array, name);
}

int sid_read_images(sid_array *array, PyObject *object, const char *name, size_t rank, const sid_vae_config *config,
                    size_t multiple) {
    size_t factor = sid_vae_factor(config);
    sid_array_spec spec = {.name = name,
                           .elements = SID_UINT8 | SID_FLOAT32,
                           .rank = rank,
                           .letters = rank == 4 ? "NHWC" : "HWC",
                           .sides = rank - 3,
                           .multiple = multiple,
                           .limit = SID_MAX_LATENT_PIXELS * factor * factor * config->image_channels};
    spec.shape[rank - 1] = config->image_channels;
    if (sid_array_read(array, object, &spec)) return -1;
    if (array->element == SID_UINT8) return 0;
    return sid_check_values(array, name, 0, 1, "numbers from 0 to 1");
}

sid_image sid_image_of(const sid_array *pixels) {
    const size_t *shape = pixels->shape + (pixels->rank == 4);
    return (sid_image){.pixels = pixels->data,
                       .is_float = pixels->element == SID_FLOAT32,
                       .n = pixels->rank == 4 ? pixels->shape[0] : 1,
                       .height = shape[0],
                       .width = shape[1],
                       .channels = shape[2]};
}
