/* Python's on_attention as the engine's attention hook. */
#ifndef SID_PYTHON_HOOK_H
#define SID_PYTHON_HOOK_H

#include "python/arguments.h"

/* It starts as zeros and is closed in any case. */
typedef struct {
    PyObject *callable;  /* borrowed; NULL: none */
    sid_array inputs[3]; /* Q, K and V of the last call, which the engine may still read */
    sid_attention_hook hook;
} sid_watcher;

/* The hook of a run that has released the GIL. It calls on_attention(step, layer, query, key, value) in these layers,
 * with float32 arrays that are the callable's to keep or change, and takes (query, key, value) back where it returns
 * such; None stands for what was given. An exception, or a signal's, ends the run. */
const sid_attention_hook *sid_watcher_hook(sid_watcher *watcher, const sid_layers *layers);
void sid_watcher_close(sid_watcher *watcher);

#endif
