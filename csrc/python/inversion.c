#include "python/inversion.h"

#include "python/device_array.h"

static const char *const feature_names[SID_FEATURES] = {"query", "key", "value"};

/* The types of features in NumPy, which has no bfloat16: uint16 holds the bits. */
static const sid_element feature_elements[SID_DTYPE_COUNT] = {
    [SID_F32] = SID_FLOAT32, [SID_BF16] = SID_UINT16, [SID_F16] = SID_FLOAT16};

sid_inversion *sid_inversions_new(size_t count, const sid_state *state, PyObject *model, int on_host) {
    const sid_backend *backend = sid_model_backend(((sid_model_object *)model)->model);
    sid_inversion *inversions = PyMem_Calloc(count, sizeof *inversions);
    if (!inversions) PyErr_NoMemory();
    for (size_t i = 0; inversions && i < count; i++) {
        inversions[i].state = state;
        inversions[i].model = model;
        inversions[i].on_device = !on_host && !backend->memory.is_host;
    }
    return inversions;
}

void sid_inversions_close(sid_inversion *inversions, size_t count) {
    for (size_t i = 0; inversions && i < count; i++) {
        sid_array_close(&inversions[i].latents);
        sid_array_close(&inversions[i].predicted);
        sid_array_close(&inversions[i].context);
        for (size_t kind = 0; kind < SID_FEATURES; kind++)
            for (size_t layer = 0; layer < SID_MAX_LAYERS; layer++)
                sid_array_close(&inversions[i].features[kind][layer]);
    }
    PyMem_Free(inversions);
}

/* Points the bank to the layers' arrays. */
static void fill_bank(sid_inversion *inversion, const sid_layers *layers) {
    for (size_t i = 0; i < layers->count; i++) {
        sid_bank_layer *layer = &inversion->bank.layers[layers->numbers[i]];
        layer->query = inversion->features[SID_QUERY][layers->numbers[i]].data;
        layer->key = inversion->features[SID_KEY][layers->numbers[i]].data;
        layer->value = inversion->features[SID_VALUE][layers->numbers[i]].data;
    }
}

/* Sets the sizes of features; the latents' array exists. */
static void fit_bank(sid_inversion *inversion, const sid_unet_config *config, const sid_layers *layers) {
    sid_bank_fit(&inversion->bank, config, layers->numbers, layers->count, inversion->latents.shape[2],
                 inversion->latents.shape[3]);
}

static int new_feature(const sid_inversion *inversion, sid_array *feature, sid_dtype dtype, const size_t shape[3]) {
    if (inversion->on_device)
        return sid_device_array_new(feature, inversion->state, inversion->model, feature_elements[dtype], 3, shape);
    return sid_array_new(feature, feature_elements[dtype], 3, shape);
}

/* Makes the arrays for features; the latents' array exists. */
static int allocate_features(sid_inversion *inversion, const sid_keeping *kept) {
    inversion->bank.dtype = kept->dtype;
    inversion->bank.on_host = !inversion->on_device;
    inversion->bank.steps = kept->slots;
    fit_bank(inversion, kept->config, kept->layers);
    for (size_t i = 0; i < kept->layers->count; i++) {
        size_t layer = kept->layers->numbers[i];
        const size_t shape[] = {kept->slots, inversion->bank.layers[layer].tokens,
                                inversion->bank.layers[layer].channels};
        for (size_t kind = 0; kind < SID_FEATURES; kind++)
            if (kept->features & 1u << kind &&
                new_feature(inversion, &inversion->features[kind][layer], kept->dtype, shape))
                return -1;
    }
    fill_bank(inversion, kept->layers);
    return 0;
}

int sid_inversion_allocate(sid_inversion *inversion, const sid_keeping *kept, size_t h, size_t w) {
    const size_t latents_shape[] = {kept->steps + 1, kept->config->in_channels, h, w};
    const size_t predicted_shape[] = {kept->steps, kept->config->in_channels, h, w};
    if (sid_array_new(&inversion->latents, SID_FLOAT32, 4, latents_shape) ||
        sid_array_new(&inversion->predicted, SID_FLOAT32, 4, predicted_shape))
        return -1;
    return allocate_features(inversion, kept);
}

static PyObject *export_kind(const sid_array *features, const sid_layers *layers) {
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict && i < layers->count; i++) {
        const sid_array *kept = &features[layers->numbers[i]];
        if (!kept->object) continue;
        /* With a view, whoever gets it during the run cannot free what the engine writes to. */
        PyObject *layer = PyLong_FromSize_t(layers->numbers[i]), *array = sid_array_view(kept);
        if (!layer || !array || PyDict_SetItem(dict, layer, array)) Py_CLEAR(dict);
        Py_XDECREF(layer);
        Py_XDECREF(array);
    }
    return dict;
}

PyObject *sid_inversion_export_features(const sid_inversion *inversion, const sid_layers *layers) {
    PyObject *data = PyDict_New();
    for (size_t kind = 0; data && kind < SID_FEATURES; kind++) {
        PyObject *arrays = export_kind(inversion->features[kind], layers);
        if (!arrays || PyDict_SetItemString(data, feature_names[kind], arrays)) Py_CLEAR(data);
        Py_XDECREF(arrays);
    }
    return data;
}

