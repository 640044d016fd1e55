/* What the files of the Python module share. */
#ifndef SID_PYTHON_BINDING_H
#define SID_PYTHON_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "model/model.h"

typedef struct {
    PyObject *model_type;        /* Model */
    PyObject *model_error;       /* ModelError */
    PyObject *device_array_type; /* DeviceArray */
} sid_state;

typedef struct {
    PyObject_HEAD
    sid_model *model;
    int device; /* a GPU's number; negative for the CPU */
} sid_model_object;

extern PyType_Spec sid_model_spec;

/* The module's functions that run the method; see method.c and invert.c. */
PyObject *sid_py_timesteps(PyObject *module, PyObject *args, PyObject *keywords);
PyObject *sid_py_schedule(PyObject *module, PyObject *args, PyObject *keywords);
PyObject *sid_py_invert(PyObject *module, PyObject *args, PyObject *keywords);
PyObject *sid_py_features(PyObject *module, PyObject *args, PyObject *keywords);
PyObject *sid_py_sample(PyObject *module, PyObject *args, PyObject *keywords);
PyObject *sid_py_predicted(PyObject *module, PyObject *args, PyObject *keywords);
PyObject *sid_py_adain(PyObject *module, PyObject *args, PyObject *keywords);
PyObject *sid_py_inject_styles(PyObject *module, PyObject *args, PyObject *keywords);
PyObject *sid_py_transfer(PyObject *module, PyObject *args, PyObject *keywords);

/* NVIDIA's libraries and devices; see cuda.c. */
PyObject *sid_py_cuda_driver(PyObject *module, PyObject *args, PyObject *keywords);
PyObject *sid_py_cuda_libraries(PyObject *module, PyObject *args, PyObject *keywords);
PyObject *sid_py_cuda_devices(PyObject *module, PyObject *unused);
PyObject *sid_py_cuda_free_memory(PyObject *module, PyObject *args, PyObject *keywords);

/* Raises what a status of the engine stands for. After SID_ECANCELLED the callback's exception stays. */
void sid_raise(const sid_state *state, int status);

#endif
