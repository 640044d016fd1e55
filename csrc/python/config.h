/* The dictionaries that a Model is built from. */
#ifndef SID_PYTHON_CONFIG_H
#define SID_PYTHON_CONFIG_H

#include "python/binding.h"

/* Checks types only; sid_config_check() checks whether the numbers make a model. 0, or -1 with an exception. */
int sid_read_config(sid_config *config, PyObject *object);

/* Weights whose memory is borrowed from Python's buffers, until sid_buffers_close(). */
typedef struct {
    sid_weights *weights;
    Py_buffer *buffers; /* [count] */
    void **copies;      /* [count]: copies of misaligned buffers; NULL for the others */
    size_t count;
} sid_buffers;

/* 0, or -1 with an exception. The buffers are to be closed in either case. */
int sid_buffers_open(sid_buffers *buffers, PyObject *weights, const sid_state *state);
void sid_buffers_close(sid_buffers *buffers);

#endif
