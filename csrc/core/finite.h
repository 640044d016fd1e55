/* Numbers that are none: NaN and infinity, which would end as a black or tinted image. */
#ifndef SID_CORE_FINITE_H
#define SID_CORE_FINITE_H

#include "core/backend.h"

/* Whether count numbers, stored so, are finite and stay so in a dtype that they are computed in. */
int sid_all_fit(const void *numbers, sid_dtype stored, size_t count, sid_dtype dtype);

/* The error that names the weight and the first of its numbers that does not fit. */
int sid_refuse_weight(const sid_weight *weight, sid_dtype dtype);

/* SID_EVALUE where one of count numbers, on the host, is not finite. what: whose they are and where that is, such as
 * "step 3 of 50: the latents"; dtype: what the model computes in, for advice. */
int sid_check_numbers(const float *numbers, size_t count, sid_dtype dtype, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The same of planes, which a backend whose memory is not the host's reads back first. exec: outside of any run. */
int sid_check_planes(sid_exec *exec, const sid_planes *planes, const char *what);

#endif
