/* The class Model. */
#include "python/arguments.h"

#include <string.h>

#include "core/err.h"
#include "core/finite.h"
#include "python/config.h"
#include "python/lending.h"

#define MAX_THREADS 1024
#define PROMPT_TOKENS 77 /* of CLIP, for the estimate of scratch memory */

static const sid_state *state_of(PyObject *self) { return PyType_GetModuleState(Py_TYPE(self)); }

static sid_model *model_of(PyObject *self) { return ((sid_model_object *)self)->model; }

/* ---- life ---- */

/* What a model computes on and in. device is a GPU's number, or negative for the CPU. */
typedef struct {
    sid_dtype dtype;
    int threads, device;
    sid_tiling tiling;
} sid_placement;

static int open_model(sid_model **model, const sid_config *config, sid_weights *weights, const sid_placement *p) {
    sid_backend *backend = NULL;
    int status = p->device < 0 ? sid_cpu_open(&backend, p->dtype, p->threads)
                               : sid_cuda_open(&backend, p->dtype, p->device, p->threads);
    if (status == SID_OK) return sid_model_open(model, config, weights, backend, p->tiling);
    if (backend) backend->close(&backend);
    return status;
}

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static char *names[] = {"config", "weights", "dtype", "threads", "tiling", "device", NULL};
    static const char *const tilings[] = {"auto", "on", "off", NULL};
    static const sid_tiling tilings_of[] = {SID_TILING_AUTO, SID_TILING_ON, SID_TILING_OFF};
    PyObject *config_object, *weights_object, *dtype_object = NULL, *threads_object = NULL, *tiling_object = NULL;
    const sid_state *state = PyType_GetModuleState(type);
    sid_config config;
    sid_buffers buffers = {0};
    sid_model_object *self = NULL;
    size_t threads = 1;
    sid_dtype dtype = SID_F32;
    int tiling = 0, device = -1, status;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|OOOi:Model", names, &config_object, &weights_object,
                                     &dtype_object, &threads_object, &tiling_object, &device))
        return NULL;
    if (dtype_object && sid_read_dtype(&dtype, dtype_object, "dtype")) return NULL;
    if (threads_object && sid_read_size(&threads, threads_object, "threads", 1, MAX_THREADS)) return NULL;
    if (tiling_object && sid_read_choice(&tiling, tiling_object, "tiling", tilings)) return NULL;
    if (sid_read_config(&config, config_object)) return NULL;
    if (sid_buffers_open(&buffers, weights_object, state)) goto done;
    self = (sid_model_object *)type->tp_alloc(type, 0);
    if (!self) goto done;
    self->device = device;
    const sid_placement placement = {dtype, (int)threads, device, tilings_of[tiling]};
    Py_BEGIN_ALLOW_THREADS
    status = open_model(&self->model, &config, buffers.weights, &placement);
    Py_END_ALLOW_THREADS
    if (status != SID_OK) {
        sid_raise(state, status);
        Py_CLEAR(self);
    }
done:
    sid_buffers_close(&buffers);
    return (PyObject *)self;
}

static void model_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    sid_model_close(&((sid_model_object *)self)->model);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- facts ---- */

static PyObject *model_dtype(PyObject *self, void *closure) {
    (void)closure;
    return PyUnicode_FromString(sid_dtype_name(sid_model_backend(model_of(self))->dtype));
}

static PyObject *model_device(PyObject *self, void *closure) {
    int device = ((sid_model_object *)self)->device;
    (void)closure;
    return device < 0 ? PyUnicode_FromString("cpu") : PyUnicode_FromFormat("cuda:%d", device);
}

static PyObject *model_threads(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromLong(sid_model_backend(model_of(self))->threads);
}

static PyObject *model_memory(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(sid_model_backend(model_of(self))->packed_bytes);
}

static PyObject *model_idle(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(sid_model_idle(model_of(self)));
}

static PyObject *model_attention_layers(PyObject *self, void *closure) {
    (void)closure;
    return sid_attention_layers(&sid_model_config(model_of(self))->unet, 0);
}

static PyObject *model_layer_count(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(sid_layer_count(&sid_model_config(model_of(self))->unet));
}

static PyObject *model_latent_multiple(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(sid_latent_multiple(&sid_model_config(model_of(self))->unet));
}

static PyObject *model_vae_factor(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(sid_vae_factor(&sid_model_config(model_of(self))->vae));
}

