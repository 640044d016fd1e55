/* Launches, and runs recorded as graphs.
 *
 * The first run of a key is plain. The second is captured: every launch and library call appends an entry. From the
 * third on, the model's code runs as usual, but what it asks for is only compared with the entries: a kernel with
 * other parameters is patched in the graph, anything else drops the recording, and the run is asked for once more.
 * Nothing is executed before end() launches the graph, so giving up is always clean. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/err.h"
#include "cuda/launch.h"

#define KEYS 32      /* keys that are remembered */
#define RECORDINGS 4 /* recordings that are kept */
#define DROPS 3      /* dropped recordings after which a key is never recorded again */

typedef struct {
    const sid_kernel *kernel; /* NULL for a library call, a copy or zeros */
    sid_grid grid;
    CUgraphNode node;
    size_t first, size; /* where its parameters, or the call's identity, are in `bytes` */
} entry;

typedef struct {
    uint64_t key;    /* 0 if it is free */
    uint64_t latest; /* the number of its latest run */
    int drops;
    int recorded;
    entry *entries;
    char *bytes;
    size_t count, capacity, bytes_used, bytes_capacity;
    CUgraphExec graph;
    CUgraph captured; /* owns the nodes */
} recording;

typedef enum { PLAIN, CAPTURE, REPLAY, GIVEN_UP } mode;

struct sid_recorder {
    int enabled;
    uint64_t clock;
    recording keys[KEYS];
    mode mode;          /* that of the run between begin and end */
    recording *current; /* that of the run's key; NULL where the run is not recorded */
    size_t cursor;      /* the next entry of a replay */
};

/* ---- recordings ---- */

static void clear(sid_cuda *cuda, recording *r) {
    if (r->graph) cuda->nv->cuGraphExecDestroy(r->graph);
    if (r->captured) cuda->nv->cuGraphDestroy(r->captured);
    free(r->entries);
    free(r->bytes);
    *r = (recording){.key = r->key, .latest = r->latest, .drops = r->drops};
}

static void drop(sid_cuda *cuda, recording *r, int drops) {
    clear(cuda, r);
    r->drops += drops;
}

/* Returns the key's place. A new key takes a free one, or that of the least recently used key. */
static recording *place_of(sid_cuda *cuda, uint64_t key) {
    sid_recorder *recorder = cuda->recorder;
    recording *oldest = &recorder->keys[0];
    for (size_t i = 0; i < KEYS; i++) {
        recording *r = &recorder->keys[i];
        if (r->key == key) return r;
        if (r->latest < oldest->latest) oldest = r;
    }
    clear(cuda, oldest);
    *oldest = (recording){.key = key};
    return oldest;
}

/* Makes room for one more recording. */
static void keep_few(sid_cuda *cuda) {
    recording *oldest = NULL;
    size_t count = 0;
    for (size_t i = 0; i < KEYS; i++) {
        recording *r = &cuda->recorder->keys[i];
        if (!r->recorded) continue;
        count++;
        if (!oldest || r->latest < oldest->latest) oldest = r;
    }
    if (count >= RECORDINGS) clear(cuda, oldest);
}

static int grow(void **array, size_t *capacity, size_t needed, size_t item) {
    if (needed <= *capacity) return SID_OK;
    size_t wanted = 2 * needed + 64;
    void *larger = realloc(*array, wanted * item);
    if (!larger) return sid_fail(SID_EMEMORY, "out of memory for a recording");
    *array = larger;
    *capacity = wanted;
    return SID_OK;
}

static int append(recording *r, const entry *e, const void *bytes) {
    SID_TRY(grow((void **)&r->entries, &r->capacity, r->count + 1, sizeof *r->entries));
    SID_TRY(grow((void **)&r->bytes, &r->bytes_capacity, r->bytes_used + e->size, 1));
    entry *own = &r->entries[r->count++];
    *own = *e;
    own->first = r->bytes_used;
    memcpy(r->bytes + own->first, bytes, e->size);
    r->bytes_used += e->size;
    return SID_OK;
}

/* ---- what a run does ---- */

static int launch(const sid_cuda *cuda, const sid_kernel *kernel, sid_grid grid, const void *parameters) {
    void *pointers[] = {(void *)parameters};
    return sid_cuda_check(cuda,
                          cuda->nv->cuLaunchKernel(sid_kernel_function(kernel), grid.x, grid.y, grid.z, grid.threads, 1,
                                                   1, 0, cuda->stream, pointers, NULL),
                          sid_kernel_name(kernel));
}

/* Gets the node that the capture made last. */
static int last_node(const sid_cuda *cuda, CUgraphNode *node) {
    const CUgraphNode *nodes;
    size_t count = 0;
    uint64_t id;
    int status;
    SID_CU(cuda, cuStreamGetCaptureInfo_v2(cuda->stream, &status, &id, NULL, &nodes, &count));
    if (count != 1) return sid_fail(SID_EINTERNAL, "%s: a capture with %zu ends", cuda->name, count);
    *node = nodes[0];
    return SID_OK;
}

/* Returns the replay's next entry if it equals e in everything but the bytes, else NULL: then the recording is given
 * up. */
