/* A convolution by oneDNN. */
#ifndef SID_CPU_DIRECT_H
#define SID_CPU_DIRECT_H

#include "cpu/primitive.h"

typedef struct {
    size_t in, out, kernel, stride;
    size_t top, left, bottom, right; /* zeros around the input */
    size_t height, width;            /* the size of the input that the weights are packed for */
} sid_direct_shape;

typedef struct sid_direct sid_direct;

/* The weight is (out, in, kernel, kernel), the bias (out). */
int sid_direct_open(sid_cpu *cpu, sid_direct **direct, const sid_direct_shape *shape, const sid_weight *weight,
                    const sid_weight *bias);
void sid_direct_close(sid_direct **direct);

/* Works as the backend's conv does; dst has the height and width that the shape gives. */
int sid_direct_run(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_direct *direct, const sid_post *post);

#endif
