/* libcudnn's backend API on the host, for the graphs that csrc/cuda/plan.c builds: a convolution, then additions,
 * then perhaps the positive part. Its engines have the notes that a good choice has to consider. */
#include "fake.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/floats.h"

enum { CUDNN_STATUS_EXECUTION_FAILED = 5000, MOST_ATTRIBUTES = 8, WORKSPACE = 1024, MOST_OPERATIONS = 4 };

typedef struct descriptor descriptor;
typedef struct {
    int name, type;
    int64_t count;
    void *values; /* the descriptors among these are retained */
} attribute;
struct descriptor {
    int type, users, finished;
    attribute attributes[MOST_ATTRIBUTES];
    int count;
    int engine; /* that of an engine or a configuration */
};

struct cudnnContext {
    CUstream stream;
};

static char last_error[256];

EXPORT size_t cudnnGetVersion(void) { return 91000; }
EXPORT size_t cudnnGetCudartVersion(void) { return (size_t)fake_setting("CUDA", 13) * 1000; }
EXPORT const char *cudnnGetErrorString(cudnnStatus_t status) {
    return status ? "a failure of the fake cuDNN" : "success";
}
EXPORT void cudnnGetLastErrorString(char *text, size_t size) { snprintf(text, size, "%s", last_error); }

static cudnnStatus_t refuse(const char *why) {
    snprintf(last_error, sizeof last_error, "%s", why);
    return CUDNN_STATUS_NOT_SUPPORTED;
}

#define MAY_FAIL()                                \
    do {                                          \
        int failed_with = fake_failure(__func__); \
        if (failed_with) return failed_with;      \
    } while (0)

EXPORT cudnnStatus_t cudnnCreate(cudnnHandle_t *handle) {
    MAY_FAIL();
    *handle = calloc(1, sizeof **handle);
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
    free(handle);
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, CUstream stream) {
    handle->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}

/* ---- descriptors ---- */

EXPORT cudnnStatus_t cudnnBackendCreateDescriptor(int type, cudnnBackendDescriptor_t *made) {
    MAY_FAIL();
    descriptor *d = *made = calloc(1, sizeof *d);
    d->type = type;
    d->users = 1;
    return CUDNN_STATUS_SUCCESS;
}

static void let_go(descriptor *d) {
    if (--d->users) return;
    for (int i = 0; i < d->count; i++) {
        attribute *a = &d->attributes[i];
        for (int64_t k = 0; a->type == CUDNN_TYPE_BACKEND_DESCRIPTOR && k < a->count; k++)
            let_go(((descriptor **)a->values)[k]);
        free(a->values);
    }
    free(d);
}

EXPORT cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t d) {
    let_go(d);
    return CUDNN_STATUS_SUCCESS;
}

static size_t size_of(int type) {
    switch (type) {
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
        return 8;
    case CUDNN_TYPE_BOOLEAN:
        return sizeof(bool);
    default:
        return sizeof(int);
    }
}

EXPORT cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t given, int name, int type, int64_t count,
                                              const void *values) {
    descriptor *d = given;
    size_t size = size_of(type) * (size_t)count;
    MAY_FAIL();
    if (d->finished || d->count == MOST_ATTRIBUTES || count < 1) return refuse("an attribute of a finished descriptor");
    for (int i = 0; i < d->count; i++)
        if (d->attributes[i].name == name) return refuse("an attribute is set twice");
    attribute *a = &d->attributes[d->count++];
    *a = (attribute){name, type, count, malloc(size)};
    memcpy(a->values, values, size);
    for (int64_t k = 0; type == CUDNN_TYPE_BACKEND_DESCRIPTOR && k < count; k++) {
        descriptor *part = ((descriptor **)a->values)[k];
        if (!part->finished) fake_refuse("cuDNN: a descriptor that is not finished is used");
        part->users++;
    }
    return CUDNN_STATUS_SUCCESS;
}

static const attribute *find(const descriptor *d, int name) {
    for (int i = 0; i < d->count; i++)
        if (d->attributes[i].name == name) return &d->attributes[i];
    return NULL;
}

