#include "python/hook.h"

#include <string.h>

static const char *const names[] = {"on_attention: query", "on_attention: key", "on_attention: value"};

static void release_inputs(sid_watcher *w) {
    for (size_t i = 0; i < 3; i++) sid_array_close(&w->inputs[i]);
}

static int copy_inputs(sid_watcher *w, const sid_attention_inputs *in) {
    const float *const data[] = {in->q, in->k, in->v};
    const size_t rows[] = {in->queries, in->keys, in->keys};
    for (size_t i = 0; i < 3; i++) {
        const size_t shape[] = {rows[i], in->channels};
        if (sid_array_new(&w->inputs[i], SID_FLOAT32, 2, shape)) return -1;
        memcpy(w->inputs[i].data, data[i], rows[i] * in->channels * sizeof(float));
    }
    return 0;
}

/* Calls the callable with views of the inputs, because it may keep or reshape them. */
static PyObject *call(const sid_watcher *w, size_t step, size_t layer) {
    PyObject *views[3] = {NULL}, *result = NULL;
    int made = 1;
    for (size_t i = 0; i < 3; i++) made = made && (views[i] = sid_array_view(&w->inputs[i]));
    if (made)
        result = PyObject_CallFunction(w->callable, "nnOOO", (Py_ssize_t)step, (Py_ssize_t)layer, views[0], views[1],
                                       views[2]);
    for (size_t i = 0; i < 3; i++) Py_XDECREF(views[i]);
    return result;
}

static int replace(sid_array *input, PyObject *object, const char *name, size_t rows, size_t channels) {
    const sid_array_spec spec = {.name = name,
                                 .elements = SID_FLOAT32,
                                 .rank = 2,
                                 .shape = {rows, channels},
                                 .letters = "nc",
                                 .limit = (size_t)1 << 31};
    sid_array given = {0};
    if (sid_array_read(&given, object, &spec)) return -1;
    sid_array_close(input);
    *input = given;
    return 0;
}

static int take_result(sid_watcher *w, PyObject *result, const sid_attention_inputs *in) {
    if (result != Py_None) {
        if (!PyTuple_Check(result) || PyTuple_GET_SIZE(result) != 3) {
            PyErr_Format(PyExc_TypeError,
                         "on_attention: expected None or (query, key, value) to be returned, got %.100s",
                         Py_TYPE(result)->tp_name);
            return -1;
        }
        for (size_t i = 0; i < 3; i++) {
            PyObject *item = PyTuple_GET_ITEM(result, (Py_ssize_t)i);
            if (item != Py_None && replace(&w->inputs[i], item, names[i], i ? 0 : in->queries, in->channels)) return -1;
        }
    }
    if (w->inputs[1].shape[0] != w->inputs[2].shape[0]) {
        PyErr_Format(PyExc_ValueError, "on_attention: expected as many values as keys, %zu, got %zu",
                     w->inputs[1].shape[0], w->inputs[2].shape[0]);
        return -1;
    }
    for (size_t i = 0; i < 3; i++)
        if (sid_check_finite(&w->inputs[i], names[i])) return -1;
    return 0;
}

static int show(void *self, size_t step, size_t layer, sid_attention_inputs *in) {
    sid_watcher *w = self;
    PyObject *result = NULL;
    PyGILState_STATE gil = PyGILState_Ensure();
    release_inputs(w);
    int failed =
        PyErr_CheckSignals() || copy_inputs(w, in) || !(result = call(w, step, layer)) || take_result(w, result, in);
    Py_XDECREF(result);
    PyGILState_Release(gil);
    if (failed) return -1;
    *in = (sid_attention_inputs){w->inputs[0].data, w->inputs[1].data,     w->inputs[2].data,
                                 in->queries,       w->inputs[1].shape[0], in->channels};
    return 0;
}

const sid_attention_hook *sid_watcher_hook(sid_watcher *w, const sid_layers *layers) {
    w->hook = (sid_attention_hook){.call = show, .self = w};
    for (size_t i = 0; i < layers->count; i++) w->hook.layers[layers->numbers[i]] = 1;
    return &w->hook;
}

void sid_watcher_close(sid_watcher *w) { release_inputs(w); }
