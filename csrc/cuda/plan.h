/* cuDNN's plans for convolutions. No device is needed where the device's properties are given, so that a test can
 * make every plan of a model. */
#ifndef SID_CUDA_PLAN_H
#define SID_CUDA_PLAN_H

#include "core/tensor.h"
#include "cuda/nvidia.h"

/* y = x * w + residual + bias, or the positive part of that where relu is set, with sums in float32. x (n, h, w,
 * in), w (out, kernel, kernel, in), bias (out), y and residual (n, oh, ow, out) are dense, and all in dtype. */
typedef struct {
    int64_t n, h, w, in, out, oh, ow;
    int64_t kernel, stride, before, after; /* zeros on top and left, on bottom and right */
    int64_t alignment;                     /* that of x, y and residual in bytes, at most 16 */
    sid_dtype dtype;
    int residual, relu, unused; /* without padding, because shapes are compared by bytes */
} sid_plan_shape;

typedef struct {
    const sid_nvidia *nv;
    cudnnHandle_t handle;                /* NULL where properties are given */
    cudnnBackendDescriptor_t properties; /* those of a device that need not exist; NULL: the handle's */
} sid_planner;

typedef struct {
    sid_plan_shape shape;
    cudnnBackendDescriptor_t plan;
    size_t workspace; /* bytes */
} sid_plan;

/* Opens the first of cuDNN's configurations that is precompiled, deterministic, needs at most 256 MiB of workspace
 * and, for float32, has full precision. Returns SID_EINTERNAL with the shape if there is none. */
int sid_plan_open(const sid_planner *planner, sid_plan *plan, const sid_plan_shape *shape);
void sid_plan_close(const sid_planner *planner, sid_plan *plan);

typedef struct {
    const void *x, *w, *bias, *residual;
    void *y, *workspace;
} sid_plan_pointers;
int sid_plan_run(const sid_planner *planner, const sid_plan *plan, const sid_plan_pointers *pointers);

#endif
