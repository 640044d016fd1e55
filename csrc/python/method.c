/* The method on NumPy arrays. Each function reads its arguments, makes one call of the engine without the GIL, and
 * gives back what that filled. */
#include "python/request.h"

#include <string.h>

#include "core/err.h"
#include "python/lending.h"
#include "style/adain.h"

/* What a function returns: the array if the engine succeeded. */
static PyObject *finish(const sid_request *request, const sid_array *array, int status) {
    if (status == SID_OK) return Py_NewRef(array->object);
    sid_raise(request->state, status);
    return NULL;
}

/* ---- schedule ---- */

static PyObject *export_schedule(const sid_schedule *schedule, const sid_unet_config *config) {
    size_t level_count = schedule->sampling_steps + 1;
    sid_array timesteps = {0}, sampling = {0}, levels = {0};
    PyObject *result = NULL, *layers = sid_attention_layers(config, (size_t)schedule->first_layer);
    if (!layers || sid_array_new(&timesteps, SID_INT32, 1, &schedule->steps) ||
        sid_array_new(&sampling, SID_INT32, 1, &schedule->sampling_steps) ||
        sid_array_new(&levels, SID_FLOAT64, 1, &level_count))
        goto done;
    for (size_t i = 0; i < schedule->steps; i++) ((int32_t *)timesteps.data)[i] = schedule->inversion[i].timestep;
    for (size_t i = 0; i < schedule->sampling_steps; i++) {
        ((int32_t *)sampling.data)[i] = (int32_t)schedule->sampling[i].slot;
        ((double *)levels.data)[i] = schedule->sampling[i].from;
    }
    ((double *)levels.data)[schedule->sampling_steps] = schedule->sampling[schedule->sampling_steps - 1].to;
    result = Py_BuildValue("{sOsOsOsOsdsO}", "timesteps", timesteps.object, "sampling", sampling.object, "levels",
                           levels.object, "layers", layers, "adain_epsilon", (double)schedule->adain_epsilon,
                           "truncate", schedule->truncate ? Py_True : Py_False);
done:
    Py_XDECREF(layers);
    sid_array_close(&timesteps);
    sid_array_close(&sampling);
    sid_array_close(&levels);
    return result;
}

PyObject *sid_py_schedule(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"model", "name", "steps", NULL};
    PyObject *model, *name, *steps, *result = NULL;
    sid_request r = {0};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO:schedule", names, &model, &name, &steps)) return NULL;
    if (sid_request_read_schedule(&r, module, model, name, steps) == 0)
        result = export_schedule(r.schedule, &r.config->unet);
    sid_request_close(&r);
    return result;
}

/* ---- sample, adain, inject_styles, transfer ---- */

/* What is injected: a string of letters, q, k and v. */
static int read_parts(unsigned *parts, PyObject *object) {
    *parts = SID_KEEP_ALL;
    if (!object) return 0;
    const char *letters = PyUnicode_Check(object) ? PyUnicode_AsUTF8(object) : NULL;
    if (!letters || letters[strspn(letters, "qkv")]) {
        if (!PyErr_Occurred())
            PyErr_Format(PyUnicode_Check(object) ? PyExc_ValueError : PyExc_TypeError,
                         "inject: expected a string of q, k and v, got %R", object);
        return -1;
    }
    *parts = 0;
    for (size_t kind = 0; kind < SID_FEATURES; kind++)
        if (strchr(letters, "qkv"[kind])) *parts |= 1u << kind;
    return 0;
}

/* Whether a step injects into a layer. */
static int read_where(sid_array *where, PyObject *object, const sid_request *r) {
    const sid_array_spec spec = {.name = "where",
                                 .elements = SID_UINT8,
                                 .rank = 2,
                                 .shape = {r->schedule->steps, sid_layer_count(&r->config->unet)}};
    return sid_array_read(where, object, &spec);
}

static sid_sampling sampling_of(const sid_request *r, const sid_sources *s, const sid_progress *progress) {
    return (sid_sampling){.schedule = r->schedule,
                          .prompt = &r->prompt,
                          .injection = &s->injection,
                          .replays = s->replays,
                          .replay_count = s->replay_count,
                          .hook = r->hook,
                          .progress = progress};
}

/* Replays' latents on the device. */
static int lend_replays(sid_lending *lending, sid_replay *lent, const sid_sampling *how) {
    for (size_t i = 0; i < how->replay_count; i++) {
        sid_planes *latents = &lent[i].latents;
        lent[i] = how->replays[i];
        size_t count = (how->schedule->steps + 1) * sid_planes_count(latents);
        SID_TRY(sid_lend_floats(lending, &latents->data, latents->data, count, SID_LEND_IN));
    }
    return SID_OK;
}

/* sid_denoise() with replays whose latents are the host's. */
static int sample_lent(sid_model *model, const sid_array *z, const sid_sampling *how) {
    sid_lending lending = {.outside = {.backend = sid_model_backend(model)}};
    sid_replay replays[1 + SID_MAX_STYLES];
    sid_sampling lent = *how;
    sid_planes planes;
    lent.replays = replays;
    int status = sid_lend_planes(&lending, &planes, z, SID_LEND_BOTH);
    if (status == SID_OK) status = lend_replays(&lending, replays, how);
    if (status == SID_OK) status = sid_denoise(model, &planes, &lent);
    return sid_lending_close(&lending, status);
}

