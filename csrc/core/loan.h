/* A host array as memory of a backend for the time of some calls: on the CPU the array itself. */
#ifndef SID_CORE_LOAN_H
#define SID_CORE_LOAN_H

#include "core/backend.h"

typedef struct {
    sid_backend *backend;
    void *block; /* what to hand to the backend */
    void *host;
    size_t size;
    int owned; /* whether block is a copy */
} sid_loan;

/* exec: of the run that the loan is opened or closed in, or {.backend = b} outside of any.
 * filled: whether the host's numbers are needed; else the block's contents are undefined. host NULL: block NULL.
 * A loan that could not be opened, or that is all zeros, can be closed. */
int sid_loan_open(sid_loan *loan, sid_exec *exec, const void *host, size_t size, int filled);
/* write_back: the host array gets what is in the block. */
int sid_loan_close(sid_loan *loan, sid_exec *exec, int write_back);

#endif
