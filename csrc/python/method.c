/* The method on NumPy arrays. Each function reads its arguments, makes one call of the engine without the GIL, and
 * gives back what that filled. */
#include "python/request.h"

#include <string.h>

#include "core/err.h"
#include "python/lending.h"
#include "style/adain.h"
#include "style/ddim.h"

/* ---- schedule ---- */

static int new_timesteps(sid_array *array, size_t steps) {
    if (sid_array_new(array, SID_INT32, 1, &steps)) return -1;
    for (size_t i = 0; i < steps; i++) ((int32_t *)array->data)[i] = sid_timestep(steps, i);
    return 0;
}

PyObject *sid_py_timesteps(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"steps", NULL};
    PyObject *object;
    sid_array timesteps = {0};
    size_t steps;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:timesteps", names, &object) || sid_read_steps(&steps, object) ||
        new_timesteps(&timesteps, steps))
        return NULL;
    return timesteps.object;
}

static PyObject *export_schedule(const sid_schedule *schedule, const sid_unet_config *config) {
    const size_t count = schedule->sampling_steps, level_count = count + 1;
    sid_array timesteps = {0}, sampling = {0}, starts = {0}, levels = {0};
    PyObject *result = NULL, *layers = sid_attention_layers(config, (size_t)schedule->first_layer);
    if (!layers || new_timesteps(&timesteps, schedule->steps) || sid_array_new(&sampling, SID_INT32, 1, &count) ||
        sid_array_new(&starts, SID_INT32, 1, &count) || sid_array_new(&levels, SID_FLOAT64, 1, &level_count))
        goto done;
    for (size_t i = 0; i < count; i++) {
        const sid_move *move = &schedule->sampling[i];
        ((int32_t *)sampling.data)[i] = (int32_t)move->slot;
        /* An inversion step takes the latents of the same number, and leads to those of the next one. */
        ((int32_t *)starts.data)[i] = (int32_t)move->slot + (schedule->inversion[move->slot].from != move->from);
        ((double *)levels.data)[i] = move->from;
    }
    ((double *)levels.data)[count] = schedule->sampling[count - 1].to;
    result = Py_BuildValue("{sOsOsOsOsOsdsO}", "timesteps", timesteps.object, "sampling", sampling.object, "starts",
                           starts.object, "levels", levels.object, "layers", layers, "adain_epsilon",
                           (double)schedule->adain_epsilon, "truncate", schedule->truncate ? Py_True : Py_False);
done:
    Py_XDECREF(layers);
    sid_array_close(&timesteps);
    sid_array_close(&sampling);
    sid_array_close(&starts);
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

/* ---- sample, inject_styles ---- */

/* Reads what is injected: a string of the letters q, k and v. */
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

/* What sample and inject_styles take. It starts as zeros and is closed in any case. */
typedef struct {
    sid_request request;
    sid_sources sources;
    sid_array z, where; /* z: the latent that is sampled */
    size_t skip;
} sampling;

static void sampling_close(sampling *s) {
    sid_request_close(&s->request);
    sid_sources_close(&s->sources);
    sid_array_close(&s->z);
    sid_array_close(&s->where);
}

static int check_sizes(const sampling *s) {
    const sid_planes *content = &s->sources.content;
    size_t h = s->z.shape[2], w = s->z.shape[3];
    if (!s->request.layers.count || (content->h == h && content->w == w)) return 0;
    PyErr_Format(PyExc_ValueError, "content: its latents are %zu x %zu, but latent is %zu x %zu", content->h,
                 content->w, h, w);
    return -1;
}

static int sampling_read(sampling *s, PyObject *module, PyObject *args, PyObject *keywords, const char *format) {
    static char *names[] = {"model",   "latent",   "context",  "steps",  "schedule",    "layers",
                            "content", "styles",   "weights",  "gamma",  "temperature", "progress",
                            "hook",    "negative", "guidance", "inject", "regions",     "on_attention",
                            "watched", "skip",     "where",    NULL};
    sid_request_objects o = {.progress = Py_None, .hook = Py_None};
    PyObject *latent, *content, *styles, *weights, *inject = NULL, *regions = NULL, *skip = NULL, *where = NULL;
    sid_request *r = &s->request;
    sid_array given = {0};
    unsigned parts;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, format, names, &o.model, &latent, &o.context, &o.steps,
                                     &o.schedule, &o.layers, &content, &styles, &weights, &o.gamma, &o.temperature,
                                     &o.progress, &o.hook, &o.negative, &o.guidance, &inject, &regions, &o.on_attention,
                                     &o.watched, &skip, &where) ||
        sid_request_read(r, module, &o) || sid_read_latents(&given, latent, "latent", 1, &r->config->unet))
        return -1;
    int failed = sid_array_copy(&s->z, &given);
    sid_array_close(&given);
    if (failed || read_parts(&parts, inject) ||
        (skip && sid_read_size(&s->skip, skip, "skip", 0, r->schedule->sampling_steps - 1)) ||
        (where && where != Py_None && read_where(&s->where, where, r)) ||
        (r->layers.count && sid_sources_read(&s->sources, r, content, styles, weights, parts, regions)) ||
        check_sizes(s))
        return -1;
    s->sources.injection.where = s->where.data;
    r->callbacks.latents = &s->z;
    return 0;
}