static PyObject *model_layer_shape(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"layer", "height", "width", NULL};
    PyObject *objects[3];
    const sid_unet_config *config = &sid_model_config(model_of(self))->unet;
    size_t layer, h, w;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO:layer_shape", names, &objects[0], &objects[1], &objects[2]) ||
        sid_check_unet(sid_model_config(model_of(self))) ||
        sid_read_size(&layer, objects[0], "layer", 0, sid_layer_count(config) - 1) ||
        sid_read_size(&h, objects[1], "height", 1, SID_MAX_LATENT_PIXELS) ||
        sid_read_size(&w, objects[2], "width", 1, SID_MAX_LATENT_PIXELS))
        return NULL;
    const size_t level = sid_layer_level(config, layer);
    return Py_BuildValue("nnnn", (Py_ssize_t)(h >> level), (Py_ssize_t)(w >> level),
                         (Py_ssize_t)sid_layer_channels(config, layer), (Py_ssize_t)config->heads[level]);
}

/* ---- scratch ---- */

static PyObject *model_scratch(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"batch", "height", "width", NULL};
    PyObject *objects[3];
    const sid_unet_config *config = &sid_model_config(model_of(self))->unet;
    size_t n, h, w, bytes = 0, multiple = sid_latent_multiple(config);
    int status;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO:scratch", names, &objects[0], &objects[1], &objects[2]) ||
        sid_check_unet(sid_model_config(model_of(self))) ||
        sid_read_size(&n, objects[0], "batch", 1, SID_MAX_LATENT_PIXELS) ||
        sid_read_size(&h, objects[1], "height", 1, SID_MAX_LATENT_PIXELS / n) ||
        sid_read_size(&w, objects[2], "width", 1, SID_MAX_LATENT_PIXELS / n / h))
        return NULL;
    if (h % multiple || w % multiple)
        return PyErr_Format(PyExc_ValueError, "height, width: expected multiples of %zu, got %zu, %zu", multiple, h, w);
    Py_BEGIN_ALLOW_THREADS
    status = sid_model_predict_scratch(model_of(self), &bytes, n, h, w, PROMPT_TOKENS);
    Py_END_ALLOW_THREADS
    if (status == SID_OK) return PyLong_FromSize_t(bytes);
    sid_raise(state_of(self), status);
    return NULL;
}

static PyObject *model_vae_scratch(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"height", "width", NULL};
    PyObject *objects[2];
    size_t height, width, bytes = 0, factor = sid_vae_factor(&sid_model_config(model_of(self))->vae);
    size_t limit = SID_MAX_LATENT_PIXELS * factor * factor;
    int status;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO:vae_scratch", names, &objects[0], &objects[1]) ||
        sid_read_size(&height, objects[0], "height", 1, limit) ||
        sid_read_size(&width, objects[1], "width", 1, limit / height))
        return NULL;
    if (height % factor || width % factor)
        return PyErr_Format(PyExc_ValueError, "height, width: expected multiples of %zu, got %zu, %zu", factor, height,
                            width);
    Py_BEGIN_ALLOW_THREADS
    status = sid_model_vae_scratch(model_of(self), &bytes, height, width);
    Py_END_ALLOW_THREADS
    if (status == SID_OK) return PyLong_FromSize_t(bytes);
    sid_raise(state_of(self), status);
    return NULL;
}

/* ---- the networks ---- */

static int predict(sid_model *model, const sid_array *noise, const sid_array *latents, int timestep,
                   const sid_context *context) {
    sid_lending lending = {.outside = {.backend = sid_model_backend(model)}};
    sid_planes dst, src;
    int status = sid_lend_planes(&lending, &src, latents, SID_LEND_IN);
    if (status == SID_OK) status = sid_lend_planes(&lending, &dst, noise, SID_LEND_OUT);
    if (status == SID_OK) status = sid_model_predict(model, &dst, &src, timestep, context, NULL);
    status = sid_lending_close(&lending, status);
    if (status != SID_OK) return status;
    return sid_check_numbers(noise->data, sid_array_count(noise), sid_model_backend(model)->dtype,
                             "timestep %d: the UNet's numbers", timestep);
}

static PyObject *model_predict_noise(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"latents", "timestep", "context", NULL};
    PyObject *latents_object, *timestep_object, *context_object, *result = NULL;
    const sid_unet_config *config = &sid_model_config(model_of(self))->unet;
    sid_array latents = {0}, context = {0}, noise = {0};
    size_t timestep;
    int status;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO:predict_noise", names, &latents_object, &timestep_object,
                                     &context_object) ||
        sid_check_unet(sid_model_config(model_of(self))) ||
        sid_read_latents(&latents, latents_object, "latents", 0, config) ||
        sid_read_size(&timestep, timestep_object, "timestep", 0, SID_TRAIN_STEPS - 1) ||
        sid_read_context(&context, context_object, "context", latents.shape[0], config) ||
        sid_array_new(&noise, SID_FLOAT32, 4, latents.shape))
        goto done;
    const sid_context given = {context.data, context.shape[0], context.shape[1]};
    Py_BEGIN_ALLOW_THREADS
    status = predict(model_of(self), &noise, &latents, (int)timestep, &given);
    Py_END_ALLOW_THREADS
    result = sid_finish(state_of(self), &noise, status);
