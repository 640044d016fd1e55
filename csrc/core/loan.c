#include "core/loan.h"

#include "core/err.h"
#include "core/ops.h"

int sid_loan_open(sid_loan *loan, sid_exec *exec, const void *host, size_t size, int filled) {
    sid_memory *memory = &exec->backend->memory;
    *loan = (sid_loan){.backend = exec->backend, .block = (void *)host, .host = (void *)host, .size = size};
    if (!host || memory->is_host) return SID_OK;
    loan->block = NULL;
    SID_TRY(memory->take(memory, &loan->block, size, "a copy of the host's numbers"));
    loan->owned = 1;
    return filled ? sid_write(exec, loan->block, host, size) : SID_OK;
}

int sid_loan_close(sid_loan *loan, sid_exec *exec, int write_back) {
    int status = SID_OK;
    if (loan->owned) {
        if (write_back) status = sid_read(exec, loan->host, loan->block, loan->size);
        sid_memory_give(&loan->backend->memory, loan->block);
    }
    *loan = (sid_loan){0};
    return status;
}
