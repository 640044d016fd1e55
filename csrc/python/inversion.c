#include "python/inversion.h"

static const char *const feature_names[SID_FEATURES] = {"query", "key", "value"};

sid_inversion *sid_inversions_new(size_t count) {
    sid_inversion *inversions = PyMem_Calloc(count, sizeof *inversions);
    if (!inversions) PyErr_NoMemory();
    return inversions;
}

void sid_inversions_close(sid_inversion *inversions, size_t count) {
    for (size_t i = 0; inversions && i < count; i++) {
        sid_array_close(&inversions[i].latents);
        for (size_t kind = 0; kind < SID_FEATURES; kind++)
            for (size_t layer = 0; layer < SID_MAX_LAYERS; layer++)
                sid_array_close(&inversions[i].features[kind][layer]);
    }
    PyMem_Free(inversions);
}

/* The bank's view of a layer's arrays. */
static void fill_bank(sid_inversion *inversion, const sid_unet_config *config, size_t layer) {
    size_t h = inversion->latents.shape[2], w = inversion->latents.shape[3];
    inversion->bank.layers[layer] = (sid_bank_layer){
        .query = inversion->features[SID_QUERY][layer].data,
        .key = inversion->features[SID_KEY][layer].data,
        .value = inversion->features[SID_VALUE][layer].data,
        .tokens = sid_layer_tokens(config, layer, h, w),
        .channels = sid_layer_channels(config, layer),
    };
}

int sid_inversion_allocate(sid_inversion *inversion, const sid_unet_config *config, const sid_layers *layers,
                           unsigned keep, sid_dtype dtype, size_t steps, size_t h, size_t w) {
    const size_t latents_shape[] = {steps + 1, config->in_channels, h, w};
    if (sid_array_new(&inversion->latents, SID_FLOAT32, 4, latents_shape)) return -1;
    inversion->bank.dtype = dtype;
    inversion->bank.steps = steps;
    for (size_t i = 0; i < layers->count; i++) {
        size_t layer = layers->numbers[i];
        const size_t shape[] = {steps, sid_layer_tokens(config, layer, h, w), sid_layer_channels(config, layer)};
        for (size_t kind = 0; kind < SID_FEATURES; kind++)
            if (keep & 1u << kind &&
                sid_array_new(&inversion->features[kind][layer], dtype == SID_F32 ? SID_FLOAT32 : SID_UINT16, 3, shape))
                return -1;
        fill_bank(inversion, config, layer);
    }
    return 0;
}

static PyObject *export_features(const sid_array *features, const sid_layers *layers) {
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict && i < layers->count; i++) {
        PyObject *array = features[layers->numbers[i]].object;
        if (!array) continue;
        PyObject *layer = PyLong_FromSize_t(layers->numbers[i]);
        if (!layer || PyDict_SetItem(dict, layer, array)) Py_CLEAR(dict);
        Py_XDECREF(layer);
    }
    return dict;
}

PyObject *sid_inversion_export(const sid_inversion *inversion, const sid_layers *layers) {
    PyObject *features[SID_FEATURES] = {NULL}, *data = NULL;
    for (size_t kind = 0; kind < SID_FEATURES; kind++) {
        features[kind] = export_features(inversion->features[kind], layers);
        if (!features[kind]) goto done;
    }
    data =
        Py_BuildValue("{sOsOsOsO}", "latents", inversion->latents.object, feature_names[SID_QUERY], features[SID_QUERY],
                      feature_names[SID_KEY], features[SID_KEY], feature_names[SID_VALUE], features[SID_VALUE]);
done:
    for (size_t kind = 0; kind < SID_FEATURES; kind++) Py_XDECREF(features[kind]);
    return data;
}

/* ---- reading ---- */

/* A new reference to dict[key]; takes the reference to key. name: what error texts call the dictionary. */
static PyObject *get(PyObject *dict, PyObject *key, const char *name) {
    PyObject *value = NULL;
    if (!key) return NULL;
    if (!PyDict_Check(dict)) {
        PyErr_Format(PyExc_TypeError, "%s: expected a dict, got %.100s", name, Py_TYPE(dict)->tp_name);
    } else {
        value = PyDict_GetItemWithError(dict, key);
        Py_XINCREF(value);
        if (!value && !PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "%s: %R is missing", name, key);
    }
    Py_DECREF(key);
    return value;
}

