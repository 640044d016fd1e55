/* The GPU's entry in the backend table: cuBLASLt does products, cuDNN does convolutions, own kernels do the rest. */
#include <stdlib.h>
#include <unistd.h>

#include "core/err.h"
#include "cuda/ops.h"

/* A process that was forked off has nothing to close, because what the driver holds belongs to its parent. */
static void cuda_close(sid_backend **backend) {
    sid_cuda *cuda = (sid_cuda *)*backend;
    if (!cuda) return;
    if (cuda->context && getpid() == cuda->process) {
        sid_recorder_close(cuda);
        sid_modules_close(cuda);
        sid_device_close(cuda);
    }
    pthread_mutex_destroy(&cuda->lock);
    pthread_mutex_destroy(&cuda->tables);
    free(cuda);
    *backend = NULL;
}

static const sid_backend table = {
    .memory = {.take = sid_cuda_take, .give = sid_cuda_give},
    .close = cuda_close,
    .write = sid_cuda_write,
    .read = sid_cuda_read,
    .copy = sid_cuda_copy,
    .zero = sid_cuda_zero,
    .begin = sid_cuda_begin,
    .end = sid_cuda_end,
    .pace = sid_cuda_pace,
    .conv_open = sid_cuda_conv_open,
    .conv_close = sid_cuda_conv_close,
    .conv = sid_cuda_conv,
    .linear_open = sid_cuda_linear_open,
    .linear_close = sid_cuda_linear_close,
    .linear = sid_cuda_linear,
    .floats_open = sid_cuda_floats_open,
    .group_norm = sid_cuda_group_norm,
    .layer_norm = sid_cuda_layer_norm,
    .attention = sid_cuda_attention,
    .combine = sid_cuda_combine,
    .blend_rows = sid_cuda_blend_rows,
    .from_planes = sid_cuda_from_planes,
    .to_planes = sid_cuda_to_planes,
    .mix = sid_cuda_mix,
    .tile_take = sid_cuda_tile_take,
    .tile_add = sid_cuda_tile_add,
};

int sid_cuda_open(sid_backend **backend, sid_dtype dtype, int device, int threads) {
    pthread_mutexattr_t recursive;
    sid_cuda *cuda = calloc(1, sizeof *cuda);
    *backend = (sid_backend *)cuda;
    if (!cuda) return sid_fail(SID_EMEMORY, "out of memory");
    cuda->base = table;
    cuda->base.dtype = dtype;
    cuda->base.threads = threads;
    cuda->device = device;
    cuda->process = getpid();
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&cuda->lock, &recursive);
    pthread_mutexattr_destroy(&recursive);
    pthread_mutex_init(&cuda->tables, NULL);
    SID_TRY(sid_device_open(cuda));
    SID_TRY(sid_recorder_open(cuda));
    return sid_modules_open(cuda);
}