/* Lends the replays' latents to the device. */
static int lend_replays(sid_lending *lending, sid_replay *lent, const sid_sampling *how) {
    for (size_t i = 0; i < how->replay_count; i++) {
        sid_planes *latents = &lent[i].latents;
        lent[i] = how->replays[i];
        size_t count = (how->schedule->steps + 1) * sid_planes_count(latents);
        SID_TRY(sid_lend_floats(lending, &latents->data, latents->data, count, SID_LEND_IN));
    }
    return SID_OK;
}

/* Runs without the GIL. z and the replays' latents are the host's. Where image is NULL, only z is wanted. */
static int sampling_run(sampling *s, uint8_t *image) {
    sid_model *model = s->request.model;
    const sid_sources *sources = &s->sources;
    const sid_progress progress = sid_callbacks_progress(&s->request.callbacks);
    sid_lending lending = {.outside = {.backend = sid_model_backend(model)}};
    sid_replay replays[1 + SID_MAX_STYLES];
    sid_planes z;
    sid_sampling how = {.schedule = s->request.schedule,
                        .prompt = &s->request.prompt,
                        .skip = s->skip,
                        .injection = sources->injection.content ? &sources->injection : NULL,
                        .replays = sources->replays,
                        .replay_count = sources->replay_count,
                        .hook = s->request.hook,
                        .progress = &progress};
    int status = sid_lend_planes(&lending, &z, &s->z, SID_LEND_BOTH);
    if (status == SID_OK) status = lend_replays(&lending, replays, &how);
    how.replays = replays;
    if (status == SID_OK) status = image ? sid_inject_styles(model, image, &z, &how) : sid_denoise(model, &z, &how);
    return sid_lending_close(&lending, status);
}

PyObject *sid_py_sample(PyObject *module, PyObject *args, PyObject *keywords) {
    sampling s = {0};
    PyObject *result = NULL;
    int status;
    if (sampling_read(&s, module, args, keywords, "OOOOOOOOOOO|OOOO$OOOOOO:sample") == 0) {
        Py_BEGIN_ALLOW_THREADS
        status = sampling_run(&s, NULL);
        Py_END_ALLOW_THREADS
        result = sid_finish(s.request.state, &s.z, status);
    }
    sampling_close(&s);
    return result;
}