static entry *expected(sid_recorder *recorder, const entry *e) {
    recording *r = recorder->current;
    entry *next = recorder->cursor < r->count ? &r->entries[recorder->cursor] : NULL;
    if (next && next->kernel == e->kernel && memcmp(&next->grid, &e->grid, sizeof e->grid) == 0 &&
        next->size == e->size) {
        recorder->cursor++;
        return next;
    }
    recorder->mode = GIVEN_UP;
    return NULL;
}

static int patch(sid_cuda *cuda, const entry *e, const void *parameters) {
    recording *r = cuda->recorder->current;
    void *pointers[] = {(void *)parameters};
    CUDA_KERNEL_NODE_PARAMS node = {.func = sid_kernel_function(e->kernel),
                                    .gridDimX = e->grid.x,
                                    .gridDimY = e->grid.y,
                                    .gridDimZ = e->grid.z,
                                    .blockDimX = e->grid.threads,
                                    .blockDimY = 1,
                                    .blockDimZ = 1,
                                    .kernelParams = pointers};
    memcpy(r->bytes + e->first, parameters, e->size);
    if (cuda->nv->cuGraphExecKernelNodeSetParams_v2(r->graph, e->node, &node) != CUDA_SUCCESS)
        cuda->recorder->mode = GIVEN_UP;
    return SID_OK;
}

/* Whether nothing has to be done because the recording, which is compared with here, will do it. */
static int replayed(sid_cuda *cuda, const entry *e, const void *bytes) {
    sid_recorder *recorder = cuda->recorder;
    if (recorder->mode == GIVEN_UP) return 1;
    if (recorder->mode != REPLAY) return 0;
    entry *next = expected(recorder, e);
    if (!next || memcmp(recorder->current->bytes + next->first, bytes, e->size) == 0) return 1;
    if (e->kernel) patch(cuda, next, bytes);
    else recorder->mode = GIVEN_UP;
    return 1;
}

int sid_launch(sid_exec *exec, const sid_kernel *kernel, sid_grid grid, const void *parameters, size_t size) {
    sid_cuda *cuda = sid_cuda_of(exec);
    entry e = {.kernel = kernel, .grid = grid, .size = size};
    if (sid_measuring(&exec->arena)) return SID_OK;
    pthread_mutex_lock(&cuda->lock);
    sid_cuda_enter(cuda);
    int status = SID_OK;
    if (!replayed(cuda, &e, parameters)) {
        status = launch(cuda, kernel, grid, parameters);
        if (status == SID_OK && cuda->recorder->mode == CAPTURE) {
            status = last_node(cuda, &e.node);
            if (status == SID_OK) status = append(cuda->recorder->current, &e, parameters);
        }
    }
    sid_cuda_leave(cuda);
    pthread_mutex_unlock(&cuda->lock);
    return status;
}

int sid_record_call(sid_exec *exec, const sid_library_call *call) {
    sid_cuda *cuda = sid_cuda_of(exec);
    entry e = {.size = call->identity_size};
    if (sid_measuring(&exec->arena)) return SID_OK;
    pthread_mutex_lock(&cuda->lock);
    sid_cuda_enter(cuda);
    int status = SID_OK;
    if (!replayed(cuda, &e, call->identity)) {
        status = call->call(exec, call->arguments);
        if (status == SID_OK && cuda->recorder->mode == CAPTURE)
            status = append(cuda->recorder->current, &e, call->identity);
    }
    sid_cuda_leave(cuda);
    pthread_mutex_unlock(&cuda->lock);
    return status;
}

typedef struct {
    uintptr_t to, from; /* from is 0 for zeros */
    size_t size;
} movement;

static int move(sid_exec *exec, const void *arguments) {
    const sid_cuda *cuda = sid_cuda_of(exec);
    const movement *m = arguments;
    if (m->from) SID_CU(cuda, cuMemcpyDtoDAsync_v2(m->to, m->from, m->size, cuda->stream));
    else SID_CU(cuda, cuMemsetD8Async(m->to, 0, m->size, cuda->stream));
    return SID_OK;
}

int sid_cuda_copy(sid_exec *exec, void *block, const void *from, size_t size) {
    movement m = {(uintptr_t)block, (uintptr_t)from, size};
    return size ? sid_record_call(exec, &(sid_library_call){move, &m, &m, sizeof m}) : SID_OK;
}

int sid_cuda_zero(sid_exec *exec, void *block, size_t size) { return sid_cuda_copy(exec, block, NULL, size); }

/* ---- runs ---- */

int sid_recorder_open(sid_cuda *cuda) {
    const char *wanted = getenv("STYLEID_CUDA_GRAPHS");
    cuda->recorder = calloc(1, sizeof *cuda->recorder);
    if (!cuda->recorder) return sid_fail(SID_EMEMORY, "out of memory");
    cuda->recorder->enabled = !wanted || strcmp(wanted, "0") != 0;
    return SID_OK;
}

void sid_recorder_close(sid_cuda *cuda) {
    if (!cuda->recorder) return;
    sid_cuda_enter(cuda);
    for (size_t i = 0; i < KEYS; i++) clear(cuda, &cuda->recorder->keys[i]);
    sid_cuda_leave(cuda);
    free(cuda->recorder);
    cuda->recorder = NULL;
}