PyObject *sid_py_sample(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"model",   "latent",   "context",  "steps",  "schedule",    "layers",
                            "content", "styles",   "weights",  "gamma",  "temperature", "progress",
                            "hook",    "negative", "guidance", "inject", "regions",     "on_attention",
                            "watched", "skip",     "where",    NULL};
    sid_request_objects o = {.progress = Py_None, .hook = Py_None};
    PyObject *latent_object, *content, *styles, *weights, *inject = NULL, *regions = NULL, *result = NULL;
    PyObject *skip_object = NULL, *where_object = NULL;
    sid_request r = {0};
    sid_sources s = {0};
    sid_array latent = {0}, z = {0};
    sid_array where = {0};
    unsigned parts;
    size_t skip = 0;
    int status;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOOOOOOO|OOOO$OOOOOO:sample", names, &o.model, &latent_object,
                                     &o.context, &o.steps, &o.schedule, &o.layers, &content, &styles, &weights,
                                     &o.gamma, &o.temperature, &o.progress, &o.hook, &o.negative, &o.guidance, &inject,
                                     &regions, &o.on_attention, &o.watched, &skip_object, &where_object) ||
        sid_request_read(&r, module, &o) || sid_read_latents(&latent, latent_object, "latent", 1, &r.config->unet) ||
        read_parts(&parts, inject) ||
        (skip_object && sid_read_size(&skip, skip_object, "skip", 0, r.schedule->sampling_steps - 1)) ||
        (where_object && where_object != Py_None && read_where(&where, where_object, &r)) ||
        (r.layers.count && sid_sources_read(&s, &r, content, styles, weights, parts, regions)) ||
        sid_array_copy(&z, &latent))
        goto done;
    size_t h = z.shape[2], w = z.shape[3];
    if (r.layers.count && (s.content.h != h || s.content.w != w)) {
        PyErr_Format(PyExc_ValueError, "content: its latents are %zu x %zu, but latent is %zu x %zu", s.content.h,
                     s.content.w, h, w);
        goto done;
    }
    s.injection.where = where.data;
    r.callbacks.latents = &z;
    const sid_progress progress = sid_callbacks_progress(&r.callbacks);
    sid_sampling how = sampling_of(&r, &s, &progress);
    how.skip = skip;
    if (!s.injection.content) how.injection = NULL;
    Py_BEGIN_ALLOW_THREADS
    status = sample_lent(r.model, &z, &how);
    Py_END_ALLOW_THREADS
    result = finish(&r, &z, status);
done:
    sid_request_close(&r);
    sid_sources_close(&s);
    sid_array_close(&where);
    sid_array_close(&latent);
    sid_array_close(&z);
    return result;
}

/* A latent of at least two pixels a channel, so that it has a standard deviation; channels 0: any. */
static int read_statistical(sid_array *array, PyObject *object, const char *name, size_t channels) {
    const sid_array_spec spec = {.name = name,
                                 .elements = SID_FLOAT32,
                                 .rank = 4,
                                 .shape = {1, channels},
                                 .letters = "NChw",
                                 .limit = SID_MAX_LATENT_PIXELS * 128};
    if (sid_array_read(array, object, &spec)) return -1;
    if (array->shape[2] * array->shape[3] > 1) return sid_check_finite(array, name);
    PyErr_Format(PyExc_ValueError, "%s: expected at least two pixels, got one", name);
    return -1;
}

static sid_planes planes_of(const sid_array *a) {
    return (sid_planes){a->data, a->shape[0], a->shape[1], a->shape[2], a->shape[3]};
}

PyObject *sid_py_adain(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"content", "style", "epsilon", NULL};
    PyObject *content_object, *style_object, *epsilon_object = NULL, *result = NULL;
    sid_array content = {0}, style = {0}, z = {0};
    double epsilon = 0;
    (void)module;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|O:adain", names, &content_object, &style_object,
                                     &epsilon_object) ||
        read_statistical(&content, content_object, "content", 0) ||
        read_statistical(&style, style_object, "style", content.shape[1]) ||
        (epsilon_object && sid_read_number(&epsilon, epsilon_object, "epsilon")) ||
        sid_array_new(&z, SID_FLOAT32, 4, content.shape))
        goto done;
    sid_planes dst = planes_of(&z), from = planes_of(&content), to = planes_of(&style);
    Py_BEGIN_ALLOW_THREADS
    sid_adain(&dst, &from, &to, (float)epsilon);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(z.object);
done:
    sid_array_close(&content);
    sid_array_close(&style);
    sid_array_close(&z);
    return result;
}

static int lend_latent(sid_lending *lending, sid_planes *lent, const sid_planes *host) {
    *lent = *host;
    return sid_lend_floats(lending, &lent->data, host->data, sid_planes_count(host), SID_LEND_IN);
}