static const void *values(const descriptor *d, int name) {
    const attribute *a = find(d, name);
    if (!a) fake_refuse("cuDNN: descriptor %d has no attribute %d", d->type, name);
    return a->values;
}
static int64_t integer(const descriptor *d, int name, int64_t i) { return ((const int64_t *)values(d, name))[i]; }
static int number(const descriptor *d, int name) { return *(const int *)values(d, name); }
static const descriptor *part(const descriptor *d, int name) { return *(descriptor *const *)values(d, name); }

/* ---- graphs ---- */

/* What a graph computes, derived anew from its descriptors. */
typedef struct {
    const descriptor *x, *w, *y, *bias, *residual, *geometry;
    int relu;
} graph;

static int is_operation(const descriptor *d, int mode) {
    return d->type == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR &&
           number(part(d, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR), CUDNN_ATTR_POINTWISE_MODE) == mode;
}
static int is_virtual(const descriptor *tensor) { return *(const bool *)values(tensor, CUDNN_ATTR_TENSOR_IS_VIRTUAL); }
/* plan.c numbers its tensors. The bias, which a residual of one pixel could be mistaken for, is the third. */
static int is_bias(const descriptor *tensor) { return integer(tensor, CUDNN_ATTR_TENSOR_UNIQUE_ID, 0) == 3; }

