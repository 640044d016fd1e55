#include "cuda/plan.h"

#include <stdbool.h>

#include "core/err.h"

#define MOST_WORKSPACE ((int64_t)256 << 20)
#define MOST_DESCRIPTORS 128
#define MOST_CONFIGURATIONS 64
#define MOST_NOTES 32

/* The tensors of a graph; the last three are virtual, intermediate results. */
enum { ID_X = 1, ID_W, ID_BIAS, ID_RESIDUAL, ID_Y, ID_PRODUCT, ID_SUM, ID_BIASED };

/* All descriptors that are made on the way to a plan, to be destroyed afterwards. */
typedef struct {
    const sid_planner *planner;
    const sid_plan_shape *shape;
    cudnnBackendDescriptor_t made[MOST_DESCRIPTORS];
    size_t count;
} workshop;

static int check(const sid_nvidia *nv, cudnnStatus_t status, const char *what) {
    char words[256] = "";
    if (status == CUDNN_STATUS_SUCCESS) return SID_OK;
    nv->cudnnGetLastErrorString(words, sizeof words);
    return sid_fail(status == CUDNN_STATUS_ALLOC_FAILED ? SID_EMEMORY : SID_EINTERNAL, "cuDNN: %s: %s: %.200s", what,
                    nv->cudnnGetErrorString(status), words);
}

static int create(workshop *shop, cudnnBackendDescriptor_t *descriptor, int type) {
    const sid_nvidia *nv = shop->planner->nv;
    *descriptor = NULL;
    if (shop->count == MOST_DESCRIPTORS) return sid_fail(SID_EINTERNAL, "cuDNN: too many descriptors");
    SID_TRY(check(nv, nv->cudnnBackendCreateDescriptor(type, descriptor), "a descriptor"));
    shop->made[shop->count++] = *descriptor;
    return SID_OK;
}

/* Destroys the descriptors that were made since there were `count`. */
static void destroy_after(workshop *shop, size_t count) {
    for (; shop->count > count; shop->count--)
        shop->planner->nv->cudnnBackendDestroyDescriptor(shop->made[shop->count - 1]);
}

/* An attribute of a descriptor that is being made. */
typedef struct {
    int name, type;
    int64_t count;
    const void *values;
} attribute;

static int set_all(const sid_planner *planner, cudnnBackendDescriptor_t descriptor, const attribute *attributes,
                   size_t count) {
    const sid_nvidia *nv = planner->nv;
    for (size_t i = 0; i < count; i++) {
        const attribute *a = &attributes[i];
        SID_TRY(check(nv, nv->cudnnBackendSetAttribute(descriptor, a->name, a->type, a->count, a->values),
                      "an attribute"));
    }
    return check(nv, nv->cudnnBackendFinalize(descriptor), "a descriptor");
}

/* Makes and finishes a descriptor with the attributes of the array. */
#define MAKE(shop, descriptor, type, attributes)                                                                 \
    do {                                                                                                         \
        SID_TRY(create(shop, descriptor, type));                                                                 \
        SID_TRY(set_all((shop)->planner, *(descriptor), attributes, sizeof(attributes) / sizeof *(attributes))); \
    } while (0)

static int data_type(sid_dtype dtype) {
    return dtype == SID_F32 ? CUDNN_DATA_FLOAT : dtype == SID_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF;
}

/* Makes a tensor whose dimensions are in cuDNN's order (n, c, h, w) and which is stored as (n, h, w, c). */
static int make_tensor(workshop *shop, cudnnBackendDescriptor_t *tensor, int64_t id, int type, const int64_t dims[4]) {
    int64_t strides[4] = {dims[1] * dims[2] * dims[3], 1, dims[3] * dims[1], dims[1]};
    int64_t alignment = id == ID_W || id == ID_BIAS || id > ID_Y ? 16 : shop->shape->alignment;
    bool is_virtual = id > ID_Y;
    const attribute attributes[] = {
        {CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type},
        {CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims},
        {CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides},
        {CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id},
        {CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment},
        {CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual},
    };
    MAKE(shop, tensor, CUDNN_BACKEND_TENSOR_DESCRIPTOR, attributes);
    return SID_OK;
}

static int make_outcome(workshop *shop, cudnnBackendDescriptor_t *tensor, int64_t id) {
    const sid_plan_shape *s = shop->shape;
    const int64_t dims[4] = {s->n, s->out, s->oh, s->ow};
    return make_tensor(shop, tensor, id, id > ID_Y ? CUDNN_DATA_FLOAT : data_type(s->dtype), dims);
}

