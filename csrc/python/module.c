/* The module styleid._core. */
#include "python/arguments.h"

#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "cpu/cpu.h"
#include "python/device_array.h"
#include "style/schedule.h"

void sid_raise(const sid_state *state, int status) {
    PyObject *const exceptions[] = {
        [SID_EVALUE] = PyExc_ValueError,
        [SID_EMODEL] = state->model_error,
        [SID_EMEMORY] = PyExc_MemoryError,
        [SID_EINTERNAL] = PyExc_RuntimeError,
    };
    if (status == SID_ECANCELLED) return;
    /* The text may quote a name of the user's, cut off within a character. */
    PyObject *text = PyUnicode_DecodeUTF8(sid_error(), (Py_ssize_t)strlen(sid_error()), "replace");
    if (text) PyErr_SetObject(exceptions[status], text);
    Py_XDECREF(text);
}

/* ---- info ---- */

static PyObject *core_info(PyObject *module, PyObject *unused) {
    sid_cpu_info info;
    char version[32];
    (void)module, (void)unused;
    sid_cpu_describe(&info);
    PyOS_snprintf(version, sizeof version, "%d.%d.%d", info.major, info.minor, info.patch);
    return Py_BuildValue("{sssssssNsOsi}", "onednn", version, "onednn_threading", info.threading, "isa", info.isa,
                         "isas", sid_name_list(sid_cpu_isa_names(), info.isa_count), "native_bfloat16",
                         info.native_bfloat16 ? Py_True : Py_False, "threads", info.threads);
}

/* ---- the module ---- */

/* STYLEID_ISA takes a lower instruction set than the CPU's best. */
static int force_isa(void) {
    const char *name = getenv("STYLEID_ISA");
    if (!name || !*name || sid_cpu_force_isa(name) == SID_OK) return 0;
    PyErr_Format(PyExc_ImportError, "STYLEID_ISA: %s", sid_error());
    return -1;
}

static int add_object(PyObject *module, const char *name, PyObject *object) {
    return object ? PyModule_AddObjectRef(module, name, object) : -1;
}

static int add_names(PyObject *module, const char *name, const char *const *names) {
    PyObject *list = sid_name_list(names, SIZE_MAX), *tuple = list ? PyList_AsTuple(list) : NULL;
    int failed = add_object(module, name, tuple);
    Py_XDECREF(list);
    Py_XDECREF(tuple);
    return failed;
}

static int add_constants(PyObject *module) {
    return add_names(module, "ISAS", sid_cpu_isa_names()) || add_names(module, "DTYPES", sid_dtype_names()) ||
           add_names(module, "SCHEDULES", sid_schedule_names()) ||
           PyModule_AddIntConstant(module, "TRAIN_STEPS", SID_TRAIN_STEPS) ||
           PyModule_AddStringConstant(module, "__version__", STYLEID_VERSION);
}

static int core_exec(PyObject *module) {
    sid_state *state = PyModule_GetState(module);
    if (sid_numpy_import() || force_isa()) return -1;
    state->model_error =
        PyErr_NewExceptionWithDoc("styleid._core.ModelError", "A model's configuration or weights cannot be used.",
                                  PyExc_ValueError, NULL);
    if (add_object(module, "ModelError", state->model_error)) return -1;
    state->model_type = PyType_FromModuleAndSpec(module, &sid_model_spec, NULL);
    if (add_object(module, "Model", state->model_type)) return -1;
    state->device_array_type = PyType_FromModuleAndSpec(module, &sid_device_array_spec, NULL);
    if (add_object(module, "DeviceArray", state->device_array_type)) return -1;
    return add_constants(module) ? -1 : 0;
}

static int core_traverse(PyObject *module, visitproc visit, void *arg) {
    sid_state *state = PyModule_GetState(module);
    Py_VISIT(state->model_type);
    Py_VISIT(state->model_error);
    Py_VISIT(state->device_array_type);
    return 0;
}

static int core_clear(PyObject *module) {
    sid_state *state = PyModule_GetState(module);
    Py_CLEAR(state->model_type);
    Py_CLEAR(state->model_error);
    Py_CLEAR(state->device_array_type);
    return 0;
}

#define FUNCTION(name, signature, doc) \
    {#name, (PyCFunction)(void (*)(void))sid_py_##name, METH_VARARGS | METH_KEYWORDS, #name signature "\n--\n\n" doc}

static PyMethodDef functions[] = {
    {"info", core_info, METH_NOARGS, "info()\n--\n\nThe CPU, oneDNN and their use."},
    FUNCTION(timesteps, "(steps)", "The timesteps that the inversions of so many steps evaluate."),
    FUNCTION(schedule, "(model, name, steps)", "The timesteps of a schedule, and its conventions."),
    FUNCTION(invert,
             "(model, latents, context, steps, schedule, layers, keep, feature_dtype, progress=None, hook=None, "
             "negative=None, guidance=1.0, *, on_attention=None, watched=None, sink=None, "
             "refine=0, on_host=False)",
             "DDIM inversion that keeps features; a list of InversionData."),
    FUNCTION(features, "(model, latents, context, steps, schedule, layers, keep, feature_dtype, step)",
             "The features of one evaluation; a list of Features."),
    FUNCTION(sample,
             "(model, latent, context, steps, schedule, layers, content, styles, weights, gamma, temperature, "
             "progress=None, hook=None, negative=None, guidance=1.0, *, inject='qkv', regions=None, on_attention=None, "
             "watched=None, skip=0, where=None)",
             "DDIM sampling from zT with injection; z0."),
    FUNCTION(predicted, "(before, after, level, next_level)",
             "x0 by the evaluation between two latents of a sampling."),
    FUNCTION(adain, "(content, style, epsilon=0.0)", "The content's latent with the style's statistics per channel."),
    FUNCTION(inject_styles,
             "(model, latent, context, steps, schedule, layers, content, styles, weights, gamma, temperature, "
             "progress=None, hook=None, negative=None, guidance=1.0, *, inject='qkv', regions=None, on_attention=None, "
             "watched=None, skip=0, where=None)",
             "sample and decode; an image."),
    FUNCTION(transfer,
             "(model, content, style, context, steps, schedule, layers, gamma, temperature, adain=True, progress=None)",
             "encode, invert, adain and inject_styles; an image."),
    FUNCTION(cuda_driver, "(path)", "Opens NVIDIA's driver; 1000 * major + 10 * minor of the CUDA that it supports."),
    FUNCTION(cuda_libraries, "(nvrtc, cublaslt, cudnn)", "Opens the libraries at these paths; their versions."),
    {"cuda_devices", sid_py_cuda_devices, METH_NOARGS,
     "cuda_devices()\n--\n\nName, architecture and memory of each GPU."},
    FUNCTION(cuda_free_memory, "(device)", "Bytes of a GPU's memory that are free."),
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, core_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED}, /* as NumPy */
#endif
    {0, NULL},
};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "styleid._core",
    .m_doc = "The C engine: the method on NumPy arrays.",
    .m_size = sizeof(sid_state),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
