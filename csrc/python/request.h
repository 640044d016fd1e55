/* What the functions of method.c read from their arguments before they call the engine. */
#ifndef SID_PYTHON_REQUEST_H
#define SID_PYTHON_REQUEST_H

#include "python/hook.h"
#include "python/inversion.h"
#include "python/progress.h"
#include "python/regions.h"
#include "style/transfer.h"

/* The arguments that these functions share; NULL where a function has no such argument. */
typedef struct {
    PyObject *model, *context, *negative, *guidance, *steps, *schedule, *layers, *gamma, *temperature;
    PyObject *progress, *hook, *on_attention, *watched, *sink;
} sid_request_objects;

/* It starts as zeros and is closed in any case. Everything in it lives until then. */
typedef struct {
    const sid_state *state;
    PyObject *model_object; /* borrowed */
    sid_model *model;
    const sid_config *config;
    sid_schedule *schedule;
    sid_layers layers, watched; /* watched: by on_attention */
    sid_array context, negative;
    sid_prompt prompt;            /* over their memory */
    sid_array gamma, temperature; /* (steps, decoder layers) */
    sid_callbacks callbacks;
    sid_watcher watcher;
    const sid_attention_hook *hook; /* calls it; NULL: none */
} sid_request;

/* Below, 0 is success and -1 an exception. */
int sid_request_read(sid_request *request, PyObject *module, const sid_request_objects *objects);
/* Reads only the model and the schedule. */
int sid_request_read_schedule(sid_request *request, PyObject *module, PyObject *model, PyObject *name, PyObject *steps);
void sid_request_close(sid_request *request);

/* What is injected. It starts as zeros and is closed in any case. */
typedef struct {
    sid_inversion *inversions; /* the content's, then the styles' */
    size_t style_count;
    float *weights;
    const sid_bank *style_banks[SID_MAX_STYLES];
    sid_planes content, styles[SID_MAX_STYLES]; /* zT of each, on the host */
    sid_regions *regions;                       /* NULL: everywhere */
    sid_replay replays[1 + SID_MAX_STYLES];     /* their latents are the host's */
    size_t replay_count;
    sid_injection injection;
} sid_sources;

/* parts are the features that are injected, SID_KEEP_* or'ed. Without parts or layers nothing is injected, and only the
 * inversions' latents are read. regions is NULL or None for everywhere. */
int sid_sources_read(sid_sources *sources, const sid_request *request, PyObject *content, PyObject *styles,
                     PyObject *weights, unsigned parts, PyObject *regions);
void sid_sources_close(sid_sources *sources);

#endif