static int make_geometry(workshop *shop, cudnnBackendDescriptor_t *geometry) {
    const sid_plan_shape *s = shop->shape;
    const int64_t two = 2, before[2] = {s->before, s->before}, after[2] = {s->after, s->after};
    const int64_t strides[2] = {s->stride, s->stride}, dilations[2] = {1, 1};
    const int compute = CUDNN_DATA_FLOAT, mode = CUDNN_CROSS_CORRELATION;
    const attribute attributes[] = {
        {CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute},
        {CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode},
        {CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &two},
        {CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, before},
        {CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, after},
        {CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, strides},
        {CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilations},
    };
    MAKE(shop, geometry, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, attributes);
    return SID_OK;
}

static int make_convolution(workshop *shop, cudnnBackendDescriptor_t *operation, cudnnBackendDescriptor_t *product) {
    const sid_plan_shape *s = shop->shape;
    const int64_t x_dims[4] = {s->n, s->in, s->h, s->w}, w_dims[4] = {s->out, s->in, s->kernel, s->kernel};
    const double one = 1, zero = 0;
    cudnnBackendDescriptor_t x, w, geometry;
    SID_TRY(make_tensor(shop, &x, ID_X, data_type(s->dtype), x_dims));
    SID_TRY(make_tensor(shop, &w, ID_W, data_type(s->dtype), w_dims));
    SID_TRY(make_outcome(shop, product, ID_PRODUCT));
    SID_TRY(make_geometry(shop, &geometry));
    const attribute attributes[] = {
        {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &geometry},
        {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &x},
        {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &w},
        {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, product},
        {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_DOUBLE, 1, &one},
        {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_DOUBLE, 1, &zero},
    };
    MAKE(shop, operation, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR, attributes);
    return SID_OK;
}

/* Makes the operation y = x + b, or, where there is no b, y = the positive part of x. */
static int make_pointwise(workshop *shop, cudnnBackendDescriptor_t *operation, cudnnBackendDescriptor_t x,
                          cudnnBackendDescriptor_t b, cudnnBackendDescriptor_t y) {
    const int mode = b ? CUDNN_POINTWISE_ADD : CUDNN_POINTWISE_RELU_FWD, precision = CUDNN_DATA_FLOAT;
    const attribute kind[] = {{CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode},
                              {CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &precision}};
    cudnnBackendDescriptor_t pointwise;
    MAKE(shop, &pointwise, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, kind);
    const attribute attributes[] = {
        {CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &pointwise},
        {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &x},
        {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &y},
        {CUDNN_ATTR_OPERATION_POINTWISE_BDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &b},
    };
    SID_TRY(create(shop, operation, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR));
    return set_all(shop->planner, *operation, attributes, b ? 4 : 3);
}

/* Makes the graph convolution -> + residual -> + bias -> relu. In this order cuDNN has precompiled engines. */
static int make_graph(workshop *shop, cudnnBackendDescriptor_t *graph) {
    const sid_plan_shape *s = shop->shape;
    const int64_t bias_dims[4] = {1, s->out, 1, 1};
    cudnnBackendDescriptor_t operations[4], product, residual, sum, bias, biased, y;
    int64_t count = 0;
    SID_TRY(make_convolution(shop, &operations[count++], &product));
    sum = product;
    if (s->residual) {
        SID_TRY(make_outcome(shop, &residual, ID_RESIDUAL));
        SID_TRY(make_outcome(shop, &sum, ID_SUM));
        SID_TRY(make_pointwise(shop, &operations[count++], product, residual, sum));
    }
    SID_TRY(make_tensor(shop, &bias, ID_BIAS, data_type(s->dtype), bias_dims));
    SID_TRY(make_outcome(shop, &y, ID_Y));
    biased = y;
    if (s->relu) SID_TRY(make_outcome(shop, &biased, ID_BIASED));
    SID_TRY(make_pointwise(shop, &operations[count++], sum, bias, biased));
    if (s->relu) SID_TRY(make_pointwise(shop, &operations[count++], biased, NULL, y));
    const attribute attributes[] = {
        {CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count, operations},
        {CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &shop->planner->handle},
    };
    SID_TRY(create(shop, graph, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR));
    return set_all(shop->planner, *graph, attributes, shop->planner->handle ? 2 : 1);
}

