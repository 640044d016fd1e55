/* Weights are uploaded as they are stored, then converted and transposed on the device. */
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "cuda/grids.h"
#include "cuda/ops.h"

/* Uploads the weight's numbers as stored, densely, to a block of the device. */
static int upload_rows(sid_exec *exec, void *block, const sid_weight *w) {
    size_t size = sid_dtype_size(w->dtype), bytes = sid_weight_count(w) * size, row = bytes / w->shape[0];
    if (w->shape[0] == 1 || w->stride * size == row) return exec->backend->write(exec, block, w->data, bytes);
    char *dense = malloc(bytes);
    if (!dense) return sid_fail(SID_EMEMORY, "out of memory");
    for (size_t i = 0; i < w->shape[0]; i++) memcpy(dense + i * row, (const char *)w->data + i * w->stride * size, row);
    int status = exec->backend->write(exec, block, dense, bytes);
    free(dense);
    return status;
}

/* Sets *raw to a block of the device with the weight as stored. */
static int upload(sid_exec *exec, void **raw, const sid_weight *weight) {
    sid_memory *memory = &exec->backend->memory;
    SID_TRY(memory->take(memory, raw, sid_weight_count(weight) * sid_dtype_size(weight->dtype), "weights"));
    int status = upload_rows(exec, *raw, weight);
    if (status != SID_OK) memory->give(memory, *raw);
    return status;
}

/* ---- rows one after the other ---- */

static int stack_part(sid_exec *exec, char *block, sid_dtype dtype, const sid_weight *weight) {
    size_t count = sid_weight_count(weight);
    sid_tensor to = sid_dense(block, dtype, 1, 1, 1, count), from = sid_dense(NULL, weight->dtype, 1, 1, 1, count);
    if (weight->dtype == dtype) return upload_rows(exec, block, weight);
    SID_TRY(upload(exec, &from.data, weight));
    int status = sid_cuda_combine(exec, &to, 1, &from, 0, NULL);
    exec->backend->memory.give(&exec->backend->memory, from.data);
    return status;
}

int sid_cuda_stack(sid_cuda *cuda, void **block, sid_dtype dtype, size_t parts, const sid_weight *const *weights) {
    sid_memory *memory = &cuda->base.memory;
    sid_exec exec = {.backend = &cuda->base};
    size_t total = 0, done = 0;
    int status = SID_OK;
    for (size_t i = 0; i < parts; i++) total += sid_weight_count(weights[i]);
    SID_TRY(memory->take(memory, block, total * sid_dtype_size(dtype), "weights"));
    for (size_t i = 0; i < parts && status == SID_OK; done += sid_weight_count(weights[i++]))
        status = stack_part(&exec, (char *)*block + done * sid_dtype_size(dtype), dtype, weights[i]);
    if (status == SID_OK) return SID_OK;
    memory->give(memory, *block);
    *block = NULL;
    return status;
}

int sid_cuda_floats_open(sid_backend *backend, float **floats, size_t parts, const sid_weight *const *weights) {
    void *block;
    SID_TRY(sid_cuda_stack((sid_cuda *)backend, &block, SID_F32, parts, weights));
    *floats = block;
    return SID_OK;
}

/* ---- convolutions ---- */

int sid_cuda_pack_conv(sid_cuda *cuda, void **block, const sid_conv_shape *shape, const sid_weight *weight) {
    sid_memory *memory = &cuda->base.memory;
    sid_exec exec = {.backend = &cuda->base};
    size_t taps = shape->kernel * shape->kernel, count = shape->out * shape->in * (shape->upsample ? 16 : taps);
    void *raw;
    SID_TRY(memory->take(memory, block, count * sid_dtype_size(cuda->base.dtype), "weights"));
    int status = upload(&exec, &raw, weight);
    if (status == SID_OK) {
        sid_cu_pack p = {
            *block, raw, (long long)count, (int)shape->in, (int)taps, (int)cuda->base.dtype, (int)weight->dtype};
        const char *name = shape->upsample ? "pack_doubling" : "pack_conv";
        status = sid_cu_run(&exec, SID_CU_PACK, name, "", sid_cu_threads(count), &p, sizeof p);
        memory->give(memory, raw);
    }
    if (status == SID_OK) return SID_OK;
    memory->give(memory, *block);
    *block = NULL;
    return status;
}
