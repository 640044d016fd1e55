#include "python/lending.h"

#include "core/err.h"

int sid_lend_floats(sid_lending *l, float **block, const float *host, size_t count, sid_lend_direction direction) {
    if (l->count == sizeof l->loans / sizeof *l->loans) return sid_fail(SID_EINTERNAL, "too many loans");
    sid_loan *loan = &l->loans[l->count];
    l->written[l->count++] = (direction & SID_LEND_OUT) != 0;
    SID_TRY(sid_loan_open(loan, &l->outside, host, count * sizeof *host, (direction & SID_LEND_IN) != 0));
    *block = loan->block;
    return SID_OK;
}

int sid_lend_planes(sid_lending *l, sid_planes *planes, const sid_array *a, sid_lend_direction direction) {
    *planes = (sid_planes){NULL, a->shape[0], a->shape[1], a->shape[2], a->shape[3]};
    return sid_lend_floats(l, &planes->data, a->data, sid_planes_count(planes), direction);
}

int sid_lending_close(sid_lending *l, int status) {
    for (size_t i = 0; i < l->count; i++) {
        int closed = sid_loan_close(&l->loans[i], &l->outside, l->written[i] && status == SID_OK);
        if (status == SID_OK) status = closed;
    }
    l->count = 0;
    return status;
}
