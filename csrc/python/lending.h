/* NumPy's memory as the engine's for the time of a call: a copy on a device that has memory of its own. */
#ifndef SID_PYTHON_LENDING_H
#define SID_PYTHON_LENDING_H

#include "core/loan.h"
#include "model/tap.h"
#include "python/ndarray.h"

typedef enum { SID_LEND_IN = 1, SID_LEND_OUT = 2, SID_LEND_BOTH = 3 } sid_lend_direction;

/* {.outside = {.backend = b}} first, closed in any case. */
typedef struct {
    sid_exec outside;
    size_t count;
    sid_loan loans[2 * SID_MAX_STYLES + 8];
    uint8_t written[2 * SID_MAX_STYLES + 8]; /* whether the array gets what the engine left in the block */
} sid_lending;

/* What follows returns an engine's status and needs no GIL. */
int sid_lend_floats(sid_lending *lending, float **block, const float *host, size_t count, sid_lend_direction direction);
/* An array (n, c, h, w) of float32. */
int sid_lend_planes(sid_lending *lending, sid_planes *planes, const sid_array *array, sid_lend_direction direction);
/* status: the call's, returned where it is not SID_OK; then nothing is written back. */
int sid_lending_close(sid_lending *lending, int status);

#endif