/* Ends a capture whose graph is not wanted. */
static void abandon_capture(sid_cuda *cuda) {
    CUgraph graph = NULL;
    cuda->nv->cuStreamEndCapture(cuda->stream, &graph);
    if (graph) cuda->nv->cuGraphDestroy(graph);
}

int sid_record_interrupt(sid_cuda *cuda) {
    sid_recorder *recorder = cuda->recorder;
    if (!recorder || recorder->mode == PLAIN || recorder->mode == GIVEN_UP) return SID_OK;
    if (recorder->mode == CAPTURE) abandon_capture(cuda);
    recorder->mode = GIVEN_UP;
    recorder->current->drops = DROPS;
    return SID_OK;
}

/* Chooses what the run of a key will be. */
static int choose_mode(sid_cuda *cuda, uint64_t key) {
    sid_recorder *recorder = cuda->recorder;
    recorder->mode = PLAIN;
    recorder->current = NULL;
    recorder->cursor = 0;
    if (!key || !recorder->enabled) return SID_OK;
    recording *r = recorder->current = place_of(cuda, key);
    int seen = r->latest != 0;
    r->latest = ++recorder->clock;
    if (r->drops >= DROPS || !seen) return SID_OK;
    if (r->recorded) {
        recorder->mode = REPLAY;
        return SID_OK;
    }
    keep_few(cuda);
    SID_CU(cuda, cuStreamBeginCapture_v2(cuda->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    recorder->mode = CAPTURE;
    return SID_OK;
}

int sid_cuda_begin(sid_exec *exec, uint64_t key) {
    sid_cuda *cuda = sid_cuda_of(exec);
    if (getpid() != cuda->process)
        return sid_fail(SID_EVALUE, "a model on %s cannot be used after fork(): load it in the new process",
                        cuda->name);
    pthread_mutex_lock(&cuda->lock);
    sid_cuda_enter(cuda);
    int status = choose_mode(cuda, key);
    if (status == SID_OK) {
        exec->run = cuda;
        return SID_OK;
    }
    sid_cuda_leave(cuda);
    pthread_mutex_unlock(&cuda->lock);
    return status;
}

/* Turns the capture into a recording. Where the driver refuses it, the key stays plain for good. */
static int finish_capture(sid_cuda *cuda, int *again) {
    recording *r = cuda->recorder->current;
    CUresult result = cuda->nv->cuStreamEndCapture(cuda->stream, &r->captured);
    if (result == CUDA_SUCCESS) result = cuda->nv->cuGraphInstantiateWithFlags(&r->graph, r->captured, 0);
    if (result != CUDA_SUCCESS) {
        drop(cuda, r, DROPS);
        *again = 1;
        return SID_OK;
    }
    r->recorded = 1;
    SID_CU(cuda, cuGraphLaunch(r->graph, cuda->stream));
    return SID_OK;
}

static int finish(sid_cuda *cuda, int *again) {
    sid_recorder *recorder = cuda->recorder;
    recording *r = recorder->current;
    if (recorder->mode == CAPTURE) return finish_capture(cuda, again);
    if (recorder->mode == REPLAY && recorder->cursor == r->count) {
        SID_CU(cuda, cuGraphLaunch(r->graph, cuda->stream));
    } else if (recorder->mode != PLAIN) {
        drop(cuda, r, 1);
        *again = 1;
    }
    return SID_OK;
}

int sid_cuda_end(sid_exec *exec, int status, int *again) {
    sid_cuda *cuda = sid_cuda_of(exec);
    sid_recorder *recorder = cuda->recorder;
    *again = 0;
    if (status == SID_OK) {
        status = finish(cuda, again);
    } else if (recorder->mode == CAPTURE) {
        abandon_capture(cuda);
        clear(cuda, recorder->current);
    } else if (recorder->mode == REPLAY || recorder->mode == GIVEN_UP) {
        drop(cuda, recorder->current, 1);
    }
    recorder->mode = PLAIN;
    if (status == SID_OK && !*again)
        status = sid_cuda_check(cuda, cuda->nv->cuEventRecord(cuda->ends[cuda->runs++ % SID_PACE_EVENTS], cuda->stream),
                                "a run");
    exec->run = NULL;
    sid_cuda_leave(cuda);
    pthread_mutex_unlock(&cuda->lock);
    return status;
}

int sid_cuda_pace(sid_backend *backend, size_t runs) {
    sid_cuda *cuda = (sid_cuda *)backend;
    int status = SID_OK;
    pthread_mutex_lock(&cuda->lock);
    sid_cuda_enter(cuda);
    if (cuda->runs > runs && runs < SID_PACE_EVENTS)
        status =
            sid_cuda_check(cuda, cuda->nv->cuEventSynchronize(cuda->ends[(cuda->runs - 1 - runs) % SID_PACE_EVENTS]),
                           "a run");
    sid_cuda_leave(cuda);
    pthread_mutex_unlock(&cuda->lock);
    return status;
}
