#include "python/device_array.h"

#include <string.h>

#include "core/err.h"
#include "core/ops.h"

typedef struct {
    PyObject_HEAD
    sid_model_object *model; /* the array lies on its device */
    void *block;
    sid_element element;
    size_t rank, shape[SID_MAX_RANK];
} device_array;

static device_array *of(PyObject *object) { return (device_array *)object; }
static sid_backend *backend_of(const device_array *a) { return sid_model_backend(a->model->model); }

static size_t item_size(const device_array *a) { return a->element == SID_FLOAT32 ? 4 : 2; }

/* How many numbers an index of the axes before `first` stands for. */
static size_t count_from(const device_array *a, size_t first) {
    size_t count = 1;
    for (size_t i = first; i < a->rank; i++) count *= a->shape[i];
    return count;
}

/* ---- life ---- */

int sid_device_array_new(sid_array *array, const sid_state *state, PyObject *model, sid_element element, size_t rank,
                         const size_t *shape) {
    PyTypeObject *type = (PyTypeObject *)state->device_array_type;
    device_array *a = (device_array *)type->tp_alloc(type, 0);
    if (!a) return -1;
    a->model = (sid_model_object *)Py_NewRef(model);
    a->element = element;
    a->rank = rank;
    memcpy(a->shape, shape, rank * sizeof *shape);
    sid_memory *memory = &backend_of(a)->memory;
    int status = memory->take(memory, &a->block, count_from(a, 0) * item_size(a), "a layer's features");
    if (status != SID_OK) {
        sid_raise(state, status);
        Py_DECREF(a);
        return -1;
    }
    *array = (sid_array){(PyObject *)a, a->block, element, rank, {0}};
    memcpy(array->shape, shape, rank * sizeof *shape);
    return 0;
}

static void device_array_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    device_array *a = of(self);
    if (a->block) sid_memory_give(&backend_of(a)->memory, a->block);
    Py_XDECREF(a->model);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- to the host ---- */

/* Copies the last `rank` axes, from number `first` on, to a NumPy array. */
static PyObject *download(const device_array *a, size_t first, size_t rank) {
    sid_exec outside = {.backend = backend_of(a)};
    size_t size = count_from(a, a->rank - rank) * item_size(a);
    sid_array host;
    int status;
    if (sid_array_new(&host, a->element, rank, a->shape + a->rank - rank)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = sid_read(&outside, host.data, (char *)a->block + first * item_size(a), size);
    Py_END_ALLOW_THREADS
    if (status == SID_OK) return host.object;
    sid_raise(PyType_GetModuleState(Py_TYPE(a)), status);
    sid_array_close(&host);
    return NULL;
}

static PyObject *device_array_array(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"dtype", "copy", NULL};
    PyObject *dtype = Py_None, *copy = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|OO:__array__", names, &dtype, &copy)) return NULL;
    if (copy == Py_False) {
        PyErr_SetString(PyExc_ValueError, "a DeviceArray becomes a NumPy array by a copy only");
        return NULL;
    }
    PyObject *host = download(of(self), 0, of(self)->rank);
    if (!host || dtype == Py_None) return host;
    PyObject *converted = PyObject_CallMethod(host, "astype", "O", dtype);
    Py_DECREF(host);
    return converted;
}

static Py_ssize_t device_array_length(PyObject *self) { return (Py_ssize_t)of(self)->shape[0]; }

/* An integer gives one step's features; other indices are applied to a copy of all. */
static PyObject *device_array_subscript(PyObject *self, PyObject *key) {
    device_array *a = of(self);
    if (!PyIndex_Check(key)) {
        PyObject *host = download(a, 0, a->rank);
        PyObject *part = host ? PyObject_GetItem(host, key) : NULL;
        Py_XDECREF(host);
        return part;
    }
    Py_ssize_t index = PyNumber_AsSsize_t(key, PyExc_IndexError);
    if (index == -1 && PyErr_Occurred()) return NULL;
    if (index < 0) index += (Py_ssize_t)a->shape[0];
    if (index >= 0 && (size_t)index < a->shape[0]) return download(a, (size_t)index * count_from(a, 1), a->rank - 1);
    PyErr_Format(PyExc_IndexError, "expected an index below %zu", a->shape[0]);
    return NULL;
}

