/* One image's inversion: NumPy arrays on Python's side, a bank on the engine's. */
#ifndef SID_PYTHON_INVERSION_H
#define SID_PYTHON_INVERSION_H

#include "python/arguments.h"
#include "style/styleid.h"

enum { SID_QUERY, SID_KEY, SID_VALUE, SID_FEATURES };

/* Sets of features, which may be or'ed. */
enum {
    SID_KEEP_NONE = 0,
    SID_KEEP_QUERY = 1 << SID_QUERY,
    SID_KEEP_VALUE = 1 << SID_VALUE,
    SID_KEEP_KEYS = 1 << SID_KEY | SID_KEEP_VALUE,
    SID_KEEP_ALL = SID_KEEP_QUERY | SID_KEEP_KEYS
};

typedef struct {
    const sid_state *state;
    PyObject *model;     /* borrowed */
    int on_device;       /* whether new features are put in the memory of the model's device */
    sid_array latents;   /* (steps + 1, C, h, w) */
    sid_array predicted; /* (steps, C, h, w) */
    sid_array features[SID_FEATURES][SID_MAX_LAYERS];
    sid_bank bank; /* over their memory */
    /* Where features are to be evaluated again, these are a bank of one step and how to fill it; otherwise the replay
     * has no latents. */
    sid_array context;
    sid_bank *replay_bank;
    sid_replay replay;
} sid_inversion;

/* Makes count empty inversions, which are to be closed in any case; NULL with an exception. on_host: whether new
 * features are put in the host's memory even where the model's device has its own. */
sid_inversion *sid_inversions_new(size_t count, const sid_state *state, PyObject *model, int on_host);
void sid_inversions_close(sid_inversion *inversions, size_t count);

/* What is kept of an inversion. */
typedef struct {
    const sid_unet_config *config;
    const sid_layers *layers;
    unsigned features; /* SID_KEEP_* or'ed */
    sid_dtype dtype;
    size_t steps, slots; /* slots: the steps that features have room for */
} sid_keeping;

/* Makes the arrays. Below, 0 is success and -1 an exception. */
int sid_inversion_allocate(sid_inversion *inversion, const sid_keeping *kept, size_t h, size_t w);

/* A dictionary Features of styleid/_core.pyi. */
PyObject *sid_inversion_export_features(const sid_inversion *inversion, const sid_layers *layers);
/* A dictionary InversionData. */
PyObject *sid_inversion_export(const sid_inversion *inversion, const sid_layers *layers);

/* Reads an InversionData: its latents, and the layers' features that `need` names, all of them checked against each
 * other, the steps and the model. Where it has a context instead, this makes room for one step of the features. name is
 * that of the argument. */
int sid_inversion_read(sid_inversion *inversion, PyObject *data, const char *name, const sid_unet_config *config,
                       const sid_layers *layers, unsigned need, size_t steps);

/* zT: the last of the latents. */
const float *sid_inversion_last(const sid_inversion *inversion);

#endif
