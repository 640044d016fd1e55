#include "python/progress.h"

static int succeeded(PyObject *result) {
    Py_XDECREF(result);
    return result != NULL;
}

static int call_hook(const sid_callbacks *callbacks, size_t step, size_t steps) {
    /* The hook gets a view, because it may keep or reshape it. */
    PyObject *latents = sid_array_view(callbacks->latents);
    if (!latents) return 0;
    PyObject *result = PyObject_CallFunction(callbacks->hook, "nnO", (Py_ssize_t)step, (Py_ssize_t)steps, latents);
    Py_DECREF(latents);
    return succeeded(result);
}

static int report(void *self, size_t step, size_t steps) {
    const sid_callbacks *callbacks = self;
    PyGILState_STATE gil = PyGILState_Ensure();
    int carry_on = PyErr_CheckSignals() == 0;
    if (carry_on && callbacks->sink && step)
        carry_on = succeeded(PyObject_CallFunction(callbacks->sink, "nO", (Py_ssize_t)step - 1, callbacks->features));
    if (carry_on && callbacks->hook) carry_on = call_hook(callbacks, step, steps);
    if (carry_on && callbacks->progress)
        carry_on = succeeded(PyObject_CallFunction(callbacks->progress, "nn", (Py_ssize_t)step, (Py_ssize_t)steps));
    PyGILState_Release(gil);
    return !carry_on;
}

sid_progress sid_callbacks_progress(sid_callbacks *callbacks) {
    return (sid_progress){report, callbacks, callbacks->hook ? callbacks->latents->data : NULL};
}
