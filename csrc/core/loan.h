/* Lends a host array to a backend as its memory for the time of some calls. On the CPU that is the array itself. */
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

/* exec is that of the run in which the loan is opened or closed, or {.backend = b} outside of any run. filled says
 * whether the block gets the host's numbers; otherwise its contents are undefined. Where host is NULL, so is the block.
 * A loan that could not be opened, or that is all zeros, can be closed. */
int sid_loan_open(sid_loan *loan, sid_exec *exec, const void *host, size_t size, int filled);
/* write_back: whether the host array gets the block's contents. */
int sid_loan_close(sid_loan *loan, sid_exec *exec, int write_back);

#endif