static const char *read_graph(graph *g, const descriptor *d) {
    const attribute *a = find(d, CUDNN_ATTR_OPERATIONGRAPH_OPS);
    descriptor *const *operations = a->values;
    int64_t next = 1;
    *g = (graph){0};
    if (a->count > MOST_OPERATIONS || operations[0]->type != CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)
        return "a graph that does not begin with a convolution";
    g->geometry = part(operations[0], CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC);
    g->x = part(operations[0], CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X);
    g->w = part(operations[0], CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W);
    const descriptor *last = part(operations[0], CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y);
    for (; next < a->count && is_operation(operations[next], CUDNN_POINTWISE_ADD); next++) {
        const descriptor *added = part(operations[next], CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
        if (part(operations[next], CUDNN_ATTR_OPERATION_POINTWISE_XDESC) != last || !is_virtual(last))
            return "a broken chain";
        if (!is_bias(added) && (g->bias || g->residual))
            return "a residual after the bias: only engines compiled at run time";
        if (is_bias(added)) g->bias = added;
        else g->residual = added;
        last = part(operations[next], CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
    }
    if (next < a->count && is_operation(operations[next], CUDNN_POINTWISE_RELU_FWD)) {
        if (part(operations[next], CUDNN_ATTR_OPERATION_POINTWISE_XDESC) != last || !is_virtual(last))
            return "a broken chain";
        last = part(operations[next++], CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
        g->relu = 1;
    }
    g->y = last;
    if (next != a->count || !g->bias || is_virtual(g->y)) return "a graph of other operations";
    return NULL;
}

static int64_t dim(const descriptor *tensor, int i) { return integer(tensor, CUDNN_ATTR_TENSOR_DIMENSIONS, i); }

static const char *check_tensor(const descriptor *t) {
    int64_t c = dim(t, 1), h = dim(t, 2), w = dim(t, 3), expected[4] = {c * h * w, 1, w * c, c};
    for (int i = 0; i < 4; i++)
        if (integer(t, CUDNN_ATTR_TENSOR_STRIDES, i) != expected[i] || dim(t, i) < 1)
            return "a tensor that is not NHWC";
    return NULL;
}

/* Checks the shapes, strides and types of all tensors. */
static const char *check_graph(const graph *g) {
    const descriptor *tensors[] = {g->x, g->w, g->y, g->bias, g->residual};
    int type = number(g->x, CUDNN_ATTR_TENSOR_DATA_TYPE);
    for (int i = 0; i < 5; i++)
        if (tensors[i] && check_tensor(tensors[i])) return check_tensor(tensors[i]);
    for (int i = 0; i < 2; i++) {
        int64_t before = integer(g->geometry, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, i);
        int64_t after = integer(g->geometry, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, i);
        int64_t stride = integer(g->geometry, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, i);
        if (dim(g->y, 2 + i) != (dim(g->x, 2 + i) + before + after - dim(g->w, 2 + i)) / stride + 1)
            return "a wrong output size";
    }
    if (number(g->geometry, CUDNN_ATTR_CONVOLUTION_COMP_TYPE) != CUDNN_DATA_FLOAT) return "sums that are not float32";
    for (int i = 1; i < 5; i++)
        if (tensors[i] && number(tensors[i], CUDNN_ATTR_TENSOR_DATA_TYPE) != type)
            return "mixed types: only engines compiled at run time";
    if (dim(g->x, 1) != dim(g->w, 1) || dim(g->w, 0) != dim(g->y, 1) || dim(g->bias, 1) != dim(g->y, 1) ||
        dim(g->x, 0) != dim(g->y, 0))
        return "shapes that do not fit";
    for (int i = 0; g->residual && i < 4; i++)
        if (dim(g->residual, i) != dim(g->y, i)) return "a residual of another shape";
    return NULL;
}

EXPORT cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t given) {
    descriptor *d = given;
    const char *wrong = NULL;
    graph g;
    MAY_FAIL();
    if (d->type == CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR) {
        if (!find(d, CUDNN_ATTR_OPERATIONGRAPH_HANDLE)) return refuse("a graph without a handle");
        wrong = read_graph(&g, d);
        if (!wrong) wrong = check_graph(&g);
    }
    if (d->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
        const descriptor *configuration = part(d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
        if (configuration->engine == 3) wrong = "an engine that does not serve this shape";
    }
    if (wrong) return refuse(wrong);
    d->finished = 1;
    return CUDNN_STATUS_SUCCESS;
}

/* ---- engines: 0 is not deterministic, 1 is compiled at run time, 2 uses tensor cores, 3 refuses, 4 suits
 * everything ---- */

enum { ENGINES = 5 };

static cudnnStatus_t get_engine(const descriptor *d, int name, int64_t *count, int *notes) {
    *count = 0;
    if (name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE) {
        notes[(*count)++] = CUDNN_NUMERICAL_NOTE_TENSOR_CORE;
        if (d->engine == 0) notes[(*count)++] = CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
        if (d->engine == 2) notes[(*count)++] = CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS;
        if (d->engine == 4) *count = 0;
    } else if (d->engine == 1) {
        notes[(*count)++] = CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION;
    }
    return CUDNN_STATUS_SUCCESS;
}

/* Mode A proposes all engines but the last, which the fallback adds. */
static cudnnStatus_t get_results(const descriptor *heuristics, int64_t asked, int64_t *count,
                                 descriptor **configurations) {
    int fallback = number(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE) == CUDNN_HEUR_MODE_FALLBACK;
    *count = fallback ? 1 : ENGINES - 1;
    for (int64_t i = 0; i < *count && i < asked; i++) {
        const descriptor *g = part(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
        configurations[i]->engine = fallback ? ENGINES - 1 : (int)i;
        cudnnBackendSetAttribute(configurations[i], CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
                                 CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &g);
        configurations[i]->finished = 1;
    }
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t given, int name, int type, int64_t asked,
                                              int64_t *count, void *to) {
    descriptor *d = given;
    (void)type;
    MAY_FAIL();
    if (name == CUDNN_ATTR_ENGINEHEUR_RESULTS) return get_results(d, asked, count, to);
    if (name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE || name == CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE)
        return get_engine(d, name, count, to);
    *count = 1;
    if (name == CUDNN_ATTR_ENGINECFG_ENGINE) (*(descriptor **)to)->engine = d->engine;
    else if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) *(int64_t *)to = WORKSPACE;
    else return refuse("an attribute that nobody should ask for");
    return CUDNN_STATUS_SUCCESS;
}

/* ---- computing ---- */

typedef struct {
    int64_t n, h, w, in, out, oh, ow, kernel, stride, before;
    sid_dtype dtype;
    int relu;
    const void *x, *weights, *bias, *residual;
    void *y;
} convolution;

static float *floats_of(const void *data, sid_dtype dtype, int64_t count) {
    float *floats = malloc((size_t)count * sizeof *floats);
    for (int64_t i = 0; i < count; i++) floats[i] = sid_load(data, dtype, (size_t)i);
    return floats;
}

static float dot(const float *a, const float *b, int64_t count) {
    float sums[16] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int lane = 0; lane < 16; lane++) sums[lane] += a[i + lane] * b[i + lane];
    for (; i < count; i++) sum += a[i] * b[i];
    for (int lane = 0; lane < 16; lane++) sum += sums[lane];
    return sum;
}

static float at(const convolution *t, const float *x, const float *w, int64_t top, int64_t left) {
    float sum = 0;
    for (int64_t ky = 0; ky < t->kernel; ky++)
        for (int64_t kx = 0; kx < t->kernel; kx++) {
            int64_t row = top + ky, column = left + kx;
            if (row < 0 || row >= t->h || column < 0 || column >= t->w) continue;
            sum += dot(x + (row * t->w + column) * t->in, w + (ky * t->kernel + kx) * t->in, t->in);
        }
    return sum;
}

static void run_convolution(void *arguments) {
    const convolution *t = arguments;
    int64_t taps = t->kernel * t->kernel, image = t->h * t->w * t->in;
    float *x = floats_of(t->x, t->dtype, t->n * image), *w = floats_of(t->weights, t->dtype, t->out * taps * t->in);
    for (int64_t pixel = 0; pixel < t->n * t->oh * t->ow; pixel++) {
        int64_t sample = pixel / (t->oh * t->ow), row = pixel / t->ow % t->oh, column = pixel % t->ow;
        for (int64_t o = 0; o < t->out; o++) {
            size_t i = (size_t)(pixel * t->out + o);
            float sum = at(t, x + sample * image, w + o * taps * t->in, row * t->stride - t->before,
                           column * t->stride - t->before);
            if (t->residual) sum += sid_load(t->residual, t->dtype, i);
            sum += sid_load(t->bias, t->dtype, (size_t)o);
            sid_store(t->y, t->dtype, i, t->relu && sum < 0 ? 0 : sum);
        }
    }
    free(x);
    free(w);
}

static sid_dtype dtype_of(const descriptor *tensor) {
    int type = number(tensor, CUDNN_ATTR_TENSOR_DATA_TYPE);
    return type == CUDNN_DATA_FLOAT ? SID_F32 : type == CUDNN_DATA_BFLOAT16 ? SID_BF16 : SID_F16;
}

/* Returns the pointer of a tensor in a variant pack. */
static void *pointer(const descriptor *pack, const descriptor *tensor) {
    const attribute *ids = find(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    int64_t id = integer(tensor, CUDNN_ATTR_TENSOR_UNIQUE_ID, 0),
            alignment = integer(tensor, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, 0);
    size_t size =
        sid_dtype_size(dtype_of(tensor)) * (size_t)(dim(tensor, 0) * dim(tensor, 1) * dim(tensor, 2) * dim(tensor, 3));
    for (int64_t i = 0; i < ids->count; i++) {
        if (((const int64_t *)ids->values)[i] != id) continue;
        void *data = ((void *const *)values(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS))[i];
        if (!fake_is_device(data, size)) fake_refuse("cuDNN: tensor %ld is not memory of the device", (long)id);
        if ((uintptr_t)data % (uintptr_t)alignment)
            fake_refuse("cuDNN: tensor %ld is less aligned than it says", (long)id);
        return data;
    }
    fake_refuse("cuDNN: no pointer for tensor %ld", (long)id);
}

EXPORT cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                         cudnnBackendDescriptor_t pack) {
    const descriptor *configuration = part(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    graph g;
    MAY_FAIL();
    if (read_graph(&g, part(configuration, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH))) return refuse("a broken plan");
    if (!fake_is_device(*(void *const *)values(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE), WORKSPACE))
        fake_refuse("cuDNN: the workspace is too small");
    convolution t = {dim(g.x, 0),
                     dim(g.x, 2),
                     dim(g.x, 3),
                     dim(g.x, 1),
                     dim(g.y, 1),
                     dim(g.y, 2),
                     dim(g.y, 3),
                     dim(g.w, 2),
                     integer(g.geometry, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, 0),
                     integer(g.geometry, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, 0),
                     dtype_of(g.x),
                     g.relu,
                     pointer(pack, g.x),
                     pointer(pack, g.w),
                     pointer(pack, g.bias),
                     g.residual ? pointer(pack, g.residual) : NULL,
                     pointer(pack, g.y)};
    if (t.residual == t.y) fake_refuse("cuDNN: the result lies where the residual does");
    return fake_enqueue(handle->stream, run_convolution, &t, sizeof t) ? CUDNN_STATUS_EXECUTION_FAILED
                                                                       : CUDNN_STATUS_SUCCESS;
}
