/* Convolutions by cuDNN, and by an own kernel if they have few outputs or outputs of another dtype. */
#include <stdlib.h>

#include "core/err.h"
#include "cuda/kernels/params.h"
#include "cuda/ops.h"
#include "cuda/plan.h"
#include "cuda/planned.h"

#define WHOLE_ALIGNMENT 16

/* A convolution of a doubled input is one 2x2 convolution of the input itself, whose four groups of channels are the
 * parities of the outputs' row and column, and a kernel that spreads them. That takes 4/9 of the multiplications and
 * no doubled input. */
typedef struct {
    sid_conv base;
    sid_cuda *cuda;
    void *weights;
    float *bias; /* [out]; NULL if there is none */
    void *added; /* what cuDNN adds, in the backend's dtype: the bias, or zeros */
    sid_planned *plans;
} cuda_conv;

typedef struct {
    sid_planned base;
    sid_plan_shape key;
    sid_plan plan;
} conv_plan;

static int has_few(const sid_conv_shape *s) { return s->out <= SID_CU_CONV_OUTPUTS && !s->upsample; }

static sid_planner planner_of(const sid_cuda *cuda) { return (sid_planner){.nv = cuda->nv, .handle = cuda->dnn}; }

static int open_plan(sid_cuda *cuda, const void *layer, sid_planned *planned) {
    conv_plan *p = (conv_plan *)planned;
    sid_planner planner = planner_of(cuda);
    (void)layer;
    return sid_plan_open(&planner, &p->plan, &p->key);
}

static void close_plan(sid_cuda *cuda, sid_planned *planned) {
    sid_planner planner = planner_of(cuda);
    sid_plan_close(&planner, &((conv_plan *)planned)->plan);
}

static const sid_planned_kind kind = {sizeof(conv_plan), sizeof(sid_plan_shape), open_plan, close_plan};

/* ---- the layer ---- */

static int open_zeros(cuda_conv *c, size_t count) {
    sid_cuda *cuda = c->cuda;
    sid_exec exec = {.backend = &cuda->base};
    size_t size = count * sid_dtype_size(cuda->base.dtype);
    SID_TRY(sid_cuda_take(&cuda->base.memory, &c->added, size, "a bias"));
    return sid_cuda_zero(&exec, c->added, size);
}

static int open_parts(cuda_conv *c, const sid_weight *weight, const sid_weight *bias) {
    sid_cuda *cuda = c->cuda;
    const sid_conv_shape *s = &c->base.shape;
    size_t taps = s->upsample ? 4 * 4 : s->kernel * s->kernel;
    SID_TRY(sid_cuda_pack_conv(cuda, &c->weights, s, weight));
    cuda->base.packed_bytes += s->out * s->in * taps * sid_dtype_size(cuda->base.dtype);
    if (bias) {
        void *floats;
        SID_TRY(sid_cuda_stack(cuda, &floats, SID_F32, 1, &bias));
        c->bias = floats;
    }
    if (has_few(s)) return SID_OK;
    if (s->upsample) return open_zeros(c, 4 * s->out); /* its bias is added when the parities are spread */
    return bias ? sid_cuda_stack(cuda, &c->added, cuda->base.dtype, 1, &bias) : open_zeros(c, s->out);
}

int sid_cuda_conv_open(sid_backend *backend, sid_conv **conv, const sid_conv_shape *shape, const sid_weight *weight,
                       const sid_weight *bias) {
    cuda_conv *c = calloc(1, sizeof *c);
    *conv = (sid_conv *)c;
    if (!c) return sid_fail(SID_EMEMORY, "out of memory");
    c->base.shape = *shape;
    c->cuda = (sid_cuda *)backend;
    return open_parts(c, weight, bias);
}

void sid_cuda_conv_close(sid_conv **conv) {
    cuda_conv *c = (cuda_conv *)*conv;
    if (!c) return;
    sid_memory *memory = &c->cuda->base.memory;
    sid_planned_close(c->cuda, &c->plans, &kind);
    sid_cuda_give(memory, c->weights);
    sid_cuda_give(memory, c->bias);
    sid_cuda_give(memory, c->added);
    free(c);
    *conv = NULL;
}

/* ---- running ---- */

typedef struct {
    uint64_t serial;
    sid_plan_pointers pointers;
} conv_identity;

typedef struct {
    const sid_plan *plan;
    conv_identity identity;
} conv_call;

