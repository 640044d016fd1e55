#include "python/config.h"

#include <limits.h>
#include <string.h>

#include "python/arguments.h"

/* A dictionary, and what error texts call its entries: "config.unet.channels". */
typedef struct {
    PyObject *dict;
    const char *name;
} section;

typedef struct {
    char text[64];
} label;

static label name_entry(const section *s, const char *key) {
    label l;
    PyOS_snprintf(l.text, sizeof l.text, "%s.%s", s->name, key);
    return l;
}

static int open_section(section *s, PyObject *object, const char *name) {
    *s = (section){object, name};
    if (PyDict_Check(object)) return 0;
    PyErr_Format(PyExc_TypeError, "%s: expected a dict, got %.100s", name, Py_TYPE(object)->tp_name);
    return -1;
}

/* A borrowed reference. */
static PyObject *entry(const section *s, const char *key) {
    PyObject *value = sid_entry(s->dict, key);
    if (!value && !PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "%s: '%s' is missing", s->name, key);
    return value;
}

static int read_size(const section *s, const char *key, size_t *value) {
    PyObject *object = entry(s, key);
    return object ? sid_read_size(value, object, name_entry(s, key).text, 0, INT_MAX) : -1;
}

static int read_flag(const section *s, const char *key, int *value) {
    PyObject *object = entry(s, key);
    if (!object) return -1;
    *value = object == Py_True;
    if (PyBool_Check(object)) return 0;
    PyErr_Format(PyExc_TypeError, "%s: expected a bool, got %.100s", name_entry(s, key).text, Py_TYPE(object)->tp_name);
    return -1;
}

static int read_float(const section *s, const char *key, float *value) {
    double number;
    PyObject *object = entry(s, key);
    if (!object || sid_read_number(&number, object, name_entry(s, key).text)) return -1;
    *value = (float)number;
    return 0;
}

static int read_word(const section *s, const char *key, int *choice, const char *const *choices) {
    PyObject *object = entry(s, key);
    return object ? sid_read_choice(choice, object, name_entry(s, key).text, choices) : -1;
}

/* Reads one number for each level. *levels is 0 until the first such list sets it. */
static int read_levels(const section *s, const char *key, size_t *values, size_t *levels) {
    PyObject *object = entry(s, key);
    if (!object) return -1;
    label name = name_entry(s, key);
    if (!PyList_Check(object) && !PyTuple_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s: expected a list, got %.100s", name.text, Py_TYPE(object)->tp_name);
        return -1;
    }
    PyObject *list = PySequence_Tuple(object);
    if (!list) return -1;
    size_t count = (size_t)PyTuple_GET_SIZE(list);
    int failed = 0;
    if (count == 0 || count > SID_MAX_LEVELS || (*levels && count != *levels)) {
        PyErr_Format(PyExc_ValueError,
                     "%s: expected one entry for each of 1 to %d levels, as many as channels, got %zu", name.text,
                     SID_MAX_LEVELS, count);
        failed = -1;
    }
    for (size_t i = 0; !failed && i < count; i++)
        failed = sid_read_size(&values[i], PyTuple_GET_ITEM(list, (Py_ssize_t)i), name.text, 0, INT_MAX);
    *levels = count;
    Py_DECREF(list);
    return failed;
}

#define TRY(expression)            \
    do {                           \
        if (expression) return -1; \
    } while (0)

static int read_unet(sid_unet_config *c, PyObject *object) {
    static const char *const predictions[] = {"epsilon", "v_prediction", NULL};
    size_t attention[SID_MAX_LEVELS];
    int prediction;
    section s;
    TRY(open_section(&s, object, "config.unet"));
    TRY(read_size(&s, "in_channels", &c->in_channels));
    TRY(read_size(&s, "out_channels", &c->out_channels));
    TRY(read_levels(&s, "channels", c->channels, &c->levels));
    TRY(read_levels(&s, "heads", c->heads, &c->levels));
    TRY(read_levels(&s, "attention", attention, &c->levels));
    TRY(read_size(&s, "layers_per_block", &c->layers_per_block));
    TRY(read_flag(&s, "linear_projection", &c->linear_projection));
    TRY(read_size(&s, "context_size", &c->context_size));
    TRY(read_size(&s, "groups", &c->groups));
    TRY(read_float(&s, "eps", &c->eps));
    TRY(read_word(&s, "prediction", &prediction, predictions));
    TRY(read_size(&s, "sample_size", &c->sample_size));
    for (size_t i = 0; i < c->levels; i++) c->attention[i] = attention[i] != 0;
    c->prediction = prediction == 0 ? SID_EPSILON : SID_V_PREDICTION;
    return 0;
}

