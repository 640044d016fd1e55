/* Matrix products by cuBLASLt: rows of tokens times weights (out, in). cuBLASLt stores matrices by columns, so there
 * this is D (out x rows) = W^T (in x out, transposed) X (in x rows). */
#include <stdlib.h>

#include "core/err.h"
#include "cuda/ops.h"
#include "cuda/planned.h"

#define MOST_WORKSPACE ((size_t)32 << 20)
#define WHOLE_ALIGNMENT 16

typedef struct {
    sid_linear base;
    sid_cuda *cuda;
    void *weights;
    void *bias[SID_DTYPE_COUNT]; /* indexed by the product's dtype; NULL if there is none */
    sid_planned *plans;
} cuda_linear;

typedef struct {
    size_t rows, x_stride, d_stride, c_stride; /* c_stride is 0 where nothing is added */
    size_t x_alignment, d_alignment, c_alignment;
    size_t d_dtype;
} product_key;

typedef struct {
    sid_planned base;
    product_key key;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, x, c, d;
    cublasLtMatmulHeuristicResult_t choice;
} product_plan;

static int check(const sid_cuda *cuda, cublasStatus_t status, const char *what) {
    if (status == CUBLAS_STATUS_SUCCESS) return SID_OK;
    return sid_fail(status == CUBLAS_STATUS_ALLOC_FAILED ? SID_EMEMORY : SID_EINTERNAL, "%s: cuBLASLt: %s: %s",
                    cuda->name, what, cuda->nv->cublasLtGetStatusString(status));
}
#define SID_LT(cuda, call) SID_TRY(check(cuda, (cuda)->nv->call, #call))

/* ---- plans ---- */