static int convolve(sid_exec *exec, const void *arguments) {
    const conv_call *call = arguments;
    sid_planner planner = planner_of(sid_cuda_of(exec));
    return sid_plan_run(&planner, call->plan, &call->identity.pointers);
}

static int run_plan(sid_exec *exec, cuda_conv *c, const sid_plan_shape *key, sid_plan_pointers pointers) {
    size_t mark = sid_arena_mark(&exec->arena);
    sid_planned *planned;
    SID_TRY(sid_planned_find(c->cuda, &c->plans, &kind, key, c, &planned));
    conv_call call = {.plan = &((const conv_plan *)planned)->plan};
    if (call.plan->workspace) SID_TRY(sid_arena_take(&exec->arena, &pointers.workspace, call.plan->workspace));
    call.identity = (conv_identity){planned->serial, pointers};
    SID_TRY(sid_record_call(exec, &(sid_library_call){convolve, &call, &call.identity, sizeof call.identity}));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

/* Returns the number of bytes that the addresses of all samples of a tensor are multiples of. */
static int64_t sample_alignment(const sid_tensor *t) {
    size_t bits = t->h * t->w * t->c * sid_dtype_size(t->dtype) | WHOLE_ALIGNMENT;
    return (int64_t)(bits & -bits);
}

static int run_doubled(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, cuda_conv *c) {
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor parities;
    SID_TRY(sid_arena_tensor(&exec->arena, &parities, src->dtype, src->n, src->h + 1, src->w + 1, 4 * dst->c));
    sid_plan_shape key = {
        .n = (int64_t)src->n,
        .h = (int64_t)src->h,
        .w = (int64_t)src->w,
        .in = (int64_t)src->c,
        .out = (int64_t)parities.c,
        .oh = (int64_t)parities.h,
        .ow = (int64_t)parities.w,
        .kernel = 2,
        .stride = 1,
        .before = 1,
        .after = 1,
        .alignment = sample_alignment(src),
        .dtype = src->dtype,
    };
    SID_TRY(run_plan(exec, c, &key, (sid_plan_pointers){src->data, c->weights, c->added, NULL, parities.data, NULL}));
    SID_TRY(sid_cuda_unfold(exec, dst, parities.data, c->bias));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

/* Replaces a residual by a copy where cuDNN could not add it: it has to have dst's dtype and memory of its own,
 * because cuDNN promises nothing for a residual in dst's memory. */
static int separate(sid_exec *exec, sid_tensor *residual, const sid_tensor *dst) {
    sid_tensor copy;
    /* While the arena measures, both addresses are NULL, so that the copy is counted as well. */
    if (residual->dtype == dst->dtype && residual->data != dst->data) return SID_OK;
    SID_TRY(sid_arena_tensor(&exec->arena, &copy, dst->dtype, dst->n, dst->h, dst->w, dst->c));
    SID_TRY(sid_cuda_combine(exec, &copy, 1, residual, 0, NULL));
    *residual = copy;
    return SID_OK;
}

int sid_cuda_conv(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_conv *conv, const sid_post *post) {
    cuda_conv *c = (cuda_conv *)conv;
    const sid_conv_shape *s = &c->base.shape;
    if (s->upsample) return run_doubled(exec, dst, src, c);
    /* cuDNN has no precompiled engine for 16-bit inputs and float32 outputs, however many channels there are. */
    if (has_few(s) || dst->dtype != src->dtype)
        return sid_cuda_conv_direct(exec, dst, src, s, c->weights, c->bias, post);
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor residual = post->residual ? *post->residual : (sid_tensor){0};
    if (post->residual) SID_TRY(separate(exec, &residual, dst));
    int64_t alignment = sample_alignment(src), of_dst = sample_alignment(dst);
    sid_plan_shape key = {
        .n = (int64_t)src->n,
        .h = (int64_t)src->h,
        .w = (int64_t)src->w,
        .in = (int64_t)s->in,
        .out = (int64_t)s->out,
        .oh = (int64_t)dst->h,
        .ow = (int64_t)dst->w,
        .kernel = (int64_t)s->kernel,
        .stride = (int64_t)s->stride,
        .before = (int64_t)s->pad_before,
        .after = (int64_t)s->pad_after,
        .alignment = alignment < of_dst ? alignment : of_dst,
        .dtype = src->dtype,
        .residual = post->residual != NULL,
        .relu = post->relu != 0,
    };
    SID_TRY(run_plan(exec, c, &key,
                     (sid_plan_pointers){src->data, c->weights, c->added, residual.data, dst->data, NULL}));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}
