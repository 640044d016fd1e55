#include "python/request.h"

#include <float.h>

#include "core/err.h"

static int read_model(sid_request *r, PyObject *module, PyObject *model) {
    r->state = PyModule_GetState(module);
    if (!Py_IS_TYPE(model, (PyTypeObject *)r->state->model_type)) {
        PyErr_Format(PyExc_TypeError, "model: expected a Model, got %.100s", Py_TYPE(model)->tp_name);
        return -1;
    }
    r->model_object = model;
    r->model = ((sid_model_object *)model)->model;
    r->config = sid_model_config(r->model);
    return sid_check_unet(r->config);
}

static int read_schedule(sid_request *r, PyObject *name_object, PyObject *steps_object) {
    int name;
    size_t steps;
    if (sid_read_choice(&name, name_object, "schedule", sid_schedule_names()) || sid_read_steps(&steps, steps_object))
        return -1;
    r->schedule = PyMem_Malloc(sizeof *r->schedule);
    if (!r->schedule) {
        PyErr_NoMemory();
        return -1;
    }
    int status = sid_schedule_open(r->schedule, (sid_schedule_name)name, steps, r->config->alphas);
    if (status != SID_OK) sid_raise(r->state, status);
    return status == SID_OK ? 0 : -1;
}

static int read_strengths(sid_request *r, PyObject *gamma, PyObject *temperature) {
    sid_array_spec spec = {.name = "gamma",
                           .elements = SID_FLOAT32,
                           .rank = 2,
                           .shape = {r->schedule->steps, sid_layer_count(&r->config->unet)}};
    if (sid_array_read(&r->gamma, gamma, &spec) || sid_check_finite(&r->gamma, "gamma")) return -1;
    spec.name = "temperature";
    if (sid_array_read(&r->temperature, temperature, &spec)) return -1;
    return sid_check_values(&r->temperature, "temperature", FLT_MIN, FLT_MAX, "positive finite numbers");
}

/* Reads the context and, unless negative is None, the one that guidance leads away from. */
static int read_prompt(sid_request *r, PyObject *context, PyObject *negative, PyObject *guidance) {
    double number = 1;
    if (sid_read_context(&r->context, context, "context", 1, &r->config->unet)) return -1;
    r->prompt = (sid_prompt){.context = {r->context.data, 1, r->context.shape[1]}};
    if (!negative || negative == Py_None) return 0;
    if (sid_read_context(&r->negative, negative, "negative", 1, &r->config->unet) ||
        (guidance && sid_read_number(&number, guidance, "guidance")))
        return -1;
    r->prompt.negative = (sid_context){r->negative.data, 1, r->negative.shape[1]};
    r->prompt.guidance = (float)number;
    return 0;
}

/* Reads the layers that on_attention sees. Where none are given, it sees those of the features. */
static int read_watched(sid_request *r, PyObject *object) {
    r->watched = r->layers;
    return object && object != Py_None ? sid_read_layers(&r->watched, object, "watched", &r->config->unet) : 0;
}

int sid_request_read_schedule(sid_request *r, PyObject *module, PyObject *model, PyObject *name, PyObject *steps) {
    return read_model(r, module, model) || read_schedule(r, name, steps) ? -1 : 0;
}

int sid_request_read(sid_request *r, PyObject *module, const sid_request_objects *objects) {
    if (sid_request_read_schedule(r, module, objects->model, objects->schedule, objects->steps) ||
        read_prompt(r, objects->context, objects->negative, objects->guidance) ||
        sid_read_layers(&r->layers, objects->layers, "layers", &r->config->unet) || read_watched(r, objects->watched) ||
        (objects->gamma && read_strengths(r, objects->gamma, objects->temperature)) ||
        (objects->progress && sid_read_callable(&r->callbacks.progress, objects->progress, "progress")) ||
        (objects->hook && sid_read_callable(&r->callbacks.hook, objects->hook, "hook")) ||
        (objects->on_attention && sid_read_callable(&r->watcher.callable, objects->on_attention, "on_attention")) ||
        (objects->sink && sid_read_callable(&r->callbacks.sink, objects->sink, "sink")))
        return -1;
    if (r->watcher.callable) r->hook = sid_watcher_hook(&r->watcher, &r->watched);
    return 0;
}