PyObject *sid_inversion_export(const sid_inversion *inversion, const sid_layers *layers) {
    PyObject *data = sid_inversion_export_features(inversion, layers);
    if (data && (PyDict_SetItemString(data, "latents", inversion->latents.object) ||
                 PyDict_SetItemString(data, "predicted", inversion->predicted.object)))
        Py_CLEAR(data);
    return data;
}

/* ---- reading ---- */

/* A new reference to dict[key]; this takes the reference to key. Error texts call the dictionary by `name`. */
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

static int read_feature(sid_inversion *inversion, PyObject *dict, size_t kind, size_t layer, const char *name) {
    const sid_bank_layer *sizes = &inversion->bank.layers[layer];
    char dict_label[64], label[80];
    PyOS_snprintf(dict_label, sizeof dict_label, "%s['%s']", name, feature_names[kind]);
    PyOS_snprintf(label, sizeof label, "%s[%zu]", dict_label, layer);
    const sid_array_spec spec = {.name = label,
                                 .elements = SID_FLOAT32 | SID_UINT16 | SID_FLOAT16,
                                 .rank = 3,
                                 .shape = {inversion->bank.steps, sizes->tokens, sizes->channels}};
    PyObject *object = get(dict, PyLong_FromSize_t(layer), dict_label);
    if (!object) return -1;
    sid_array *feature = &inversion->features[kind][layer];
    int on_device = 0;
    int failed = sid_device_array_read(feature, &on_device, inversion->state, inversion->model, object, &spec);
    Py_DECREF(object);
    if (failed || inversion->bank.on_host == !on_device) return failed;
    if (inversion->bank.on_host < 0) {
        inversion->bank.on_host = !on_device;
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "%s: features of the host and of a device in one inversion", name);
    return -1;
}

/* Reads one dictionary of layers; the bank has one dtype for all features. */
static int read_kind(sid_inversion *inversion, PyObject *data, size_t kind, const char *name, const sid_layers *layers,
                     sid_element *element) {
    PyObject *dict = get(data, PyUnicode_FromString(feature_names[kind]), name);
    int failed = dict ? 0 : -1;
    for (size_t i = 0; !failed && i < layers->count; i++) {
        const sid_array *array = &inversion->features[kind][layers->numbers[i]];
        failed = read_feature(inversion, dict, kind, layers->numbers[i], name);
        if (failed) break;
        if (*element && array->element != *element) {
            PyErr_Format(PyExc_ValueError, "%s: features of several types in one inversion", name);
            failed = -1;
        }
        *element = array->element;
    }
    Py_XDECREF(dict);
    return failed;
}

/* Reads what features are evaluated again from, data["context"], and the type that they are then kept in. */
static int read_replay(sid_inversion *inversion, PyObject *data, const char *name, const sid_unet_config *config,
                       const sid_layers *layers, unsigned need) {
    sid_keeping kept = {.config = config, .layers = layers, .features = need, .slots = 1};
    PyObject *context = get(data, PyUnicode_FromString("context"), name);
    PyObject *dtype_object = context ? get(data, PyUnicode_FromString("feature_dtype"), name) : NULL;
    int failed = !dtype_object || sid_read_context(&inversion->context, context, "context", 1, config) ||
                 sid_read_dtype(&kept.dtype, dtype_object, "feature_dtype") || allocate_features(inversion, &kept);
    Py_XDECREF(context);
    Py_XDECREF(dtype_object);
    if (failed) return -1;
    const size_t *shape = inversion->latents.shape;
    inversion->replay_bank = &inversion->bank;
    inversion->replay = (sid_replay){{inversion->latents.data, 1, shape[1], shape[2], shape[3]},
                                     {inversion->context.data, 1, inversion->context.shape[1]},
                                     &inversion->replay_bank};
    return 0;
}

int sid_inversion_read(sid_inversion *inversion, PyObject *data, const char *name, const sid_unet_config *config,
                       const sid_layers *layers, unsigned need, size_t steps) {
    sid_element element = 0;
    if (read_latents(inversion, data, name, config, steps)) return -1;
    if (layers->count && need && sid_entry(data, "context"))
        return read_replay(inversion, data, name, config, layers, need);
    if (PyErr_Occurred()) return -1;
    inversion->bank.on_host = -1; /* The first feature decides. */
    inversion->bank.steps = steps;
    fit_bank(inversion, config, layers);
    for (size_t kind = 0; kind < SID_FEATURES; kind++)
        if (layers->count && need & 1u << kind && read_kind(inversion, data, kind, name, layers, &element)) return -1;
    if (inversion->bank.on_host < 0) inversion->bank.on_host = 1;
    for (sid_dtype dtype = SID_F32; dtype < SID_DTYPE_COUNT; dtype++)
        if (feature_elements[dtype] == element) inversion->bank.dtype = dtype;
    fill_bank(inversion, layers);
    return 0;
}

const float *sid_inversion_last(const sid_inversion *inversion) {
    const sid_array *latents = &inversion->latents;
    size_t size = latents->shape[1] * latents->shape[2] * latents->shape[3];
    return (const float *)latents->data + (latents->shape[0] - 1) * size;
}
