/* Lends NumPy's memory to the engine for the time of a call: as a copy where the device has memory of its own. */
#ifndef SID_PYTHON_LENDING_H
#define SID_PYTHON_LENDING_H

#include "core/loan.h"
#include "model/tap.h"
#include "python/ndarray.h"

typedef enum { SID_LEND_IN = 1, SID_LEND_OUT = 2, SID_LEND_BOTH = 3 } sid_lend_direction;

/* Starts as {.outside = {.backend = b}} and is closed in any case. */
typedef struct {
    sid_exec outside;
    size_t count;
    sid_loan loans[2 * SID_MAX_STYLES + 8];
    uint8_t written[2 * SID_MAX_STYLES + 8]; /* whether the array gets what the engine left in the block */
} sid_lending;

/* The functions below return a status of the engine and need no GIL. */
int sid_lend_floats(sid_lending *lending, float **block, const float *host, size_t count, sid_lend_direction direction);
/* The array is one of float32, (n, c, h, w). */
int sid_lend_planes(sid_lending *lending, sid_planes *planes, const sid_array *array, sid_lend_direction direction);
/* status is the call's. Where it is not SID_OK, it is returned and nothing is written back. */
int sid_lending_close(sid_lending *lending, int status);

#endif