static PyObject *device_array_copy(PyObject *self, PyObject *unused) {
    (void)unused;
    return download(of(self), 0, of(self)->rank);
}

/* Pickled or deep-copied, it becomes a NumPy array, because another process has another device. */
static PyObject *device_array_reduce(PyObject *self, PyObject *unused) {
    (void)unused;
    PyObject *host = download(of(self), 0, of(self)->rank);
    PyObject *reduced = host ? PyObject_CallMethod(host, "__reduce__", NULL) : NULL;
    Py_XDECREF(host);
    return reduced;
}

/* ---- facts ---- */

static PyObject *device_array_shape(PyObject *self, void *closure) {
    device_array *a = of(self);
    (void)closure;
    PyObject *tuple = PyTuple_New((Py_ssize_t)a->rank);
    for (size_t i = 0; tuple && i < a->rank; i++)
        PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, PyLong_FromSize_t(a->shape[i]));
    return tuple;
}

static PyObject *device_array_dtype(PyObject *self, void *closure) {
    (void)closure;
    return sid_element_dtype(of(self)->element);
}

static PyObject *device_array_nbytes(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(count_from(of(self), 0) * item_size(of(self)));
}

static PyObject *device_array_device(PyObject *self, void *closure) {
    (void)closure;
    return PyUnicode_FromFormat("cuda:%d", of(self)->model->device);
}

/* ---- to other libraries ---- */

/* Waits for the device, so that any stream of any library may read. */
static int finish(device_array *a) {
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = backend_of(a)->pace(backend_of(a), 0);
    Py_END_ALLOW_THREADS
    if (status != SID_OK) sid_raise(PyType_GetModuleState(Py_TYPE(a)), status);
    return status == SID_OK ? 0 : -1;
}

static PyObject *device_array_interface(PyObject *self, void *closure) {
    device_array *a = of(self);
    const char *type = a->element == SID_FLOAT32 ? "<f4" : a->element == SID_FLOAT16 ? "<f2" : "<u2";
    PyObject *shape = finish(a) ? NULL : device_array_shape(self, closure);
    return shape ? Py_BuildValue("{sNsss(NO)sisOsO}", "shape", shape, "typestr", type, "data",
                                 PyLong_FromVoidPtr(a->block), Py_True, "version", 3, "strides", Py_None, "stream",
                                 Py_None)
                 : NULL;
}

/* The structures of DLPack 0.8: a tensor, and the function to call when it is not needed any more. */
enum { DL_CUDA = 2, DL_FLOAT = 2, DL_BFLOAT = 4 };
typedef struct dl_managed {
    void *data;
    int32_t device_type, device;
    int32_t rank;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t offset;
    void *owner;
    void (*deleter)(struct dl_managed *self);
    int64_t shape_numbers[SID_MAX_RANK];
} dl_managed;

static void dl_delete(dl_managed *managed) {
    PyGILState_STATE state = PyGILState_Ensure();
    Py_DECREF((PyObject *)managed->owner);
    PyMem_RawFree(managed);
    PyGILState_Release(state);
}

/* A capsule keeps its name where nobody has taken the tensor. */
static void dl_drop(PyObject *capsule) {
    if (PyCapsule_IsValid(capsule, "dltensor")) dl_delete(PyCapsule_GetPointer(capsule, "dltensor"));
}