static int number_type(size_t dtype) {
    return dtype == SID_F32 ? CUDA_R_32F : dtype == SID_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

static int open_product(sid_cuda *cuda, const cuda_linear *l, product_plan *p) {
    const int transposed = CUBLAS_OP_T, epilogue = CUBLASLT_EPILOGUE_BIAS, type = number_type(p->key.d_dtype);
    const void *bias = l->bias[p->key.d_dtype];
    SID_LT(cuda, cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    SID_LT(cuda,
           cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    if (!bias) return SID_OK;
    SID_LT(cuda, cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    SID_LT(cuda, cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type));
    SID_LT(cuda, cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    return SID_OK;
}

static int open_layouts(sid_cuda *cuda, const cuda_linear *l, product_plan *p) {
    const product_key *k = &p->key;
    size_t in = l->base.shape.in, out = l->base.shape.out;
    int type = number_type(cuda->base.dtype), d_type = number_type(k->d_dtype);
    SID_LT(cuda, cublasLtMatrixLayoutCreate(&p->w, type, in, out, (int64_t)in));
    SID_LT(cuda, cublasLtMatrixLayoutCreate(&p->x, type, in, k->rows, (int64_t)k->x_stride));
    SID_LT(cuda, cublasLtMatrixLayoutCreate(&p->d, d_type, out, k->rows, (int64_t)k->d_stride));
    SID_LT(cuda,
           cublasLtMatrixLayoutCreate(&p->c, d_type, out, k->rows, (int64_t)(k->c_stride ? k->c_stride : k->d_stride)));
    return SID_OK;
}

/* A run may meet matrices that are less aligned than the measured ones; they get no workspace, so that what was
 * measured is enough. */
static int set_preferences(sid_cuda *cuda, const product_key *k, size_t w_alignment,
                           cublasLtMatmulPreference_t preference) {
    static const int names[] = {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                                CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    size_t c_alignment = k->c_stride ? k->c_alignment : k->d_alignment;
    size_t alignments[] = {w_alignment, k->x_alignment, c_alignment, k->d_alignment}, workspace = MOST_WORKSPACE;
    for (size_t i = 0; i < 4; i++) {
        uint32_t bytes = (uint32_t)alignments[i];
        if (i && bytes < WHOLE_ALIGNMENT) workspace = 0;
        SID_LT(cuda, cublasLtMatmulPreferenceSetAttribute(preference, names[i], &bytes, sizeof bytes));
    }
    SID_LT(cuda, cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                      sizeof workspace));
    return SID_OK;
}

/* Returns the largest power of two, up to 16, that divides the number. */
static size_t alignment_of(size_t number) {
    size_t bits = number | WHOLE_ALIGNMENT;
    return bits & -bits;
}

static int choose(sid_cuda *cuda, const cuda_linear *l, product_plan *p) {
    cublasLtMatmulPreference_t preference;
    int count = 0;
    SID_LT(cuda, cublasLtMatmulPreferenceCreate(&preference));
    int status =
        set_preferences(cuda, &p->key, alignment_of(l->base.shape.in * sid_dtype_size(cuda->base.dtype)), preference);
    if (status == SID_OK)
        status = check(cuda,
                       cuda->nv->cublasLtMatmulAlgoGetHeuristic(cuda->blas, p->product, p->w, p->x, p->c, p->d,
                                                                preference, 1, &p->choice, &count),
                       "cublasLtMatmulAlgoGetHeuristic");
    cuda->nv->cublasLtMatmulPreferenceDestroy(preference);
    SID_TRY(status);
    return count ? SID_OK
                 : sid_fail(SID_EINTERNAL, "%s: cuBLASLt has no algorithm for the %s product (%zu, %zu) x (%zu, %zu)",
                            cuda->name, sid_dtype_name(cuda->base.dtype), p->key.rows, l->base.shape.in,
                            l->base.shape.in, l->base.shape.out);
}

static int open_plan(sid_cuda *cuda, const void *layer, sid_planned *planned) {
    const cuda_linear *l = layer;
    product_plan *p = (product_plan *)planned;
    SID_TRY(open_product(cuda, l, p));
    SID_TRY(open_layouts(cuda, l, p));
    return choose(cuda, l, p);
}

static void close_plan(sid_cuda *cuda, sid_planned *planned) {
    product_plan *p = (product_plan *)planned;
    cublasLtMatrixLayout_t layouts[] = {p->w, p->x, p->c, p->d};
    for (size_t i = 0; i < 4; i++)
        if (layouts[i]) cuda->nv->cublasLtMatrixLayoutDestroy(layouts[i]);
    if (p->product) cuda->nv->cublasLtMatmulDescDestroy(p->product);
}

static const sid_planned_kind kind = {sizeof(product_plan), sizeof(product_key), open_plan, close_plan};

/* ---- the layer ---- */

static int open_parts(cuda_linear *l, size_t parts, const sid_weight *const *weights, const sid_weight *const *biases) {
    sid_cuda *cuda = l->cuda;
    sid_dtype dtype = cuda->base.dtype;
    SID_TRY(sid_cuda_stack(cuda, &l->weights, dtype, parts, weights));
    cuda->base.packed_bytes += l->base.shape.in * l->base.shape.out * sid_dtype_size(dtype);
    if (!biases) return SID_OK;
    SID_TRY(sid_cuda_stack(cuda, &l->bias[SID_F32], SID_F32, parts, biases));
    return dtype == SID_F32 ? SID_OK : sid_cuda_stack(cuda, &l->bias[dtype], dtype, parts, biases);
}

int sid_cuda_linear_open(sid_backend *backend, sid_linear **linear, const sid_linear_shape *shape, size_t parts,
                         const sid_weight *const *weights, const sid_weight *const *biases) {
    cuda_linear *l = calloc(1, sizeof *l);
    *linear = (sid_linear *)l;
    if (!l) return sid_fail(SID_EMEMORY, "out of memory");
    l->base.shape = *shape;
    l->cuda = (sid_cuda *)backend;
    return open_parts(l, parts, weights, biases);
}

void sid_cuda_linear_close(sid_linear **linear) {
    cuda_linear *l = (cuda_linear *)*linear;
    if (!l) return;
    sid_planned_close(l->cuda, &l->plans, &kind);
    sid_cuda_give(&l->cuda->base.memory, l->weights);
    for (size_t i = 0; i < SID_DTYPE_COUNT; i++) sid_cuda_give(&l->cuda->base.memory, l->bias[i]);
    free(l);
    *linear = NULL;
}

/* ---- running ---- */

/* One product, and its identity in a recording. */
typedef struct {
    uint64_t serial;
    const void *x, *c;
    void *d, *workspace;
} product_identity;

typedef struct {
    const cuda_linear *linear;
    const product_plan *plan;
    product_identity identity;
} product_call;

static int multiply(sid_exec *exec, const void *arguments) {
    const product_call *call = arguments;
    const product_plan *p = call->plan;
    const product_identity *at = &call->identity;
    const sid_cuda *cuda = sid_cuda_of(exec);
    const float one = 1, beta = p->key.c_stride ? 1 : 0;
    SID_LT(cuda, cublasLtMatmul(cuda->blas, p->product, &one, call->linear->weights, p->w, at->x, p->x, &beta,
                                at->c ? at->c : at->d, p->c, at->d, p->d, &p->choice.algo, at->workspace,
                                p->choice.workspaceSize, cuda->stream));
    return SID_OK;
}

static size_t tensor_alignment(const sid_tensor *t) {
    return alignment_of((uintptr_t)t->data | t->stride * sid_dtype_size(t->dtype));
}

/* Computes dst = src weights + bias + residual. */
static int product(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, cuda_linear *l, const sid_tensor *residual) {
    product_key key = {.rows = sid_rows(src),
                       .x_stride = src->stride,
                       .d_stride = dst->stride,
                       .c_stride = residual ? residual->stride : 0,
                       .x_alignment = tensor_alignment(src),
                       .d_alignment = tensor_alignment(dst),
                       .c_alignment = residual ? tensor_alignment(residual) : 0,
                       .d_dtype = dst->dtype};
    size_t mark = sid_arena_mark(&exec->arena);
    sid_planned *planned;
    product_call call = {.linear = l};
    SID_TRY(sid_planned_find(l->cuda, &l->plans, &kind, &key, l, &planned));
    call.plan = (const product_plan *)planned;
    call.identity = (product_identity){planned->serial, src->data, residual ? residual->data : NULL, dst->data, NULL};
    if (call.plan->choice.workspaceSize)
        SID_TRY(sid_arena_take(&exec->arena, &call.identity.workspace, call.plan->choice.workspaceSize));
    SID_TRY(sid_record_call(exec, &(sid_library_call){multiply, &call, &call.identity, sizeof call.identity}));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

int sid_cuda_linear(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_linear *linear, const sid_post *post) {
    cuda_linear *l = (cuda_linear *)linear;
    const sid_tensor *residual = post->residual;
    if (!post->activation && !post->factor && (!residual || residual->dtype == dst->dtype))
        return product(exec, dst, src, l, residual);
    /* The product is made in float32, so that 16-bit results are rounded once. */
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor made;
    SID_TRY(sid_arena_tensor(&exec->arena, &made, SID_F32, dst->n, dst->h, dst->w, dst->c));
    SID_TRY(product(exec, &made, src, l, NULL));
    SID_TRY(sid_cuda_finish(exec, dst, &made, post));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}
