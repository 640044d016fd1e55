/* libcuda.so.1 on the host. Device memory is a reserved range that is accessible only while a stream's work is done, so
 * host code that touches a device's address dies there. New memory is full of NaNs, memory that was given back is
 * unmapped, and the ends of blocks are watched. Kernels are libraries that fake_nvrtc.c compiled for the host.
 *
 * STYLEID_FAKE_DEVICES, _ARCHITECTURE, _DRIVER and _MEMORY (MiB) describe the machine; fake_fail() makes calls fail. */
#include "fake.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static pthread_mutex_t lock; /* recursive, because work may enqueue more */
#define LOCKED(expression)                     \
    do {                                       \
        pthread_mutex_lock(&lock);             \
        CUresult locked_result = (expression); \
        pthread_mutex_unlock(&lock);           \
        return locked_result;                  \
    } while (0)

void fake_refuse(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("fake device: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    abort();
}

long fake_setting(const char *name, long otherwise) {
    char full[64];
    snprintf(full, sizeof full, "STYLEID_FAKE_%s", name);
    const char *value = getenv(full);
    return value ? atol(value) : otherwise;
}

/* ---- failures on demand ---- */

static struct {
    char function[64];
    int after, status; /* calls that still succeed; status is 0 if no failure is asked for */
} failure;

/* Makes the call number `after` (from 0) of the function fail, once. */
EXPORT void fake_fail(const char *function, int after, int status) {
    snprintf(failure.function, sizeof failure.function, "%s", function);
    failure.after = after;
    failure.status = status;
}

int fake_failure(const char *function) {
    if (!failure.status || strcmp(function, failure.function) != 0 || failure.after-- > 0) return 0;
    int status = failure.status;
    failure.status = 0;
    return status;
}
#define MAY_FAIL()                                \
    do {                                          \
        int failed_with = fake_failure(__func__); \
        if (failed_with) return failed_with;      \
    } while (0)

/* ---- contexts ---- */

struct CUctx_st {
    int users;
};
static struct CUctx_st contexts[16];
static _Thread_local CUcontext current[64];
static _Thread_local int depth;

#define NEEDS_CONTEXT()                                \
    do {                                               \
        if (!depth) return CUDA_ERROR_INVALID_CONTEXT; \
    } while (0)

/* ---- memory ---- */

#define PAGE ((size_t)4096)
#define RANGE ((size_t)1 << 42)
#define GUARD 0xa5

typedef struct block {
    struct block *next;
    char *start;
    size_t size, mapped; /* mapped is size rounded up to whole pages */
} block;

static char *range, guard[PAGE];
static size_t range_used, memory_used;
static block *blocks;
static int accessible; /* how many runs of work are in progress */

static size_t memory_total(void) { return (size_t)fake_setting("MEMORY", 16384) << 20; }

static block *block_of(const void *data) {
    for (block *b = blocks; b; b = b->next)
        if ((const char *)data >= b->start && (const char *)data < b->start + b->mapped) return b;
    return NULL;
}

int fake_is_device(const void *data, size_t size) {
    pthread_mutex_lock(&lock);
    const block *b = block_of(data);
    int inside = b && (const char *)data + size <= b->start + b->size;
    pthread_mutex_unlock(&lock);
    return inside;
}

static void set_access(int protection) {
    for (block *b = blocks; b; b = b->next) mprotect(b->start, b->mapped, protection);
}

static void check_end(const block *b) {
    if (memcmp(b->start + b->size, guard, b->mapped - b->size) != 0)
        fake_refuse("the memory behind a block of %zu bytes was written to", b->size);
}

static void check_ends(void) {
    for (const block *b = blocks; b; b = b->next) check_end(b);
}

static CUresult allocate(CUdeviceptr *address, size_t size) {
    size_t mapped = (size + PAGE - 1) / PAGE * PAGE;
    if (!range) {
        range = mmap(NULL, RANGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (range == MAP_FAILED) fake_refuse("no address space");
        memset(guard, GUARD, sizeof guard);
    }
    if (!size || memory_used + mapped > memory_total() || range_used + mapped + PAGE > RANGE)
        return CUDA_ERROR_OUT_OF_MEMORY;
    block *b = calloc(1, sizeof *b);
    *b = (block){blocks, range + range_used, size, mapped};
    range_used += mapped + PAGE;
    memory_used += mapped;
    /* Without MAP_NORESERVE: pages unlike those around them, which the system does not join to them and part again. */
    if (mmap(b->start, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        fake_refuse("no memory for a block of %zu bytes", size);
    memset(b->start, 0xff, size);
    memset(b->start + size, GUARD, mapped - size);
    if (!accessible) mprotect(b->start, mapped, PROT_NONE);
    blocks = b;
    *address = (uintptr_t)b->start;
    return CUDA_SUCCESS;
}

static void release(void *start) {
    block **place = &blocks;
    while (*place && (*place)->start != start) place = &(*place)->next;
    block *b = *place;
    if (!b) fake_refuse("memory is given back that was not taken, or twice");
    mprotect(b->start, b->mapped, PROT_READ);
    check_end(b);
    if (mmap(b->start, b->mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
        MAP_FAILED)
        fake_refuse("no address space");
    memory_used -= b->mapped;
    *place = b->next;
    free(b);
}

/* ---- streams and events ---- */

typedef struct CUgraphNode_st {
    struct CUgraphNode_st *next;
    fake_work work;
    void *arguments;
    size_t size, index; /* index is its place in its graph */
} node;

typedef struct {
    node *first, **end;
    size_t count;
} list;

struct CUgraph_st {
    list nodes;
};
struct CUgraphExec_st {
    list nodes;
};
struct CUstream_st {
    list queue;
    CUgraph capture;                /* NULL if nothing is captured */
    int spoiled;                    /* whether the capture met something that cannot be captured */
    unsigned long long done, asked; /* counts of pieces of work */
    CUgraphNode dependency;         /* the capture's last node, which cuStreamGetCaptureInfo_v2 returns */
};
struct CUevent_st {
    CUstream stream; /* NULL if it is not recorded */
    unsigned long long position;
};

static node *append(list *to, fake_work work, const void *arguments, size_t size) {
    node *n = calloc(1, sizeof *n);
    if (!to->end) to->end = &to->first;
    *n = (node){NULL, work, malloc(size ? size : 1), size, to->count++};
    memcpy(n->arguments, arguments, size);
    *to->end = n;
    to->end = &n->next;
    return n;
}

static void drop_list(list *from) {
    for (node *n = from->first, *next; n; n = next) {
        next = n->next;
        free(n->arguments);
        free(n);
    }
    *from = (list){0};
}

static CUresult enqueue(CUstream stream, fake_work work, const void *arguments, size_t size) {
    if (stream->capture) {
        stream->dependency = append(&stream->capture->nodes, work, arguments, size);
        return CUDA_SUCCESS;
    }
    append(&stream->queue, work, arguments, size);
    stream->asked++;
    return CUDA_SUCCESS;
}

CUresult fake_enqueue(CUstream stream, fake_work work, const void *arguments, size_t size) {
    LOCKED(enqueue(stream, work, arguments, size));
}

/* Does a stream's work up to the given piece. */
static CUresult advance(CUstream stream, unsigned long long position) {
    if (stream->capture) {
        stream->spoiled = 1;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (stream->done >= position) return CUDA_SUCCESS;
    if (!accessible++) set_access(PROT_READ | PROT_WRITE);
    while (stream->done < position) {
        node *n = stream->queue.first;
        stream->queue.first = n->next;
        if (!n->next) stream->queue.end = NULL;
        stream->done++;
        n->work(n->arguments);
        free(n->arguments);
        free(n);
    }
    if (!--accessible) {
        check_ends();
        set_access(PROT_NONE);
    }
    return CUDA_SUCCESS;
}

/* ---- modules ---- */

struct CUmod_st {
    void *library;
};
struct CUfunc_st {
    void (*run)(const unsigned *grid, unsigned threads, unsigned long shared, const void *parameters);
    size_t size; /* that of the parameters */
    char name[64];
};

static CUresult load_image(CUmodule *module, const void *image) {
    struct {
        char mark[8];
        uint64_t size;
    } head;
    char path[] = "/tmp/styleid-fake-XXXXXX";
    memcpy(&head, image, sizeof head);
    if (memcmp(head.mark, "FAKECUB", 8) != 0) return CUDA_ERROR_INVALID_IMAGE;
    int file = mkstemp(path);
    if (file < 0) return CUDA_ERROR_OUT_OF_MEMORY;
    int written = write(file, (const char *)image + sizeof head, head.size) == (ssize_t)head.size;
    close(file);
    void *library = written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    unlink(path);
    if (!library) return CUDA_ERROR_INVALID_IMAGE;
    *module = malloc(sizeof **module);
    (*module)->library = library;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    NEEDS_CONTEXT();
    MAY_FAIL();
    LOCKED(load_image(module, image));
}

EXPORT CUresult cuModuleUnload(CUmodule module) {
    free(module); /* its functions may still be in a queue */
    return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    char symbol[96];
    MAY_FAIL();
    /* lives as long as the process, because CUDA has no call to end it */
    CUfunction f = *function = calloc(1, sizeof *f);
    snprintf(f->name, sizeof f->name, "%s", name);
    snprintf(symbol, sizeof symbol, "sid_emu_run_%s", name);
    void *run = dlsym(module->library, symbol);
    snprintf(symbol, sizeof symbol, "sid_emu_size_%s", name);
    const unsigned long *size = dlsym(module->library, symbol);
    if (!run || !size) return CUDA_ERROR_NOT_FOUND;
    memcpy(&f->run, &run, sizeof run);
    f->size = *size;
    return CUDA_SUCCESS;
}

typedef struct {
    CUfunction function;
    unsigned grid[3], threads;
    char parameters[4096];
} launch;

static void run_launch(void *arguments) {
    const launch *l = arguments;
    l->function->run(l->grid, l->threads, 0, l->parameters);
}

static CUresult prepare_launch(launch *l, CUfunction function, const unsigned shape[6], unsigned shared,
                               void **parameters) {
    if (!shape[0] || !shape[1] || !shape[2] || shape[1] > 65535 || shape[2] > 65535 || !shape[3] || shape[3] > 1024 ||
        shape[4] != 1 || shape[5] != 1 || shared > 48 << 10 || !parameters || function->size > sizeof l->parameters)
        return CUDA_ERROR_INVALID_VALUE;
    *l = (launch){function, {shape[0], shape[1], shape[2]}, shape[3], {0}};
    memcpy(l->parameters, parameters[0], function->size);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void **parameters,
                               void **extra) {
    const unsigned shape[6] = {grid_x, grid_y, grid_z, block_x, block_y, block_z};
    launch l;
    (void)extra;
    NEEDS_CONTEXT();
    MAY_FAIL();
    CUresult result = prepare_launch(&l, function, shape, shared, parameters);
    return result ? result : fake_enqueue(stream, run_launch, &l, offsetof(launch, parameters) + function->size);
}

/* ---- graphs ---- */

EXPORT CUresult cuStreamBeginCapture_v2(CUstream stream, int mode) {
    MAY_FAIL();
    if (stream->capture || mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) return CUDA_ERROR_INVALID_VALUE;
    stream->capture = calloc(1, sizeof *stream->capture);
    stream->spoiled = 0;
    stream->dependency = NULL;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    *graph = stream->capture;
    stream->capture = NULL;
    if (!*graph) return CUDA_ERROR_INVALID_VALUE;
    if (!stream->spoiled && !fake_failure(__func__)) return CUDA_SUCCESS;
    drop_list(&(*graph)->nodes);
    free(*graph);
    *graph = NULL;
    return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
}

EXPORT CUresult cuStreamGetCaptureInfo_v2(CUstream stream, int *status, uint64_t *id, CUgraph *graph,
                                          const CUgraphNode **dependencies, size_t *count) {
    *status = stream->capture != NULL;
    *id = 1;
    if (graph) *graph = stream->capture;
    if (dependencies) *dependencies = &stream->dependency;
    if (count) *count = stream->dependency != NULL;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    MAY_FAIL();
    *exec = calloc(1, sizeof **exec);
    for (node *n = graph->nodes.first; n; n = n->next) append(&(*exec)->nodes, n->work, n->arguments, n->size);
    return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

static CUresult launch_graph(CUgraphExec exec, CUstream stream) {
    for (node *n = exec->nodes.first; n; n = n->next) enqueue(stream, n->work, n->arguments, n->size);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    NEEDS_CONTEXT();
    MAY_FAIL();
    LOCKED(launch_graph(exec, stream));
}

EXPORT CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode given,
                                                  const CUDA_KERNEL_NODE_PARAMS *p) {
    const unsigned shape[6] = {p->gridDimX, p->gridDimY, p->gridDimZ, p->blockDimX, p->blockDimY, p->blockDimZ};
    node *n = exec->nodes.first;
    launch l;
    MAY_FAIL();
    while (n && n->index != given->index) n = n->next;
    if (!n || n->work != run_launch) return CUDA_ERROR_INVALID_VALUE;
    CUresult result = prepare_launch(&l, p->func, shape, p->sharedMemBytes, p->kernelParams);
    if (result == CUDA_SUCCESS && p->func == ((launch *)n->arguments)->function) memcpy(n->arguments, &l, n->size);
    else result = CUDA_ERROR_INVALID_VALUE;
    return result;
}

EXPORT CUresult cuGraphExecDestroy(CUgraphExec exec) {
    drop_list(&exec->nodes);
    free(exec);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphDestroy(CUgraph graph) {
    drop_list(&graph->nodes);
    free(graph);
    return CUDA_SUCCESS;
}

/* ---- streams ---- */

EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    (void)flags;
    NEEDS_CONTEXT();
    MAY_FAIL();
    *stream = calloc(1, sizeof **stream);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamSynchronize(CUstream stream) {
    NEEDS_CONTEXT();
    MAY_FAIL();
    LOCKED(advance(stream, stream->asked));
}

EXPORT CUresult cuStreamDestroy_v2(CUstream stream) {
    CUresult result = cuStreamSynchronize(stream);
    free(stream);
    return result;
}

typedef struct {
    CUstream stream;
    unsigned long long position;
} meeting;

static void wait_for(void *arguments) {
    const meeting *m = arguments;
    advance(m->stream, m->position);
}

EXPORT CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
    meeting m = {event->stream, event->position};
    (void)flags;
    return event->stream && event->stream != stream ? fake_enqueue(stream, wait_for, &m, sizeof m) : CUDA_SUCCESS;
}

EXPORT CUresult cuEventCreate(CUevent *event, unsigned flags) {
    (void)flags;
    NEEDS_CONTEXT();
    MAY_FAIL();
    *event = calloc(1, sizeof **event);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) {
    MAY_FAIL();
    *event = (struct CUevent_st){stream, stream->asked};
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventSynchronize(CUevent event) {
    MAY_FAIL();
    if (!event->stream) return CUDA_SUCCESS;
    LOCKED(advance(event->stream, event->position));
}

EXPORT CUresult cuEventDestroy_v2(CUevent event) {
    free(event);
    return CUDA_SUCCESS;
}

/* ---- memory, its interface ---- */

struct CUmemPoolHandle_st {
    int unused;
};

EXPORT CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *properties) {
    NEEDS_CONTEXT();
    MAY_FAIL();
    if (properties->allocType != CU_MEM_ALLOCATION_TYPE_PINNED ||
        properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_INVALID_VALUE;
    *pool = calloc(1, sizeof **pool);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemPoolSetAttribute(CUmemoryPool pool, int attribute, void *value) {
    (void)pool, (void)value;
    return attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t keep) {
    (void)pool, (void)keep;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemPoolDestroy(CUmemoryPool pool) {
    free(pool);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAllocFromPoolAsync(CUdeviceptr *address, size_t size, CUmemoryPool pool, CUstream stream) {
    (void)pool;
    NEEDS_CONTEXT();
    MAY_FAIL();
    if (stream->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    LOCKED(allocate(address, size));
}

static void run_release(void *arguments) { release(*(void **)arguments); }

EXPORT CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream) {
    void *start = (void *)(uintptr_t)address;
    NEEDS_CONTEXT();
    if (stream->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return fake_enqueue(stream, run_release, &start, sizeof start);
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
    NEEDS_CONTEXT();
    MAY_FAIL();
    LOCKED(allocate(address, size));
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr address) {
    (void)address; /* this would have to wait for all streams, but the tests' device has pools */
    return CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuMemGetInfo_v2(size_t *available, size_t *total) {
    NEEDS_CONTEXT();
    *total = memory_total();
    *available = *total - memory_used;
    return CUDA_SUCCESS;
}

/* Pinned memory. Transfers read it when they take place, not when they are asked for. */
typedef struct pinned {
    struct pinned *next;
    char *start;
    size_t size;
} pinned;
static pinned *all_pinned;

static CUresult pin(void **start, size_t size) {
    pinned *p = malloc(sizeof *p);
    *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*start == MAP_FAILED) fake_refuse("no memory");
    *p = (pinned){all_pinned, *start, size};
    all_pinned = p;
    return CUDA_SUCCESS;
}

static CUresult unpin(void *start) {
    pinned **place = &all_pinned;
    while (*place && (*place)->start != start) place = &(*place)->next;
    pinned *p = *place;
    if (!p) fake_refuse("pinned memory is given back that was not taken, or twice");
    munmap(p->start, p->size);
    *place = p->next;
    free(p);
    return CUDA_SUCCESS;
}

static int is_pinned(const void *data) {
    for (const pinned *p = all_pinned; p; p = p->next)
        if ((const char *)data >= p->start && (const char *)data < p->start + p->size) return 1;
    return 0;
}

EXPORT CUresult cuMemHostAlloc(void **start, size_t size, unsigned flags) {
    (void)flags;
    NEEDS_CONTEXT();
    MAY_FAIL();
    LOCKED(pin(start, size));
}

EXPORT CUresult cuMemFreeHost(void *start) { LOCKED(unpin(start)); }

typedef struct {
    void *to;
    const void *from;
    size_t size;
} transfer;

static void run_transfer(void *arguments) {
    const transfer *t = arguments;
    memcpy(t->to, t->from, t->size);
}

typedef struct {
    void *to;
    size_t size;
    char data[];
} message;

static void run_message(void *arguments) {
    const message *m = arguments;
    memcpy(m->to, m->data, m->size);
}

static void expect_device(CUdeviceptr address, size_t size, const char *function) {
    if (!fake_is_device((void *)(uintptr_t)address, size)) fake_refuse("%s: not memory of the device", function);
}

EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream stream) {
    transfer t = {(void *)(uintptr_t)to, from, size};
    NEEDS_CONTEXT();
    MAY_FAIL();
    expect_device(to, size, __func__);
    if (is_pinned(from)) return fake_enqueue(stream, run_transfer, &t, sizeof t);
    message *m = malloc(sizeof *m + size);
    *m = (message){t.to, size};
    memcpy(m->data, from, size);
    CUresult result = fake_enqueue(stream, run_message, m, sizeof *m + size);
    free(m);
    return result;
}

EXPORT CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream stream) {
    transfer t = {to, (const void *)(uintptr_t)from, size};
    NEEDS_CONTEXT();
    MAY_FAIL();
    expect_device(from, size, __func__);
    return fake_enqueue(stream, run_transfer, &t, sizeof t);
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    transfer t = {(void *)(uintptr_t)to, (const void *)(uintptr_t)from, size};
    NEEDS_CONTEXT();
    MAY_FAIL();
    expect_device(from, size, __func__);
    expect_device(to, size, __func__);
    return fake_enqueue(stream, run_transfer, &t, sizeof t);
}

typedef struct {
    void *to;
    size_t size;
    int value;
} filling;

static void run_filling(void *arguments) {
    const filling *f = arguments;
    memset(f->to, f->value, f->size);
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t size, CUstream stream) {
    filling f = {(void *)(uintptr_t)to, size, value};
    NEEDS_CONTEXT();
    MAY_FAIL();
    expect_device(to, size, __func__);
    return fake_enqueue(stream, run_filling, &f, sizeof f);
}

/* ---- the driver and its devices ---- */

__attribute__((constructor)) static void start(void) {
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&lock, &recursive);
    pthread_mutexattr_destroy(&recursive);
}

EXPORT CUresult cuInit(unsigned flags) {
    (void)flags;
    MAY_FAIL();
    return fake_setting("DEVICES", 1) > 0 ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

EXPORT CUresult cuDriverGetVersion(int *version) {
    *version = (int)fake_setting("DRIVER", 13000);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorName(CUresult error, const char **name) {
    (void)error;
    *name = "FAKE_ERROR";
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "a failure of the fake device";
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetCount(int *count) {
    *count = (int)fake_setting("DEVICES", 1);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return ordinal >= 0 && ordinal < fake_setting("DEVICES", 1) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
    (void)device;
    snprintf(name, (size_t)size, "Fake GPU");
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    long architecture = fake_setting("ARCHITECTURE", 80);
    (void)device;
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        *value = (int)architecture / 10;
        break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        *value = (int)architecture % 10;
        break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
        *value = 1;
        break;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    (void)device;
    *bytes = memory_total();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    MAY_FAIL();
    contexts[device].users++;
    *context = &contexts[device];
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    if (contexts[device].users-- <= 0) fake_refuse("a context is released that nobody retains");
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context) {
    if (depth == 64) fake_refuse("contexts are pushed and not popped");
    current[depth++] = context;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    if (!depth) fake_refuse("a context is popped that was not pushed");
    *context = current[--depth];
    return CUDA_SUCCESS;
}