/* sid_inject_styles() with latents that are the host's. */
static int inject_lent(sid_model *model, const sid_array *picture, const sid_array *z, const sid_latents *latents,
                       const sid_sampling *how) {
    sid_lending lending = {.outside = {.backend = sid_model_backend(model)}};
    sid_replay replays[1 + SID_MAX_STYLES];
    sid_sampling lent = *how;
    sid_planes planes, content, styles[SID_MAX_STYLES];
    lent.replays = replays;
    int status = sid_lend_planes(&lending, &planes, z, SID_LEND_BOTH);
    if (status == SID_OK) status = lend_replays(&lending, replays, how);
    if (status == SID_OK) status = lend_latent(&lending, &content, latents->content);
    for (size_t i = 0; i < how->injection->style_count && status == SID_OK; i++)
        status = lend_latent(&lending, &styles[i], &latents->styles[i]);
    if (status == SID_OK)
        status = sid_inject_styles(model, picture->data, &planes, &(sid_latents){&content, styles, latents->adain}, &lent);
    return sid_lending_close(&lending, status);
}

PyObject *sid_py_inject_styles(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"model", "content",     "styles", "context",  "steps", "schedule", "layers",   "weights",
                            "gamma", "temperature", "adain",  "progress", "hook",  "negative", "guidance", NULL};
    sid_request_objects o = {.progress = Py_None, .hook = Py_None};
    PyObject *content, *styles, *weights, *result = NULL;
    sid_request r = {0};
    sid_sources s = {0};
    sid_array z = {0}, picture = {0};
    int adain = 1, status;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOOOOOO|pOOOO:inject_styles", names, &o.model, &content,
                                     &styles, &o.context, &o.steps, &o.schedule, &o.layers, &weights, &o.gamma,
                                     &o.temperature, &adain, &o.progress, &o.hook, &o.negative, &o.guidance) ||
        sid_request_read(&r, module, &o) || sid_sources_read(&s, &r, content, styles, weights, SID_KEEP_ALL, NULL))
        goto done;
    const sid_vae_config *vae = &r.config->vae;
    const size_t z_shape[] = {1, r.config->unet.in_channels, s.content.h, s.content.w};
    const size_t shape[] = {s.content.h * sid_vae_factor(vae), s.content.w * sid_vae_factor(vae), vae->image_channels};
    if (sid_array_new(&z, SID_FLOAT32, 4, z_shape) || sid_array_new(&picture, SID_UINT8, 3, shape)) goto done;
    r.callbacks.latents = &z;
    const sid_progress progress = sid_callbacks_progress(&r.callbacks);
    const sid_sampling how = sampling_of(&r, &s, &progress);
    Py_BEGIN_ALLOW_THREADS
    status = inject_lent(r.model, &picture, &z, &(sid_latents){&s.content, s.styles, adain}, &how);
    Py_END_ALLOW_THREADS
    result = finish(&r, &picture, status);
done:
    sid_request_close(&r);
    sid_sources_close(&s);
    sid_array_close(&z);
    sid_array_close(&picture);
    return result;
}

PyObject *sid_py_transfer(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"model", "content",     "style", "context",  "steps",     "schedule", "layers",
                            "gamma", "temperature", "adain", "progress", "recompute", NULL};
    sid_request_objects o = {.progress = Py_None};
    PyObject *content_object, *style_object, *result = NULL;
    sid_request r = {0};
    sid_array content = {0}, style = {0}, picture = {0};
    int adain = 1, recompute = 0, status;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOOOOO|pOp:transfer", names, &o.model, &content_object,
                                     &style_object, &o.context, &o.steps, &o.schedule, &o.layers, &o.gamma,
                                     &o.temperature, &adain, &o.progress, &recompute) ||
        sid_request_read(&r, module, &o))
        goto done;
    const sid_vae_config *vae = &r.config->vae;
    size_t multiple = sid_vae_factor(vae) * sid_latent_multiple(&r.config->unet);
    if (sid_read_images(&content, content_object, "content", 3, vae, multiple) ||
        sid_read_images(&style, style_object, "style", 3, vae, multiple) ||
        sid_array_new(&picture, SID_UINT8, 3, content.shape))
        goto done;
    sid_image content_image = sid_image_of(&content), style_image = sid_image_of(&style);
    const sid_progress progress = sid_callbacks_progress(&r.callbacks);
    const sid_transferring how = {.schedule = r.schedule,
                                  .prompt = &r.prompt,
                                  .layers = r.layers.numbers,
                                  .layer_count = r.layers.count,
                                  .gamma = r.gamma.data,
                                  .temperature = r.temperature.data,
                                  .adain = adain,
                                  .recompute = recompute,
                                  .progress = &progress};
    Py_BEGIN_ALLOW_THREADS
    status = sid_transfer(r.model, picture.data, &content_image, &style_image, &how);
    Py_END_ALLOW_THREADS
    result = finish(&r, &picture, status);
done:
    sid_request_close(&r);
    sid_array_close(&content);
    sid_array_close(&style);
    sid_array_close(&picture);
    return result;
}