PyObject *sid_py_inject_styles(PyObject *module, PyObject *args, PyObject *keywords) {
    sampling s = {0};
    sid_array image = {0};
    PyObject *result = NULL;
    int status;
    if (sampling_read(&s, module, args, keywords, "OOOOOOOOOOO|OOOO$OOOOOO:inject_styles")) goto done;
    const sid_vae_config *vae = &s.request.config->vae;
    const size_t factor = sid_vae_factor(vae);
    const size_t shape[] = {s.z.shape[2] * factor, s.z.shape[3] * factor, vae->image_channels};
    if (sid_array_new(&image, SID_UINT8, 3, shape)) goto done;
    Py_BEGIN_ALLOW_THREADS
    status = sampling_run(&s, image.data);
    Py_END_ALLOW_THREADS
    result = sid_finish(s.request.state, &image, status);
done:
    sampling_close(&s);
    sid_array_close(&image);
    return result;
}

/* ---- predicted, adain, transfer ---- */

static int read_levels(double levels[2], PyObject *const objects[2]) {
    if (sid_read_number(&levels[0], objects[0], "level") || sid_read_number(&levels[1], objects[1], "next_level"))
        return -1;
    if (levels[0] > 0 && levels[0] < levels[1] && levels[1] <= 1) return 0;
    PyErr_Format(PyExc_ValueError, "level, next_level: expected 0 < level < next_level <= 1, got %S and %S", objects[0],
                 objects[1]);
    return -1;
}

PyObject *sid_py_predicted(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"before", "after", "level", "next_level", NULL};
    sid_array_spec spec = {.name = "before", .elements = SID_FLOAT32, .rank = 4, .letters = "NChw"};
    PyObject *arrays[2], *level_objects[2], *result = NULL;
    sid_array before = {0}, after = {0}, x0 = {0};
    double levels[2];
    (void)module;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOO:predicted", names, &arrays[0], &arrays[1], &level_objects[0],
                                     &level_objects[1]) ||
        read_levels(levels, level_objects) || sid_array_read(&before, arrays[0], &spec))
        goto done;
    spec.name = "after";
    memcpy(spec.shape, before.shape, sizeof spec.shape);
    if (sid_array_read(&after, arrays[1], &spec) || sid_array_new(&x0, SID_FLOAT32, 4, before.shape)) goto done;
    sid_ddim_predicted(x0.data, before.data, after.data, sid_array_count(&x0), levels[0], levels[1]);
    result = Py_NewRef(x0.object);
done:
    sid_array_close(&before);
    sid_array_close(&after);
    sid_array_close(&x0);
    return result;
}

/* Reads a latent of at least two pixels a channel, so that it has a standard deviation. channels is 0 where any number
 * will do. */
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

PyObject *sid_py_transfer(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"model",  "content", "style",       "context", "steps",    "schedule",
                            "layers", "gamma",   "temperature", "adain",   "progress", NULL};
    sid_request_objects o = {.progress = Py_None};
    PyObject *content_object, *style_object, *result = NULL;
    sid_request r = {0};
    sid_array content = {0}, style = {0}, image = {0};
    int adain = 1, status;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOOOOO|pO:transfer", names, &o.model, &content_object,
                                     &style_object, &o.context, &o.steps, &o.schedule, &o.layers, &o.gamma,
                                     &o.temperature, &adain, &o.progress) ||
        sid_request_read(&r, module, &o))
        goto done;
    const sid_vae_config *vae = &r.config->vae;
    size_t multiple = sid_vae_factor(vae) * sid_latent_multiple(&r.config->unet);
    if (sid_read_images(&content, content_object, "content", 3, vae, multiple) ||
        sid_read_images(&style, style_object, "style", 3, vae, multiple) ||
        sid_array_new(&image, SID_UINT8, 3, content.shape))
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
                                  .progress = &progress};
    Py_BEGIN_ALLOW_THREADS
    status = sid_transfer(r.model, image.data, &content_image, &style_image, &how);
    Py_END_ALLOW_THREADS
    result = sid_finish(r.state, &image, status);
done:
    sid_request_close(&r);
    sid_array_close(&content);
    sid_array_close(&style);
    sid_array_close(&image);
    return result;
}
