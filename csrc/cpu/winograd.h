/* 3x3 convolutions of stride 1 by Winograd's minimal filtering, as matrix products over tiles. F(4x4, 3x3) takes 36
 * products in float32, whatever dtype the maps are stored in: a quarter of the multiplications, and four times
 * float32's memory for the weights. F(2x2, 3x3) takes 16 products in bfloat16: 4/9 of the multiplications, and 16/9
 * of bfloat16's memory. */
#ifndef SID_CPU_WINOGRAD_H
#define SID_CPU_WINOGRAD_H

#include "cpu/primitive.h"

typedef struct sid_winograd sid_winograd;

/* Whether the algorithm pays for the shape's usual input. */
int sid_winograd_suits(const sid_cpu *cpu, const sid_conv_shape *shape);

/* The weight is (out, in, 3, 3), the bias (out). */
int sid_winograd_open(sid_cpu *cpu, sid_winograd **winograd, const sid_conv_shape *shape, const sid_weight *weight,
                      const sid_weight *bias);
void sid_winograd_close(sid_winograd **winograd);

/* Works as the backend's conv does. */
int sid_winograd_run(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_winograd *winograd,
                     const sid_post *post);

#endif
