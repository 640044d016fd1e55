/* The device: its context, stream and memory, and the transfers between its memory and the host's. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/err.h"
#include "cuda/cuda.h"
#include "cuda/launch.h"

/* ---- errors, contexts ---- */

int sid_cuda_check(const sid_cuda *cuda, CUresult result, const char *what) {
    if (result == CUDA_SUCCESS) return SID_OK;
    const char *words = NULL, *end = strchr(what, '(');
    cuda->nv->cuGetErrorString(result, &words);
    return sid_fail(result == CUDA_ERROR_OUT_OF_MEMORY ? SID_EMEMORY : SID_EINTERNAL, "%s: %.*s: %s (%d)", cuda->name,
                    (int)(end ? (size_t)(end - what) : strlen(what)), what, words ? words : "unknown error", result);
}

void sid_cuda_enter(const sid_cuda *cuda) { cuda->nv->cuCtxPushCurrent_v2(cuda->context); }

void sid_cuda_leave(const sid_cuda *cuda) {
    CUcontext context;
    cuda->nv->cuCtxPopCurrent_v2(&context);
}

static void lock(sid_cuda *cuda) {
    pthread_mutex_lock(&cuda->lock);
    sid_cuda_enter(cuda);
}

static void unlock(sid_cuda *cuda) {
    sid_cuda_leave(cuda);
    pthread_mutex_unlock(&cuda->lock);
}

/* ---- memory ---- */

#define GB 1e9

static int no_memory(const sid_cuda *cuda, size_t size, const char *what) {
    size_t free_bytes = 0, total = 0;
    cuda->nv->cuMemGetInfo_v2(&free_bytes, &total);
    return sid_fail(SID_EMEMORY,
                    "out of memory on %s: %s takes %.2f GB, %.2f of %.1f GB are free; use features='host' or "
                    "'recompute', or a smaller size",
                    cuda->name, what, (double)size / GB, (double)free_bytes / GB, (double)total / GB);
}

static CUresult allocate(const sid_cuda *cuda, CUdeviceptr *block, size_t size) {
    if (!cuda->pool) return cuda->nv->cuMemAlloc_v2(block, size);
    return cuda->nv->cuMemAllocFromPoolAsync(block, size, cuda->pool, cuda->stream);
}

/* Allocates once all work is done: memory that was given back may be in use until then, or be kept by the pool in
 * pieces that are too small. */
static CUresult allocate_at_last(const sid_cuda *cuda, CUdeviceptr *block, size_t size) {
    CUresult result = cuda->nv->cuStreamSynchronize(cuda->stream);
    if (result == CUDA_SUCCESS && cuda->pool) result = cuda->nv->cuMemPoolTrimTo(cuda->pool, 0);
    return result == CUDA_SUCCESS ? allocate(cuda, block, size) : result;
}

int sid_cuda_take(sid_memory *memory, void **block, size_t size, const char *what) {
    sid_cuda *cuda = (sid_cuda *)memory;
    CUdeviceptr address = 0;
    lock(cuda);
    int status = sid_record_interrupt(cuda);
    if (status == SID_OK) {
        CUresult result = allocate(cuda, &address, size);
        if (result == CUDA_ERROR_OUT_OF_MEMORY) result = allocate_at_last(cuda, &address, size);
        status = result == CUDA_ERROR_OUT_OF_MEMORY ? no_memory(cuda, size, what) : sid_cuda_check(cuda, result, what);
    }
    unlock(cuda);
    *block = (void *)(uintptr_t)address;
    return status;
}

void sid_cuda_give(sid_memory *memory, void *block) {
    sid_cuda *cuda = (sid_cuda *)memory;
    if (!block || getpid() != cuda->process) return; /* after fork() the device is the parent's */
    lock(cuda);
    sid_record_interrupt(cuda);
    if (cuda->pool) cuda->nv->cuMemFreeAsync((uintptr_t)block, cuda->stream);
    else cuda->nv->cuMemFree_v2((uintptr_t)block);
    unlock(cuda);
}

/* ---- transfers ---- */

/* Turns to the next slot of the staging memory once its contents have been transferred. */
static int turn_staging(sid_cuda *cuda) {
    sid_staging *s = &cuda->staging;
    if (s->slots[s->slot]) {
        SID_CU(cuda, cuEventRecord(s->done[s->slot], cuda->stream));
        s->slot = (s->slot + 1) % SID_STAGING_SLOTS;
    }
    s->used = 0;
    if (s->slots[s->slot]) return sid_cuda_check(cuda, cuda->nv->cuEventSynchronize(s->done[s->slot]), "an upload");
    if (!s->done[s->slot]) SID_CU(cuda, cuEventCreate(&s->done[s->slot], CU_EVENT_DISABLE_TIMING));
    SID_CU(cuda, cuMemHostAlloc(&s->slots[s->slot], SID_STAGING_SIZE, 0));
    return SID_OK;
}

