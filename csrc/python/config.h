/* The dictionaries that a Model is built from. */
#ifndef SID_PYTHON_CONFIG_H
#define SID_PYTHON_CONFIG_H

#include "python/binding.h"

/* Reads types only: whether the numbers make a model is sid_config_check()'s affair. 0, or -1 with an exception. */
int sid_read_config(sid_config *config, PyObject *object);

/* Weights whose memory is borrowed from Python's buffers, until sid_buffers_close(). */
typedef struct {
    sid_weights *weights;
    Py_buffer *buffers; /* [count] */
    void **copies;      /* [count]: of misaligned buffers, else NULL */
    size_t count;
} sid_buffers;

/* 0; -1 with an exception. Close in either case. */
int sid_buffers_open(sid_buffers *buffers, PyObject *weights, const sid_state *state);
void sid_buffers_close(sid_buffers *buffers);

#endif
