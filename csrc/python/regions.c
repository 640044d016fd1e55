#include "python/regions.h"

#include <float.h>
#include <math.h>

/* What the arrays of a dictionary must be: rows x tokens of an image, or, where rows is 0, of rank 1. */
typedef struct {
    const char *name;
    size_t rows;
    float least, most;
} terms;

/* Reads dict[layer] into arrays[layer], where there is one. It has as many tokens as the inversion's bank. */
static int read_layers(sid_array *arrays, PyObject *dict, const terms *expected, const sid_layers *layers,
                       const sid_inversion *inversion) {
    const size_t rows = expected->rows;
    if (!PyDict_Check(dict)) {
        PyErr_Format(PyExc_TypeError, "%s: expected a dict, got %.100s", expected->name, Py_TYPE(dict)->tp_name);
        return -1;
    }
    for (size_t i = 0; i < layers->count; i++) {
        size_t layer = layers->numbers[i], tokens = inversion->bank.layers[layer].tokens;
        char label[64];
        PyOS_snprintf(label, sizeof label, "%s[%zu]", expected->name, layer);
        const sid_array_spec spec = {.name = label,
                                     .elements = SID_FLOAT32,
                                     .rank = rows ? 2 : 1,
                                     .shape = {rows ? rows : tokens, rows ? tokens : 0}};
        PyObject *number = PyLong_FromSize_t(layer);
        PyObject *array = number ? PyDict_GetItemWithError(dict, number) : NULL;
        Py_XDECREF(number);
        if (!array && PyErr_Occurred()) return -1;
        if (!array) continue;
        if (sid_array_read(&arrays[layer], array, &spec)) return -1;
        if (sid_check_values(&arrays[layer], label, expected->least, expected->most,
                             expected->least == 0 ? "numbers from 0 to 1" : "finite numbers or -inf"))
            return -1;
    }
    return 0;
}

static int read_key_biases(sid_regions *regions, PyObject *sequence, const sid_inversion *styles,
                           const sid_layers *layers) {
    if ((size_t)PyTuple_GET_SIZE(sequence) != regions->style_count) {
        PyErr_Format(PyExc_ValueError, "regions['key_bias']: expected %zu, one for each style, got %zd",
                     regions->style_count, PyTuple_GET_SIZE(sequence));
        return -1;
    }
    for (size_t i = 0; i < regions->style_count; i++) {
        sid_array *arrays = regions->key_bias + i * SID_MAX_LAYERS;
        char name[48];
        PyOS_snprintf(name, sizeof name, "regions['key_bias'][%zu]", i);
        const terms expected = {name, 0, -INFINITY, FLT_MAX};
        if (read_layers(arrays, PyTuple_GET_ITEM(sequence, (Py_ssize_t)i), &expected, layers, &styles[i])) return -1;
        for (size_t l = 0; l < layers->count; l++)
            regions->layers[layers->numbers[l]].key_bias[i] = arrays[layers->numbers[l]].data;
    }
    return 0;
}

/* A new reference to an entry. */
static PyObject *entry(PyObject *object, const char *key) {
    PyObject *value = PyDict_Check(object) ? sid_entry(object, key) : NULL;
    if (!value && !PyErr_Occurred())
        PyErr_Format(PyExc_TypeError, "regions: expected a dict with '%s', got %.100s", key, Py_TYPE(object)->tp_name);
    return Py_XNewRef(value);
}

static int read_all(sid_regions *regions, PyObject *object, const sid_inversion *inversions, const sid_layers *layers) {
    const terms of_bias = {"regions['bias']", regions->style_count, -INFINITY, FLT_MAX};
    const terms of_cover = {"regions['cover']", 0, 0, 1};
    PyObject *bias = entry(object, "bias"), *cover = bias ? entry(object, "cover") : NULL;
    PyObject *key_bias = cover ? entry(object, "key_bias") : NULL;
    PyObject *sequence = key_bias ? sid_read_sequence(key_bias, "regions['key_bias']", "dictionaries") : NULL;
    int failed = !sequence || read_layers(regions->bias, bias, &of_bias, layers, &inversions[0]) ||
                 read_layers(regions->cover, cover, &of_cover, layers, &inversions[0]) ||
                 read_key_biases(regions, sequence, inversions + 1, layers);
    for (size_t layer = 0; layer < SID_MAX_LAYERS; layer++) {
        regions->layers[layer].bias = regions->bias[layer].data;
        regions->layers[layer].cover = regions->cover[layer].data;
    }
    Py_XDECREF(bias);
    Py_XDECREF(cover);
    Py_XDECREF(key_bias);
    Py_XDECREF(sequence);
    return failed ? -1 : 0;
}

sid_regions *sid_regions_read(PyObject *object, const sid_inversion *inversions, size_t style_count,
                              const sid_layers *layers) {
    sid_regions *regions = PyMem_Calloc(1, sizeof *regions);
    if (regions) regions->key_bias = PyMem_Calloc(style_count * SID_MAX_LAYERS, sizeof *regions->key_bias);
    if (!regions || !regions->key_bias) {
        PyErr_NoMemory();
    } else {
        regions->style_count = style_count;
        if (read_all(regions, object, inversions, layers) == 0) return regions;
    }
    sid_regions_close(regions);
    return NULL;
}

void sid_regions_close(sid_regions *regions) {
    if (!regions) return;
    for (size_t layer = 0; layer < SID_MAX_LAYERS; layer++) {
        sid_array_close(&regions->bias[layer]);
        sid_array_close(&regions->cover[layer]);
    }
    for (size_t i = 0; regions->key_bias && i < regions->style_count * SID_MAX_LAYERS; i++)
        sid_array_close(&regions->key_bias[i]);
    PyMem_Free(regions->key_bias);
    PyMem_Free(regions);
}
