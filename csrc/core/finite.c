#include "core/finite.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "core/floats.h"

/* The bits, without the sign, of the largest number of type `stored` that is finite in `dtype`. */
static uint32_t largest(sid_dtype stored, sid_dtype dtype) {
    if (stored == SID_F16) return 0x7bff;
    if (stored == SID_BF16) return dtype == SID_F16 ? 0x477f : 0x7f7f;
    return dtype == SID_F32 ? 0x7f7fffff : dtype == SID_BF16 ? 0x7f7f7fff : 0x477fefff;
}

/* There is no branch for each number, so that compilers vectorize the loops. */
int sid_all_fit(const void *numbers, sid_dtype stored, size_t count, sid_dtype dtype) {
    const int32_t most = (int32_t)largest(stored, dtype);
    const char *bytes = numbers;
    int beyond = 0;
    if (stored == SID_F32) {
        for (size_t i = 0; i < count; i++) {
            int32_t bits;
            memcpy(&bits, bytes + 4 * i, 4);
            beyond |= (bits & 0x7fffffff) > most;
        }
    } else {
        for (size_t i = 0; i < count; i++) {
            int16_t bits;
            memcpy(&bits, bytes + 2 * i, 2);
            beyond |= (int16_t)(bits & 0x7fff) > (int16_t)most;
        }
    }
    return !beyond;
}

int sid_refuse_weight(const sid_weight *weight, sid_dtype dtype) {
    const size_t columns = sid_weight_count(weight) / weight->shape[0], size = sid_dtype_size(weight->dtype);
    const char *name = weight->name ? weight->name : "made of others";
    for (size_t row = 0; row < weight->shape[0]; row++)
        for (size_t i = 0; i < columns; i++) {
            size_t at = row * weight->stride + i;
            if (sid_all_fit((const char *)weight->data + at * size, weight->dtype, 1, dtype)) continue;
            double value = (double)sid_load(weight->data, weight->dtype, at);
            if (!isfinite(value))
                return sid_fail(SID_EMODEL, "weight %s holds %g, expected finite numbers", name, value);
            return sid_fail(SID_EMODEL, "weight %s holds %g, which is too large for %s: use dtype=\"float32\"", name,
                            value, sid_dtype_name(dtype));
        }
    return SID_OK;
}

int sid_check_numbers(const float *numbers, size_t count, sid_dtype dtype, const char *format, ...) {
    char what[160];
    if (sid_all_fit(numbers, SID_F32, count, SID_F32)) return SID_OK;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    return sid_fail(SID_EVALUE, "%s hold NaN or infinity: the model's numbers became too large%s%s%s", what,
                    dtype == SID_F32 ? "" : " for ", dtype == SID_F32 ? "" : sid_dtype_name(dtype),
                    dtype == SID_F32 ? "" : "; try dtype=\"float32\"");
}

int sid_check_planes(sid_exec *exec, const sid_planes *planes, const char *what) {
    const size_t count = sid_planes_count(planes);
    const sid_backend *backend = exec->backend;
    if (backend->memory.is_host) return sid_check_numbers(planes->data, count, backend->dtype, "%s", what);
    float *host = malloc(count * sizeof *host);
    int status = host ? backend->read(exec, host, planes->data, count * sizeof *host)
                      : sid_fail(SID_EMEMORY, "no memory for %zu numbers", count);
    if (status == SID_OK) status = sid_check_numbers(host, count, backend->dtype, "%s", what);
    free(host);
    return status;
}