done:
    sid_array_close(&latents);
    sid_array_close(&context);
    sid_array_close(&noise);
    return result;
}

typedef int (*planes_function)(sid_model *model, sid_planes *dst, const sid_planes *src);

static int run_lent(sid_model *model, planes_function function, const sid_array *dst, const sid_array *src) {
    sid_lending lending = {.outside = {.backend = sid_model_backend(model)}};
    sid_planes to, from;
    int status = sid_lend_planes(&lending, &from, src, SID_LEND_IN);
    if (status == SID_OK) status = sid_lend_planes(&lending, &to, dst, SID_LEND_OUT);
    if (status == SID_OK) status = function(model, &to, &from);
    return sid_lending_close(&lending, status);
}

static PyObject *encode(PyObject *self, PyObject *args, PyObject *keywords, planes_function run) {
    static char *names[] = {"images", NULL};
    PyObject *object, *result = NULL;
    const sid_vae_config *config = &sid_model_config(model_of(self))->vae;
    size_t factor = sid_vae_factor(config);
    sid_array pixels = {0}, planes = {0}, latents = {0};
    int status;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:encode", names, &object) ||
        sid_read_images(&pixels, object, "images", 4, config, factor))
        goto done;
    sid_image image = sid_image_of(&pixels);
    const size_t planes_shape[] = {image.n, image.channels, image.height, image.width};
    const size_t shape[] = {image.n, config->latent_channels, image.height / factor, image.width / factor};
    if (sid_array_new(&planes, SID_FLOAT32, 4, planes_shape) || sid_array_new(&latents, SID_FLOAT32, 4, shape))
        goto done;
    Py_BEGIN_ALLOW_THREADS
    sid_image_to_planes(planes.data, &image);
    status = run_lent(model_of(self), run, &latents, &planes);
    Py_END_ALLOW_THREADS
    result = sid_finish(state_of(self), &latents, status);
done:
    sid_array_close(&pixels);
    sid_array_close(&planes);
    sid_array_close(&latents);
    return result;
}

static PyObject *model_encode(PyObject *self, PyObject *args, PyObject *keywords) {
    return encode(self, args, keywords, sid_model_encode);
}

static PyObject *model_log_variance(PyObject *self, PyObject *args, PyObject *keywords) {
    return encode(self, args, keywords, sid_model_log_variance);
}

/* planes (N, channels, H, W) become the decoder's output for latents of any size. */
static int decode(PyObject *self, sid_array *planes, PyObject *object) {
    const sid_vae_config *config = &sid_model_config(model_of(self))->vae;
    size_t factor = sid_vae_factor(config);
    sid_array latents = {0};
    int status = -1;
    const sid_array_spec spec = {.name = "latents",
                                 .elements = SID_FLOAT32,
                                 .rank = 4,
                                 .shape = {0, config->latent_channels, 0, 0},
                                 .letters = "NChw",
                                 .limit = SID_MAX_LATENT_PIXELS * config->latent_channels};
    if (sid_array_read(&latents, object, &spec) || sid_check_finite(&latents, "latents")) goto done;
    const size_t shape[] = {latents.shape[0], config->image_channels, latents.shape[2] * factor,
                            latents.shape[3] * factor};
    if (sid_array_new(planes, SID_FLOAT32, 4, shape)) goto done;
    Py_BEGIN_ALLOW_THREADS
    status = run_lent(model_of(self), sid_model_decode, planes, &latents);
    Py_END_ALLOW_THREADS
    if (status != SID_OK) sid_raise(state_of(self), status);
done:
    sid_array_close(&latents);
    return status;
}

static PyObject *model_decode(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"latents", "truncate", NULL};
    PyObject *object, *result = NULL;
    sid_array planes = {0}, pixels = {0};
    int truncate = 0;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|p:decode", names, &object, &truncate) ||
        decode(self, &planes, object))
        goto done;
    const size_t n = planes.shape[0], c = planes.shape[1], height = planes.shape[2], width = planes.shape[3];
    const size_t shape[] = {n, height, width, c};
    if (sid_array_new(&pixels, SID_UINT8, 4, shape)) goto done;
    Py_BEGIN_ALLOW_THREADS
    sid_image_from_planes(pixels.data, planes.data, n, height, width, c, truncate);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(pixels.object);
done:
    sid_array_close(&planes);
    sid_array_close(&pixels);
    return result;
}

static PyObject *model_decode_float(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"latents", NULL};
    PyObject *object;
    sid_array planes = {0};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:decode_float", names, &object)) return NULL;
    PyObject *result = decode(self, &planes, object) ? NULL : Py_NewRef(planes.object);
    sid_array_close(&planes);
    return result;
}

