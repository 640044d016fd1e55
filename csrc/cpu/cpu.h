/* What the CPU supports, and which of its instruction sets are used. */
#ifndef SID_CPU_CPU_H
#define SID_CPU_CPU_H

typedef struct {
    const char *isa, *best_isa; /* the instruction set in use; the best that the CPU has */
    int native_bfloat16;        /* whether the ISA in use multiplies bfloat16 natively */
    int major, minor, patch;    /* of oneDNN */
    const char *threading;      /* of oneDNN */
    int threads;                /* OpenMP's default number */
} sid_cpu_info;

void sid_cpu_describe(sid_cpu_info *info);

/* From now on uses at most the named level ("generic", "avx2", "avx512", "avx512_bf16", "amx"), in oneDNN as well.
 * This has to come before the first model is opened. Returns SID_EVALUE for a level that is unknown or that the CPU
 * lacks. */
int sid_cpu_force_isa(const char *name);

#endif