/* Whether an engine has one of the notes that exclude it. */
static int is_excluded(const workshop *shop, cudnnBackendDescriptor_t engine) {
    const sid_nvidia *nv = shop->planner->nv;
    int numerical[MOST_NOTES], behavior[MOST_NOTES];
    int64_t numerical_count = 0, behavior_count = 0;
    if (nv->cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, MOST_NOTES,
                                     &numerical_count, numerical) ||
        nv->cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE, MOST_NOTES,
                                     &behavior_count, behavior))
        return 1;
    for (int64_t i = 0; i < numerical_count; i++) {
        if (numerical[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) return 1;
        if (shop->shape->dtype == SID_F32 && (numerical[i] == CUDNN_NUMERICAL_NOTE_TENSOR_CORE ||
                                              numerical[i] == CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS))
            return 1;
    }
    for (int64_t i = 0; i < behavior_count; i++)
        if (behavior[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) return 1;
    return 0;
}

/* Makes the plan of one configuration, which stays NULL if it is excluded, cannot be finished or needs too much
 * memory. */
static int try_configuration(workshop *shop, sid_plan *plan, cudnnBackendDescriptor_t configuration) {
    const sid_planner *planner = shop->planner;
    const sid_nvidia *nv = planner->nv;
    cudnnBackendDescriptor_t engine, candidate;
    int64_t count, workspace = 0;
    SID_TRY(create(shop, &engine, CUDNN_BACKEND_ENGINE_DESCRIPTOR));
    if (nv->cudnnBackendGetAttribute(configuration, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                     &count, &engine) ||
        is_excluded(shop, engine))
        return SID_OK;
    const attribute attributes[] = {
        {CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &configuration},
        planner->properties
            ? (attribute){CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &planner->properties}
            : (attribute){CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &planner->handle},
    };
    if (nv->cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &candidate)) return SID_OK;
    if (set_all(planner, candidate, attributes, 2) == SID_OK &&
        !nv->cudnnBackendGetAttribute(candidate, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count,
                                      &workspace) &&
        workspace <= MOST_WORKSPACE) {
        plan->plan = candidate;
        plan->workspace = (size_t)workspace;
    } else {
        nv->cudnnBackendDestroyDescriptor(candidate);
    }
    return SID_OK;
}

/* Takes the first good configuration among those that a mode of the heuristics proposes. */
static int try_mode(workshop *shop, sid_plan *plan, cudnnBackendDescriptor_t graph, int mode) {
    const sid_planner *planner = shop->planner;
    cudnnBackendDescriptor_t heuristics, configurations[MOST_CONFIGURATIONS];
    int64_t count = 0;
    const attribute attributes[] = {
        {CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph},
        {CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode},
        {CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &planner->properties},
    };
    SID_TRY(create(shop, &heuristics, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR));
    if (set_all(planner, heuristics, attributes, planner->properties ? 3 : 2) != SID_OK)
        return SID_OK; /* the mode proposes nothing */
    for (int64_t i = 0; i < MOST_CONFIGURATIONS; i++)
        SID_TRY(create(shop, &configurations[i], CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
    if (planner->nv->cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                              MOST_CONFIGURATIONS, &count, configurations))
        return SID_OK;
    for (int64_t i = 0; i < count && i < MOST_CONFIGURATIONS && !plan->plan; i++) {
        size_t mark = shop->count;
        SID_TRY(try_configuration(shop, plan, configurations[i]));
        destroy_after(shop, mark);
    }
    return SID_OK;
}

static int make(workshop *shop, sid_plan *plan) {
    static const int modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
    const sid_plan_shape *s = shop->shape;
    cudnnBackendDescriptor_t graph;
    SID_TRY(make_graph(shop, &graph));
    for (size_t i = 0; i < 2 && !plan->plan; i++) {
        size_t mark = shop->count;
        SID_TRY(try_mode(shop, plan, graph, modes[i]));
        destroy_after(shop, mark);
    }
    if (plan->plan) return SID_OK;
    return sid_fail(SID_EINTERNAL,
                    "cuDNN has no engine for the %s convolution (%lld, %lld, %lld, %lld) -> %lld channels, kernel "
                    "%lld, stride %lld",
                    sid_dtype_name(s->dtype), (long long)s->n, (long long)s->h, (long long)s->w, (long long)s->in,
                    (long long)s->out, (long long)s->kernel, (long long)s->stride);
}

int sid_plan_open(const sid_planner *planner, sid_plan *plan, const sid_plan_shape *shape) {
    workshop shop = {.planner = planner, .shape = shape};
    *plan = (sid_plan){.shape = *shape};
    int status = make(&shop, plan);
    destroy_after(&shop, 0);
    return status;
}

void sid_plan_close(const sid_planner *planner, sid_plan *plan) {
    if (plan->plan) planner->nv->cudnnBackendDestroyDescriptor(plan->plan);
    *plan = (sid_plan){0};
}

int sid_plan_run(const sid_planner *planner, const sid_plan *plan, const sid_plan_pointers *p) {
    const sid_nvidia *nv = planner->nv;
    const int64_t ids[] = {ID_X, ID_W, ID_BIAS, ID_Y, ID_RESIDUAL};
    const void *pointers[] = {p->x, p->w, p->bias, p->y, p->residual};
    int64_t count = plan->shape.residual ? 5 : 4;
    workshop shop = {.planner = planner, .shape = &plan->shape};
    cudnnBackendDescriptor_t pack;
    const attribute attributes[] = {
        {CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids},
        {CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, pointers},
        {CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &p->workspace},
    };
    int status = create(&shop, &pack, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    if (status == SID_OK) status = set_all(planner, pack, attributes, 3);
    if (status == SID_OK)
        status = check(nv, nv->cudnnBackendExecute(planner->handle, plan->plan, pack), "a convolution");
    destroy_after(&shop, 0);
    return status;
}