static int check_tokens(const sid_array *tokens, const sid_text_config *config) {
    const int32_t *numbers = tokens->data;
    if (tokens->shape[1] > config->positions) {
        PyErr_Format(PyExc_ValueError, "tokens: expected at most %zu in a row, got %zu", config->positions,
                     tokens->shape[1]);
        return -1;
    }
    for (size_t i = 0; i < sid_array_count(tokens); i++)
        if (numbers[i] < 0 || (size_t)numbers[i] >= config->vocabulary) {
            PyErr_Format(PyExc_ValueError, "tokens: expected numbers from 0 to %zu, got %d", config->vocabulary - 1,
                         (int)numbers[i]);
            return -1;
        }
    return 0;
}

/* Reads a copy, because the numbers index memory, and other threads of the caller could change its own. */
static int read_tokens(sid_array *copy, PyObject *object, const sid_text_config *config) {
    static const sid_array_spec spec = {
        .name = "tokens", .elements = SID_INT32, .rank = 2, .letters = "NL", .limit = 1 << 20};
    sid_array tokens = {0};
    if (sid_array_read(&tokens, object, &spec)) return -1;
    int failed = sid_array_new(copy, SID_INT32, 2, tokens.shape);
    if (!failed) memcpy(copy->data, tokens.data, sid_array_count(&tokens) * sizeof(int32_t));
    sid_array_close(&tokens);
    return failed || check_tokens(copy, config) ? -1 : 0;
}

static PyObject *model_encode_tokens(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"tokens", NULL};
    PyObject *object, *result = NULL;
    const sid_text_config *config = &sid_model_config(model_of(self))->text;
    sid_array tokens = {0}, context = {0};
    int status;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:encode_tokens", names, &object)) return NULL;
    if (!config->layers) {
        PyErr_SetString(PyExc_ValueError, "encode_tokens: this model has no text encoder");
        return NULL;
    }
    if (read_tokens(&tokens, object, config)) goto done;
    const size_t shape[] = {tokens.shape[0], tokens.shape[1], config->channels};
    if (sid_array_new(&context, SID_FLOAT32, 3, shape)) goto done;
    Py_BEGIN_ALLOW_THREADS
    status = sid_model_encode_tokens(model_of(self), context.data, tokens.data, shape[0], shape[1]);
    Py_END_ALLOW_THREADS
    result = sid_finish(state_of(self), &context, status);
done:
    sid_array_close(&tokens);
    sid_array_close(&context);
    return result;
}

/* ---- the type ---- */

#define METHOD(name, signature, doc) \
    {#name, (PyCFunction)(void (*)(void))model_##name, METH_VARARGS | METH_KEYWORDS, #name signature "\n--\n\n" doc}

static PyMethodDef methods[] = {
    METHOD(layer_shape, "($self, layer, height, width)", "Of a decoder layer: height, width, channels, heads."),
    METHOD(scratch, "($self, batch, height, width)", "Bytes of scratch that one UNet evaluation takes."),
    METHOD(vae_scratch, "($self, height, width)", "Bytes of scratch that encoding or decoding an image takes."),
    METHOD(predict_noise, "($self, latents, timestep, context)", "The raw UNet output."),
    METHOD(encode, "($self, images)", "The posterior's mean * scaling_factor."),
    METHOD(log_variance, "($self, images)", "The logarithm of the posterior's variance."),
    METHOD(decode, "($self, latents, truncate=False)", "8-bit images."),
    METHOD(decode_float, "($self, latents)", "The decoder's raw output."),
    METHOD(encode_tokens, "($self, tokens)", "The text encoder's output."),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef properties[] = {
    {"dtype", model_dtype, NULL, NULL, NULL},
    {"device", model_device, NULL, "\"cpu\" or such as \"cuda:0\".", NULL},
    {"threads", model_threads, NULL, NULL, NULL},
    {"memory", model_memory, NULL, NULL, NULL},
    {"idle", model_idle, NULL, NULL, NULL},
    {"attention_layers", model_attention_layers, NULL, NULL, NULL},
    {"layer_count", model_layer_count, NULL, NULL, NULL},
    {"latent_multiple", model_latent_multiple, NULL, NULL, NULL},
    {"vae_factor", model_vae_factor, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Model(config, weights, dtype='float32', threads=1, tiling='auto')\n--\n\nAn immutable model with "
                "packed weights."},
    {Py_tp_new, model_new},
    {Py_tp_dealloc, model_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {0, NULL},
};

PyType_Spec sid_model_spec = {
    .name = "styleid._core.Model",
    .basicsize = sizeof(sid_model_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