static int read_latents(sid_inversion *inversion, PyObject *data, const char *name, const sid_unet_config *config,
                        size_t steps) {
    char label[64];
    PyOS_snprintf(label, sizeof label, "%s['latents']", name);
    const sid_array_spec spec = {.name = label,
                                 .elements = SID_FLOAT32,
                                 .rank = 4,
                                 .shape = {0, config->in_channels, 0, 0},
                                 .letters = "nChw",
                                 .sides = 2,
                                 .multiple = sid_latent_multiple(config),
                                 .limit = SID_MAX_LATENT_PIXELS * config->in_channels * (steps + 1)};
    PyObject *object = get(data, PyUnicode_FromString("latents"), name);
    if (!object) return -1;
    int failed = sid_array_read(&inversion->latents, object, &spec);
    Py_DECREF(object);
    if (failed) return -1;
    if (inversion->latents.shape[0] != steps + 1) {
        PyErr_Format(PyExc_ValueError, "%s: an inversion of %zu steps, expected %zu", name,
                     inversion->latents.shape[0] - 1, steps);
        return -1;
    }
    return sid_check_finite(&inversion->latents, label);
}

static int read_feature(sid_inversion *inversion, PyObject *dict, size_t kind, size_t layer, const char *name,
                        const sid_unet_config *config) {
    char dict_label[64], label[80];
    PyOS_snprintf(dict_label, sizeof dict_label, "%s['%s']", name, feature_names[kind]);
    PyOS_snprintf(label, sizeof label, "%s[%zu]", dict_label, layer);
    size_t tokens = sid_layer_tokens(config, layer, inversion->latents.shape[2], inversion->latents.shape[3]);
    const sid_array_spec spec = {.name = label,
                                 .elements = SID_FLOAT32 | SID_UINT16,
                                 .rank = 3,
                                 .shape = {inversion->bank.steps, tokens, sid_layer_channels(config, layer)}};
    PyObject *object = get(dict, PyLong_FromSize_t(layer), dict_label);
    if (!object) return -1;
    int failed = sid_array_read(&inversion->features[kind][layer], object, &spec);
    Py_DECREF(object);
    return failed;
}

/* One dictionary of layers; the bank has one dtype for all features. */
static int read_kind(sid_inversion *inversion, PyObject *data, size_t kind, const char *name,
                     const sid_unet_config *config, const sid_layers *layers, sid_element *element) {
    PyObject *dict = get(data, PyUnicode_FromString(feature_names[kind]), name);
    int failed = dict ? 0 : -1;
    for (size_t i = 0; !failed && i < layers->count; i++) {
        const sid_array *array = &inversion->features[kind][layers->numbers[i]];
        failed = read_feature(inversion, dict, kind, layers->numbers[i], name, config);
        if (failed) break;
        if (*element && array->element != *element) {
            PyErr_Format(PyExc_ValueError, "%s: float32 and uint16 features in one inversion", name);
            failed = -1;
        }
        *element = array->element;
    }
    Py_XDECREF(dict);
    return failed;
}

int sid_inversion_read(sid_inversion *inversion, PyObject *data, const char *name, const sid_unet_config *config,
                       const sid_layers *layers, unsigned need, size_t steps) {
    sid_element element = 0;
    if (read_latents(inversion, data, name, config, steps)) return -1;
    inversion->bank.steps = steps;
    for (size_t kind = 0; kind < SID_FEATURES; kind++)
        if (layers->count && need & 1u << kind && read_kind(inversion, data, kind, name, config, layers, &element))
            return -1;
    inversion->bank.dtype = element == SID_UINT16 ? SID_BF16 : SID_F32;
    for (size_t i = 0; i < layers->count; i++) fill_bank(inversion, config, layers->numbers[i]);
    return 0;
}

const float *sid_inversion_last(const sid_inversion *inversion) {
    const sid_array *latents = &inversion->latents;
    size_t size = latents->shape[1] * latents->shape[2] * latents->shape[3];
    return (const float *)latents->data + (latents->shape[0] - 1) * size;
}
