/* Python's progress and hook as the engine's callback. */
#ifndef SID_PYTHON_PROGRESS_H
#define SID_PYTHON_PROGRESS_H

#include "python/ndarray.h"
#include "style/styleid.h"

typedef struct {
    PyObject *progress, *hook; /* borrowed; NULL: none */
    const sid_array *latents;  /* host memory for the hook's latents; set where there is a hook */
    PyObject *sink, *features; /* borrowed; sink may be NULL; the engine saves each step's features in `features` */
} sid_callbacks;

/* The callback of a run that has released the GIL: looks for signals, so that Ctrl-C stops within a step, then calls
 * sink(step - 1, features), hook(step, steps, latents) and progress(step, steps). An exception of theirs cancels the
 * run. */
sid_progress sid_callbacks_progress(sid_callbacks *callbacks);

#endif