/* The copy into pinned memory is made at once, so the host's array may change; the transfer follows in the stream. */
static int upload(sid_cuda *cuda, uintptr_t block, const char *host, size_t size) {
    sid_staging *s = &cuda->staging;
    for (size_t first = 0, count; first < size; first += count) {
        if (!s->slots[s->slot] || s->used >= SID_STAGING_SIZE) SID_TRY(turn_staging(cuda));
        char *staged = (char *)s->slots[s->slot] + s->used;
        count = size - first < SID_STAGING_SIZE - s->used ? size - first : SID_STAGING_SIZE - s->used;
        memcpy(staged, host + first, count);
        SID_CU(cuda, cuMemcpyHtoDAsync_v2(block + first, staged, count, cuda->stream));
        s->used += (count + SID_ALIGN - 1) / SID_ALIGN * SID_ALIGN;
    }
    return SID_OK;
}

int sid_cuda_write(sid_exec *exec, void *block, const void *host, size_t size) {
    sid_cuda *cuda = sid_cuda_of(exec);
    if (sid_measuring(&exec->arena)) return SID_OK;
    lock(cuda);
    int status = sid_record_interrupt(cuda);
    if (status == SID_OK) status = upload(cuda, (uintptr_t)block, host, size);
    unlock(cuda);
    return status;
}

/* Fails if a latent has overflowed since this was last asked. */
static int check_overflow(sid_cuda *cuda, int overflow) {
    static const char *const advice[] = {"; the model or its input is at fault", "; load with dtype='float32'",
                                         "; load with dtype='bfloat16'"};
    if (!overflow) return SID_OK;
    SID_CU(cuda, cuMemsetD8Async((uintptr_t)cuda->overflow, 0, sizeof overflow, cuda->stream));
    return sid_fail(SID_EVALUE, "a latent overflowed in %s: it has numbers that are not finite%s",
                    sid_dtype_name(cuda->base.dtype), advice[cuda->base.dtype]);
}

static int download(sid_cuda *cuda, void *host, uintptr_t block, size_t size) {
    int overflow = 0;
    SID_CU(cuda, cuMemcpyDtoHAsync_v2(host, block, size, cuda->stream));
    SID_CU(cuda, cuMemcpyDtoHAsync_v2(&overflow, (uintptr_t)cuda->overflow, sizeof overflow, cuda->stream));
    SID_CU(cuda, cuStreamSynchronize(cuda->stream));
    return check_overflow(cuda, overflow);
}

int sid_cuda_read(sid_exec *exec, void *host, const void *block, size_t size) {
    sid_cuda *cuda = sid_cuda_of(exec);
    if (sid_measuring(&exec->arena)) return SID_OK;
    lock(cuda);
    int status = sid_record_interrupt(cuda);
    if (status == SID_OK) status = download(cuda, host, (uintptr_t)block, size);
    unlock(cuda);
    return status;
}

/* ---- opening ---- */

static int architecture_of(const sid_nvidia *nv, CUdevice device) {
    int major = 0, minor = 0;
    nv->cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    nv->cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
    return 10 * major + minor;
}

int sid_cuda_device_count(int *count) {
    const sid_nvidia *nv;
    *count = 0;
    SID_TRY(sid_nvidia_driver(&nv));
    return nv->cuDeviceGetCount(count) == CUDA_SUCCESS ? SID_OK
                                                       : sid_fail(SID_EVALUE, "this machine has no NVIDIA GPU");
}

int sid_cuda_describe_device(sid_cuda_device *description, int device) {
    const sid_nvidia *nv;
    CUdevice handle;
    int count;
    *description = (sid_cuda_device){0};
    SID_TRY(sid_nvidia_driver(&nv));
    SID_TRY(sid_cuda_device_count(&count));
    if (device < 0 || device >= count || nv->cuDeviceGet(&handle, device) != CUDA_SUCCESS)
        return sid_fail(SID_EVALUE, "device: cuda:%d: this machine has %d", device, count);
    nv->cuDeviceGetName(description->name, sizeof description->name, handle);
    nv->cuDeviceTotalMem_v2(&description->total, handle);
    description->architecture = architecture_of(nv, handle);
    return SID_OK;
}

int sid_cuda_free_memory(size_t *bytes, int device) {
    const sid_nvidia *nv;
    CUdevice handle;
    CUcontext context;
    size_t total;
    *bytes = 0;
    SID_TRY(sid_nvidia_driver(&nv));
    if (nv->cuDeviceGet(&handle, device) != CUDA_SUCCESS ||
        nv->cuDevicePrimaryCtxRetain(&context, handle) != CUDA_SUCCESS)
        return sid_fail(SID_EVALUE, "device: cuda:%d cannot be used", device);
    nv->cuCtxPushCurrent_v2(context);
    nv->cuMemGetInfo_v2(bytes, &total);
    nv->cuCtxPopCurrent_v2(&context);
    nv->cuDevicePrimaryCtxRelease_v2(handle);
    return SID_OK;
}

