/* CPU backends of every level, for tests/ops.py. */
#include "cpu/cpu.h"
#include "core/err.h"
#include "cpu/primitive.h"

#define EXPORT __attribute__((visibility("default")))

/* Limits oneDNN to a level, or to the best one below it that it has, once, before anything is opened. */
EXPORT int ops_cpu_force(int level) {
    sid_isa best = sid_cpu_isa();
    return sid_cpu_force_isa(sid_isa_name((sid_isa)level < best ? (sid_isa)level : best));
}

EXPORT int ops_cpu_best(void) { return (int)sid_cpu_isa(); }

/* Opens a backend of that level, which may be above the CPU's where its instructions are emulated. */
EXPORT int ops_cpu_open(sid_backend **backend, int level, int dtype, int threads) {
    SID_TRY(sid_cpu_open(backend, (sid_dtype)dtype, threads));
    sid_kernels_fill(&((sid_cpu *)*backend)->kernels, (sid_isa)level);
    return SID_OK;
}