void sid_request_close(sid_request *r) {
    PyMem_Free(r->schedule);
    sid_array_close(&r->context);
    sid_array_close(&r->negative);
    sid_array_close(&r->gamma);
    sid_array_close(&r->temperature);
    sid_watcher_close(&r->watcher);
}

/* ---- sources ---- */

/* zT, on the host. */
static sid_planes last_latent(const sid_inversion *inversion) {
    const size_t *shape = inversion->latents.shape;
    return (sid_planes){(float *)sid_inversion_last(inversion), 1, shape[1], shape[2], shape[3]};
}

/* Where only keys or only values are injected, the others are the layer's own, so that their numbers have to agree. */
static int check_tokens(const sid_sources *s, size_t style, const char *name, unsigned parts) {
    const sid_planes *content = &s->content, *other = &s->styles[style];
    unsigned injected = parts & SID_KEEP_KEYS;
    if (!injected || injected == SID_KEEP_KEYS || content->h * content->w == other->h * other->w) return 0;
    PyErr_Format(PyExc_ValueError,
                 "%s: with %s alone injected it needs as many tokens as the content, but its latents are %zu x %zu, "
                 "and the content's %zu x %zu",
                 name, injected == SID_KEEP_VALUE ? "values" : "keys", other->h, other->w, content->h, content->w);
    return -1;
}

static int read_styles(sid_sources *s, const sid_request *r, PyObject *styles, unsigned parts) {
    for (size_t i = 0; i < s->style_count; i++) {
        char name[32];
        sid_inversion *inversion = &s->inversions[1 + i];
        PyOS_snprintf(name, sizeof name, "styles[%zu]", i);
        if (sid_inversion_read(inversion, PyTuple_GET_ITEM(styles, (Py_ssize_t)i), name, &r->config->unet, &r->layers,
                               parts & SID_KEEP_KEYS, r->schedule->steps))
            return -1;
        s->styles[i] = last_latent(inversion);
        s->style_banks[i] = &inversion->bank;
        if (check_tokens(s, i, name, parts)) return -1;
    }
    return 0;
}

int sid_sources_read(sid_sources *s, const sid_request *r, PyObject *content, PyObject *styles, PyObject *weights,
                     unsigned parts, PyObject *regions) {
    PyObject *sequence = sid_read_sequence(styles, "styles", "inversions");
    int failed = -1;
    if (!sequence) return -1;
    s->style_count = (size_t)PyTuple_GET_SIZE(sequence);
    if (s->style_count < 1 || s->style_count > SID_MAX_STYLES) {
        PyErr_Format(PyExc_ValueError, "styles: expected 1 to %d, got %zu", SID_MAX_STYLES, s->style_count);
        goto done;
    }
    if (sid_read_shares(&s->weights, weights, "weights", s->style_count) ||
        !(s->inversions = sid_inversions_new(s->style_count + 1, r->state, r->model_object, 0)) ||
        sid_inversion_read(&s->inversions[0], content, "content", &r->config->unet, &r->layers, parts & SID_KEEP_QUERY,
                           r->schedule->steps))
        goto done;
    s->content = last_latent(&s->inversions[0]);
    if (read_styles(s, r, sequence, parts)) goto done;
    if (regions && regions != Py_None) {
        s->regions = sid_regions_read(regions, s->inversions, s->style_count, &r->layers);
        if (!s->regions) goto done;
    }
    s->injection = (sid_injection){.content = r->layers.count && parts ? &s->inversions[0].bank : NULL,
                                   .styles = s->style_banks,
                                   .weights = s->weights,
                                   .style_count = s->style_count,
                                   .layers = sid_layer_count(&r->config->unet),
                                   .gamma = r->gamma.data,
                                   .temperature = r->temperature.data,
                                   .regions = s->regions ? s->regions->layers : NULL};
    for (size_t i = 0; i <= s->style_count; i++)
        if (s->inversions[i].replay.latents.data) s->replays[s->replay_count++] = s->inversions[i].replay;
    failed = 0;
done:
    Py_DECREF(sequence);
    return failed;
}

void sid_sources_close(sid_sources *s) {
    sid_inversions_close(s->inversions, s->style_count + 1);
    sid_regions_close(s->regions);
    PyMem_Free(s->weights);
}
