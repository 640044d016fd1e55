/* Checks for NaN and infinity, which would end as a black or tinted image. */
#ifndef SID_CORE_FINITE_H
#define SID_CORE_FINITE_H

#include "core/backend.h"

/* Whether count numbers of type `stored` are finite, and stay finite in the dtype that they are computed in. */
int sid_all_fit(const void *numbers, sid_dtype stored, size_t count, sid_dtype dtype);

/* Fails with an error that names the weight and its first number that does not fit. */
int sid_refuse_weight(const sid_weight *weight, sid_dtype dtype);

/* Fails with SID_EVALUE where one of count numbers on the host is not finite. The format says which numbers they are,
 * such as "step 3 of 50: the latents"; dtype is what the model computes in, for the error's advice. */
int sid_check_numbers(const float *numbers, size_t count, sid_dtype dtype, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Does the same for planes, which are read back first where the backend's memory is not the host's. exec is outside of
 * any run. */
int sid_check_planes(sid_exec *exec, const sid_planes *planes, const char *what);

#endif
