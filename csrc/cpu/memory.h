/* The part of the CPU's backend that owns and moves memory. core/backend.h has the contracts. */
#ifndef SID_CPU_MEMORY_H
#define SID_CPU_MEMORY_H

#include "core/backend.h"

extern const sid_memory sid_cpu_memory;

int sid_cpu_move(sid_exec *exec, void *to, const void *from, size_t size); /* serves as write, read and copy */
int sid_cpu_zero(sid_exec *exec, void *block, size_t size);
int sid_cpu_floats_open(sid_backend *backend, float **floats, size_t parts, const sid_weight *const *weights);
int sid_cpu_mix(sid_exec *exec, float *z, const float *p, size_t count, double up, double down, double a, double b);
int sid_cpu_tile_take(sid_exec *exec, float *tile, const float *planes, const sid_window *window);
int sid_cpu_tile_add(sid_exec *exec, float *planes, const float *tile, const sid_window *window,
                     const float *row_shares, const float *column_shares);

#endif
