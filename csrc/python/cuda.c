/* NVIDIA's libraries and devices, as styleid/_cuda.py asks for them. */
#include "cuda/cuda.h"

#include "core/err.h"
#include "python/arguments.h"

static PyObject *fail(PyObject *module, int status) {
    sid_raise(PyModule_GetState(module), status);
    return NULL;
}

PyObject *sid_py_cuda_driver(PyObject *module, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"path", NULL};
    const char *path;
    int version, status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "s:cuda_driver", names, &path)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = sid_cuda_driver(path, &version);
    Py_END_ALLOW_THREADS;
    return status == SID_OK ? PyLong_FromLong(version) : fail(module, status);
}

static PyObject *version_text(int version) {
    return version ? PyUnicode_FromFormat("%d.%d.%d", version / 10000, version / 100 % 100, version % 100)
                   : Py_NewRef(Py_None);
}

PyObject *sid_py_cuda_libraries(PyObject *module, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"nvrtc", "cublaslt", "cudnn", NULL};
    const char *nvrtc, *cublaslt, *cudnn;
    sid_cuda_versions versions;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "sss:cuda_libraries", names, &nvrtc, &cublaslt, &cudnn))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = sid_cuda_libraries(nvrtc, cublaslt, cudnn);
    Py_END_ALLOW_THREADS;
    if (status != SID_OK) return fail(module, status);
    sid_cuda_describe(&versions);
    return Py_BuildValue("{sNsNsN}", "NVRTC", version_text(versions.nvrtc), "cuBLASLt", version_text(versions.cublaslt),
                         "cuDNN", version_text(versions.cudnn));
}

static PyObject *describe_device(int device) {
    sid_cuda_device found;
    if (sid_cuda_describe_device(&found, device) != SID_OK) return NULL;
    return Py_BuildValue("{sssisn}", "name", found.name, "architecture", found.architecture, "total",
                         (Py_ssize_t)found.total);
}

PyObject *sid_py_cuda_devices(PyObject *module, PyObject *unused) {
    int count;
    (void)unused;
    int status = sid_cuda_device_count(&count);
    if (status != SID_OK) return fail(module, status);
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < count; i++) {
        PyObject *one = describe_device(i);
        if (!one) fail(module, SID_EVALUE);
        sid_append(&list, one);
    }
    return list;
}

PyObject *sid_py_cuda_free_memory(PyObject *module, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"device", NULL};
    size_t bytes;
    int device, status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "i:cuda_free_memory", names, &device)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    status = sid_cuda_free_memory(&bytes, device);
    Py_END_ALLOW_THREADS;
    return status == SID_OK ? PyLong_FromSize_t(bytes) : fail(module, status);
}
