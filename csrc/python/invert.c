/* DDIM inversion on NumPy arrays, and the features of one of its evaluations. */
#include "python/request.h"

#include <string.h>

#include "core/err.h"
#include "python/lending.h"

#define MAX_BATCH 64
#define MAX_REFINE 1000

static int read_keep(unsigned *keep, PyObject *object, size_t n) {
    static const char *const names[] = {"none", "query", "keys", "both", NULL};
    static const unsigned features[] = {SID_KEEP_NONE, SID_KEEP_QUERY, SID_KEEP_KEYS, SID_KEEP_ALL};
    int failed = 0, choice;
    PyObject *sequence = sid_read_sequence(object, "keep", "strings");
    if (!sequence) return -1;
    if ((size_t)PyTuple_GET_SIZE(sequence) != n) {
        PyErr_Format(PyExc_ValueError, "keep: expected %zu, one for each image, got %zd", n,
                     PyTuple_GET_SIZE(sequence));
        failed = -1;
    }
    for (size_t i = 0; !failed && i < n; i++) {
        failed = sid_read_choice(&choice, PyTuple_GET_ITEM(sequence, (Py_ssize_t)i), "keep", names);
        if (!failed) keep[i] = features[choice];
    }
    Py_DECREF(sequence);
    return failed;
}

static int read_batch(sid_array *latents, unsigned *keep, PyObject *latents_object, PyObject *keep_object,
                      const sid_unet_config *config) {
    if (sid_read_latents(latents, latents_object, "latents", 0, config)) return -1;
    if (latents->shape[0] <= MAX_BATCH) return read_keep(keep, keep_object, latents->shape[0]);
    PyErr_Format(PyExc_ValueError, "latents: expected at most %d images, got %zu", MAX_BATCH, latents->shape[0]);
    return -1;
}

/* Fills an array (steps, ...) with sample i of (steps, n, ...). */
static void take_sample(sid_array *array, const float *batch, size_t n, size_t i) {
    size_t size = sid_array_count(array) / array->shape[0];
    for (size_t step = 0; step < array->shape[0]; step++)
        memcpy((float *)array->data + step * size, batch + (step * n + i) * size, size * sizeof(float));
}

static PyObject *export_inversions(sid_inversion *inversions, size_t n, const sid_layers *layers,
                                   const sid_trajectory *trajectory) {
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < n; i++) {
        take_sample(&inversions[i].latents, trajectory->latents, n, i);
        take_sample(&inversions[i].predicted, trajectory->predicted, n, i);
        sid_append(&list, sid_inversion_export(&inversions[i], layers));
    }
    return list;
}

/* Makes inversions, whose numbers are still undefined, and banks for a batch of latents. on_host is that of
 * sid_inversions_new(). */
static sid_inversion *inversions_of(const sid_request *r, const sid_array *z, const unsigned *keep, sid_dtype dtype,
                                    size_t slots, int on_host, sid_bank **banks) {
    sid_inversion *inversions = sid_inversions_new(z->shape[0], r->state, r->model_object, on_host);
    sid_keeping kept = {
        .config = &r->config->unet, .layers = &r->layers, .dtype = dtype, .steps = r->schedule->steps, .slots = slots};
    for (size_t i = 0; inversions && i < z->shape[0]; i++) {
        banks[i] = &inversions[i].bank;
        kept.features = keep[i];
        if (sid_inversion_allocate(&inversions[i], &kept, z->shape[2], z->shape[3])) {
            sid_inversions_close(inversions, z->shape[0]);
            return NULL;
        }
    }
    return inversions;
}

/* A list of their Features. */
static PyObject *list_features(const sid_inversion *inversions, size_t n, const sid_layers *layers) {
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < n; i++) sid_append(&list, sid_inversion_export_features(&inversions[i], layers));
    return list;
}

/* Calls sid_invert() with latents and a trajectory that are the host's. */
static int invert_lent(sid_model *model, const sid_array *z, const sid_inverting *how) {
    const size_t steps = how->schedule->steps, count = sid_array_count(z);
    sid_lending lending = {.outside = {.backend = sid_model_backend(model)}};
    sid_inverting lent = *how;
    sid_trajectory *kept = &lent.trajectory;
    sid_planes planes;
    int status = sid_lend_planes(&lending, &planes, z, SID_LEND_BOTH);
    if (status == SID_OK)
        status = sid_lend_floats(&lending, &kept->latents, kept->latents, (steps + 1) * count, SID_LEND_OUT);
    if (status == SID_OK)
        status = sid_lend_floats(&lending, &kept->predicted, kept->predicted, steps * count, SID_LEND_OUT);
    if (status == SID_OK) status = sid_invert(model, &planes, &lent);
    return sid_lending_close(&lending, status);
}