static PyObject *device_array_dlpack(PyObject *self, PyObject *args, PyObject *keywords) {
    (void)args, (void)keywords; /* any stream may read: see finish() */
    device_array *a = of(self);
    if (finish(a)) return NULL;
    dl_managed *managed = PyMem_RawCalloc(1, sizeof *managed);
    if (!managed) return PyErr_NoMemory();
    *managed = (dl_managed){.data = a->block,
                            .device_type = DL_CUDA,
                            .device = a->model->device,
                            .rank = (int32_t)a->rank,
                            .code = a->element == SID_UINT16 ? DL_BFLOAT : DL_FLOAT,
                            .bits = (uint8_t)(8 * item_size(a)),
                            .lanes = 1,
                            .owner = Py_NewRef(self),
                            .deleter = dl_delete};
    managed->shape = managed->shape_numbers;
    for (size_t i = 0; i < a->rank; i++) managed->shape_numbers[i] = (int64_t)a->shape[i];
    PyObject *capsule = PyCapsule_New(managed, "dltensor", dl_drop);
    if (!capsule) dl_delete(managed);
    return capsule;
}

static PyObject *device_array_dlpack_device(PyObject *self, PyObject *unused) {
    (void)unused;
    return Py_BuildValue("(ii)", DL_CUDA, of(self)->model->device);
}

/* ---- reading ---- */

static int fits(const device_array *a, const sid_array_spec *spec) {
    if (a->rank != spec->rank || !(spec->elements & a->element)) return 0;
    for (size_t i = 0; i < a->rank; i++)
        if (spec->shape[i] && spec->shape[i] != a->shape[i]) return 0;
    return 1;
}

int sid_device_array_read(sid_array *array, int *on_device, const sid_state *state, PyObject *model, PyObject *object,
                          const sid_array_spec *spec) {
    *on_device = 0;
    if (!Py_IS_TYPE(object, (PyTypeObject *)state->device_array_type)) return sid_array_read(array, object, spec);
    device_array *a = of(object);
    if (!fits(a, spec) || a->model->device != ((sid_model_object *)model)->device) {
        PyObject *host = download(a, 0, a->rank);
        int failed = host ? sid_array_read(array, host, spec) : -1;
        Py_XDECREF(host);
        return failed;
    }
    if ((PyObject *)a->model != model && finish(a)) return -1; /* another model's stream may be writing to it */
    *array = (sid_array){Py_NewRef(object), a->block, a->element, a->rank, {0}};
    memcpy(array->shape, a->shape, a->rank * sizeof *a->shape);
    *on_device = 1;
    return 0;
}

/* ---- the class ---- */

#define METHOD(name, function, flags, doc) {name, (PyCFunction)(void (*)(void))function, flags, doc}
static PyMethodDef methods[] = {
    METHOD("__array__", device_array_array, METH_VARARGS | METH_KEYWORDS, "A NumPy array of the same content."),
    METHOD("__dlpack__", device_array_dlpack, METH_VARARGS | METH_KEYWORDS,
           "For torch.from_dlpack() and the like: no copy."),
    METHOD("__dlpack_device__", device_array_dlpack_device, METH_NOARGS, "(2, the GPU's number)"),
    METHOD("__reduce__", device_array_reduce, METH_NOARGS, "Pickled it is a NumPy array."),
    METHOD("copy", device_array_copy, METH_NOARGS, "A NumPy array of the same content."),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef properties[] = {
    {"shape", device_array_shape, NULL, NULL, NULL},
    {"dtype", device_array_dtype, NULL, "float32, float16, or uint16: the bits of bfloat16.", NULL},
    {"nbytes", device_array_nbytes, NULL, NULL, NULL},
    {"device", device_array_device, NULL, "Such as \"cuda:0\".", NULL},
    {"__cuda_array_interface__", device_array_interface, NULL, "For CuPy and Numba: no copy.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Features in a GPU's memory. array[step] and numpy.asarray(array) copy them to the host."},
    {Py_tp_dealloc, device_array_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {Py_mp_length, device_array_length},
    {Py_mp_subscript, device_array_subscript},
    {0, NULL},
};

PyType_Spec sid_device_array_spec = {
    .name = "styleid._core.DeviceArray",
    .basicsize = sizeof(device_array),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slots,
};
