/* Features in a device's memory: the class DeviceArray, which torch and CuPy take without a copy. */
#ifndef SID_PYTHON_DEVICE_ARRAY_H
#define SID_PYTHON_DEVICE_ARRAY_H

#include "python/ndarray.h"

extern PyType_Spec sid_device_array_spec;

/* Makes a DeviceArray of undefined content in the memory of the model's device; `array` refers to it, and its data is
 * an address of the device. element is SID_FLOAT32, SID_FLOAT16, or SID_UINT16 for the bits of bfloat16. */
int sid_device_array_new(sid_array *array, const sid_state *state, PyObject *model, sid_element element, size_t rank,
                         const size_t *shape);

/* Reads a DeviceArray as sid_array_read() reads others. Where it lies on the model's device, array->data is its address
 * and *on_device is set; otherwise its numbers are copied to the host. Other objects go to sid_array_read(). */
int sid_device_array_read(sid_array *array, int *on_device, const sid_state *state, PyObject *model, PyObject *object,
                          const sid_array_spec *spec);

#endif