/* Inverts z in place. */
static PyObject *invert(sid_request *r, sid_array *z, const unsigned *keep, sid_dtype dtype, size_t refine,
                        int on_host) {
    size_t n = z->shape[0];
    sid_bank *banks[MAX_BATCH];
    PyObject *result = NULL;
    int status;
    size_t slots = r->callbacks.sink ? 1 : r->schedule->steps;
    sid_inversion *inversions = inversions_of(r, z, keep, dtype, slots, on_host || r->callbacks.sink, banks);
    size_t steps = r->schedule->steps, count = sid_array_count(z);
    sid_trajectory trajectory = {PyMem_New(float, (steps + 1) * count), PyMem_New(float, steps *count)};
    if (!trajectory.latents || !trajectory.predicted) PyErr_NoMemory();
    if (PyErr_Occurred()) goto done;
    r->callbacks.latents = z;
    r->callbacks.features = list_features(inversions, n, &r->layers);
    if (!r->callbacks.features) goto done;
    const sid_progress progress = sid_callbacks_progress(&r->callbacks);
    const sid_inverting how = {.schedule = r->schedule,
                               .prompt = &r->prompt,
                               .banks = banks,
                               .trajectory = trajectory,
                               .refine = refine,
                               .hook = r->hook,
                               .progress = &progress};
    Py_BEGIN_ALLOW_THREADS
    status = invert_lent(r->model, z, &how);
    Py_END_ALLOW_THREADS
    if (status == SID_OK) result = export_inversions(inversions, n, &r->layers, &trajectory);
    else sid_raise(r->state, status);
done:
    Py_CLEAR(r->callbacks.features);
    PyMem_Free(trajectory.latents);
    PyMem_Free(trajectory.predicted);
    sid_inversions_close(inversions, n);
    return result;
}

PyObject *sid_py_invert(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"model",        "latents",       "context",  "steps",  "schedule", "layers",
                            "keep",         "feature_dtype", "progress", "hook",   "negative", "guidance",
                            "on_attention", "watched",       "sink",     "refine", "on_host",  NULL};
    sid_request_objects o = {.progress = Py_None, .hook = Py_None, .sink = Py_None};
    PyObject *latents_object, *keep_object, *dtype_object, *refine_object = NULL, *result = NULL;
    sid_request r = {0};
    sid_array latents = {0}, z = {0};
    unsigned keep[MAX_BATCH];
    sid_dtype dtype;
    size_t refine = 0;
    int on_host = 0;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOOOO|OOOO$OOOOp:invert", names, &o.model, &latents_object,
                                     &o.context, &o.steps, &o.schedule, &o.layers, &keep_object, &dtype_object,
                                     &o.progress, &o.hook, &o.negative, &o.guidance, &o.on_attention, &o.watched,
                                     &o.sink, &refine_object, &on_host) ||
        (refine_object && sid_read_size(&refine, refine_object, "refine", 0, MAX_REFINE)) ||
        sid_request_read(&r, module, &o) || read_batch(&latents, keep, latents_object, keep_object, &r.config->unet) ||
        sid_read_dtype(&dtype, dtype_object, "feature_dtype") || sid_array_copy(&z, &latents))
        goto done;
    result = invert(&r, &z, keep, dtype, refine, on_host);
done:
    sid_request_close(&r);
    sid_array_close(&latents);
    sid_array_close(&z);
    return result;
}

/* ---- features ---- */

static int features_lent(sid_model *model, int timestep, const sid_array *latents, const sid_context *context,
                         sid_bank *const *banks) {
    sid_lending lending = {.outside = {.backend = sid_model_backend(model)}};
    sid_planes planes;
    int status = sid_lend_planes(&lending, &planes, latents, SID_LEND_IN);
    if (status == SID_OK) status = sid_features(model, timestep, &planes, context, banks);
    return sid_lending_close(&lending, status);
}

PyObject *sid_py_features(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"model",  "latents", "context",       "steps", "schedule",
                            "layers", "keep",    "feature_dtype", "step",  NULL};
    sid_request_objects o = {0};
    PyObject *latents_object, *keep_object, *dtype_object, *step_object, *result = NULL;
    sid_request r = {0};
    sid_array latents = {0};
    sid_inversion *inversions = NULL;
    unsigned keep[MAX_BATCH];
    sid_bank *banks[MAX_BATCH];
    sid_dtype dtype;
    size_t step;
    int status;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOOOOO:features", names, &o.model, &latents_object, &o.context,
                                     &o.steps, &o.schedule, &o.layers, &keep_object, &dtype_object, &step_object) ||
        sid_request_read(&r, module, &o) || read_batch(&latents, keep, latents_object, keep_object, &r.config->unet) ||
        sid_read_dtype(&dtype, dtype_object, "feature_dtype") ||
        sid_read_size(&step, step_object, "step", 0, r.schedule->steps - 1) ||
        !(inversions = inversions_of(&r, &latents, keep, dtype, 1, 1, banks)))
        goto done;
    Py_BEGIN_ALLOW_THREADS
    status = features_lent(r.model, r.schedule->inversion[step].timestep, &latents, &r.prompt.context, banks);
    Py_END_ALLOW_THREADS
    if (status == SID_OK) result = list_features(inversions, latents.shape[0], &r.layers);
    else sid_raise(r.state, status);
done:
    sid_inversions_close(inversions, latents.shape[0]);
    sid_request_close(&r);
    sid_array_close(&latents);
    return result;
}
