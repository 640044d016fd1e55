/* What the CPU supports, and which of its instruction sets are used. */
#ifndef SID_CPU_CPU_H
#define SID_CPU_CPU_H

#include <stddef.h>

typedef struct {
    const char *isa;         /* the instruction set in use */
    size_t isa_count;        /* how many of all instruction sets, from the lowest on, the CPU has */
    int native_bfloat16;     /* whether the one in use multiplies bfloat16 natively */
    int major, minor, patch; /* of oneDNN */
    const char *threading;   /* of oneDNN */
    int threads;             /* OpenMP's default number */
} sid_cpu_info;

void sid_cpu_describe(sid_cpu_info *info);

/* The names of all instruction sets, from the lowest to the highest; NULL follows the last. */
const char *const *sid_cpu_isa_names(void);

/* From now on uses at most the named instruction set, in oneDNN as well. This has to come before the first model is
 * opened. Returns SID_EVALUE for one that is unknown or that the CPU lacks. */
int sid_cpu_force_isa(const char *name);

#endif