static int check_device(sid_cuda *cuda) {
    sid_cuda_device found;
    SID_TRY(sid_cuda_describe_device(&found, cuda->device));
    snprintf(cuda->name, sizeof cuda->name, "cuda:%d (%s)", cuda->device, found.name);
    cuda->architecture = found.architecture;
    if (cuda->architecture < SID_CUDA_LEAST_ARCHITECTURE)
        return sid_fail(SID_EVALUE,
                        "device: %s has compute capability %d.%d, and styleid needs 7.5 or later; use device='cpu'",
                        cuda->name, cuda->architecture / 10, cuda->architecture % 10);
    if (cuda->base.dtype == SID_BF16 && cuda->architecture < 80)
        return sid_fail(SID_EVALUE,
                        "dtype: bfloat16 needs compute capability 8.0 or later, and %s has %d.%d; use float16",
                        cuda->name, cuda->architecture / 10, cuda->architecture % 10);
    return SID_OK;
}

/* The pool is the backend's own, so that other users' settings do not take back what is kept for the next run. */
static int open_pool(sid_cuda *cuda, CUdevice device) {
    CUmemPoolProps properties = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                 .location = {CU_MEM_LOCATION_TYPE_DEVICE, cuda->device}};
    uint64_t keep = UINT64_MAX;
    int supported = 0;
    cuda->nv->cuDeviceGetAttribute(&supported, CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, device);
    if (!supported) return SID_OK;
    SID_CU(cuda, cuMemPoolCreate(&cuda->pool, &properties));
    SID_CU(cuda, cuMemPoolSetAttribute(cuda->pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));
    return SID_OK;
}

static int open_in_context(sid_cuda *cuda, CUdevice device) {
    void *flag;
    SID_CU(cuda, cuStreamCreate(&cuda->stream, CU_STREAM_NON_BLOCKING));
    SID_TRY(open_pool(cuda, device));
    for (size_t i = 0; i < SID_PACE_EVENTS; i++) SID_CU(cuda, cuEventCreate(&cuda->ends[i], CU_EVENT_DISABLE_TIMING));
    SID_TRY(sid_cuda_take(&cuda->base.memory, &flag, sizeof *cuda->overflow, "a flag"));
    cuda->overflow = flag;
    SID_CU(cuda, cuMemsetD8Async((uintptr_t)flag, 0, sizeof *cuda->overflow, cuda->stream));
    int status = cuda->nv->cublasLtCreate(&cuda->blas);
    if (status)
        return sid_fail(SID_EINTERNAL, "%s: cublasLtCreate: %s", cuda->name, cuda->nv->cublasLtGetStatusString(status));
    status = cuda->nv->cudnnCreate(&cuda->dnn);
    if (!status) status = cuda->nv->cudnnSetStream(cuda->dnn, cuda->stream);
    return status ? sid_fail(SID_EINTERNAL, "%s: cudnnCreate: %s", cuda->name, cuda->nv->cudnnGetErrorString(status))
                  : SID_OK;
}

int sid_device_open(sid_cuda *cuda) {
    CUdevice device;
    SID_TRY(sid_nvidia_open(&cuda->nv));
    SID_TRY(check_device(cuda));
    SID_CU(cuda, cuDeviceGet(&device, cuda->device));
    SID_CU(cuda, cuDevicePrimaryCtxRetain(&cuda->context, device));
    sid_cuda_enter(cuda);
    int status = open_in_context(cuda, device);
    sid_cuda_leave(cuda);
    return status;
}

static void close_in_context(sid_cuda *cuda) {
    const sid_nvidia *nv = cuda->nv;
    if (cuda->stream) nv->cuStreamSynchronize(cuda->stream);
    if (cuda->dnn) nv->cudnnDestroy(cuda->dnn);
    if (cuda->blas) nv->cublasLtDestroy(cuda->blas);
    sid_cuda_give(&cuda->base.memory, cuda->overflow);
    for (size_t i = 0; i < SID_STAGING_SLOTS; i++) {
        if (cuda->staging.slots[i]) nv->cuMemFreeHost(cuda->staging.slots[i]);
        if (cuda->staging.done[i]) nv->cuEventDestroy_v2(cuda->staging.done[i]);
    }
    for (size_t i = 0; i < SID_PACE_EVENTS; i++)
        if (cuda->ends[i]) nv->cuEventDestroy_v2(cuda->ends[i]);
    if (cuda->stream) nv->cuStreamSynchronize(cuda->stream);
    if (cuda->pool) nv->cuMemPoolDestroy(cuda->pool);
    if (cuda->stream) nv->cuStreamDestroy_v2(cuda->stream);
}

void sid_device_close(sid_cuda *cuda) {
    CUdevice device;
    if (!cuda->context) return;
    sid_cuda_enter(cuda);
    close_in_context(cuda);
    sid_cuda_leave(cuda);
    if (cuda->nv->cuDeviceGet(&device, cuda->device) == CUDA_SUCCESS) cuda->nv->cuDevicePrimaryCtxRelease_v2(device);
}