/* The kind is "kl" where none is given. */
static int read_vae_kind(const section *s, sid_vae_kind *kind) {
    static const char *const names[] = {"kl", "tiny", NULL};
    int choice = 0;
    PyObject *key = PyUnicode_FromString("kind");
    int given = key ? PyDict_Contains(s->dict, key) : -1;
    Py_XDECREF(key);
    if (given < 0 || (given && read_word(s, "kind", &choice, names))) return -1;
    *kind = choice == 0 ? SID_VAE_KL : SID_VAE_TINY;
    return 0;
}

static int read_vae(sid_vae_config *c, PyObject *object) {
    section s;
    TRY(open_section(&s, object, "config.vae"));
    TRY(read_vae_kind(&s, &c->kind));
    TRY(read_size(&s, "image_channels", &c->image_channels));
    TRY(read_size(&s, "latent_channels", &c->latent_channels));
    TRY(read_levels(&s, "channels", c->channels, &c->levels));
    TRY(read_float(&s, "scaling_factor", &c->scaling_factor));
    if (c->kind == SID_VAE_TINY) {
        TRY(read_levels(&s, "encoder_blocks", c->encoder_blocks, &c->levels));
        return read_levels(&s, "decoder_blocks", c->decoder_blocks, &c->levels);
    }
    TRY(read_size(&s, "layers_per_block", &c->layers_per_block));
    TRY(read_size(&s, "groups", &c->groups));
    TRY(read_flag(&s, "mid_attention", &c->mid_attention));
    TRY(read_flag(&s, "quant_conv", &c->quant_conv));
    TRY(read_flag(&s, "post_quant_conv", &c->post_quant_conv));
    return 0;
}

static int read_text(sid_text_config *c, PyObject *object) {
    static const char *const activations[] = {"quick_gelu", "gelu", NULL};
    int activation;
    section s;
    if (object == Py_None) return 0;
    TRY(open_section(&s, object, "config.text"));
    TRY(read_size(&s, "vocabulary", &c->vocabulary));
    TRY(read_size(&s, "positions", &c->positions));
    TRY(read_size(&s, "channels", &c->channels));
    TRY(read_size(&s, "hidden", &c->hidden));
    TRY(read_size(&s, "layers", &c->layers));
    TRY(read_size(&s, "heads", &c->heads));
    TRY(read_word(&s, "activation", &activation, activations));
    c->activation = activation == 0 ? SID_QUICK_GELU : SID_GELU;
    return 0;
}

static int read_alphas(double *alphas, PyObject *object) {
    const sid_array_spec spec = {
        .name = "config.alphas", .elements = SID_FLOAT64, .rank = 1, .shape = {SID_TRAIN_STEPS}};
    sid_array array;
    TRY(sid_array_read(&array, object, &spec));
    memcpy(alphas, array.data, SID_TRAIN_STEPS * sizeof *alphas);
    sid_array_close(&array);
    return 0;
}

int sid_read_config(sid_config *config, PyObject *object) {
    section s;
    PyObject *unet, *vae, *text, *alphas;
    *config = (sid_config){0};
    TRY(open_section(&s, object, "config"));
    if (!(unet = entry(&s, "unet")) || !(vae = entry(&s, "vae")) || !(text = entry(&s, "text")) ||
        !(alphas = entry(&s, "alphas")))
        return -1;
    if (unet != Py_None) TRY(read_unet(&config->unet, unet));
    TRY(read_vae(&config->vae, vae));
    TRY(read_text(&config->text, text));
    return read_alphas(config->alphas, alphas);
}
