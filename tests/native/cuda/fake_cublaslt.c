/* libcublasLt on the host: it computes products from their descriptors, with the checks that the real one leaves to
 * the caller. */
#include "fake.h"

#include <stdlib.h>
#include <string.h>

#include "core/floats.h"

enum { CUBLAS_STATUS_ARCH_MISMATCH = 8, CUBLAS_STATUS_EXECUTION_FAILED = 13, SMALLEST_WORKSPACE = 4096 };

typedef struct {
    int compute, scale, transpose_a, epilogue, bias_type;
    const void *bias;
} product;
typedef struct {
    int type;
    uint64_t rows, columns;
    int64_t stride;
} layout;
typedef struct {
    uint64_t workspace;
    uint32_t alignments[4]; /* of A, B, C, D */
} preference;
typedef struct { /* an algorithm */
    uint64_t rows, columns, depth;
    uint32_t alignments[4];
    uint64_t workspace;
} algorithm;
_Static_assert(sizeof(algorithm) <= sizeof(cublasLtMatmulAlgo_t), "an algorithm has 64 bytes");

struct cublasLtContext {
    int unused;
};

EXPORT size_t cublasLtGetVersion(void) { return (size_t)fake_setting("CUDA", 13) * 10000; }
EXPORT const char *cublasLtGetStatusString(cublasStatus_t status) {
    return status ? "a failure of the fake cuBLASLt" : "success";
}

#define MAY_FAIL()                                \
    do {                                          \
        int failed_with = fake_failure(__func__); \
        if (failed_with) return failed_with;      \
    } while (0)

EXPORT cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    MAY_FAIL();
    *handle = calloc(1, sizeof **handle);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *made, int compute, int scale) {
    MAY_FAIL();
    product *p = *made = calloc(1, sizeof *p);
    *p = (product){.compute = compute, .scale = scale, .epilogue = CUBLASLT_EPILOGUE_DEFAULT, .bias_type = -1};
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t p) {
    free(p);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t given, int attribute, const void *value,
                                                     size_t size) {
    product *p = given;
    void *member = attribute == CUBLASLT_MATMUL_DESC_TRANSA           ? (void *)&p->transpose_a
                   : attribute == CUBLASLT_MATMUL_DESC_EPILOGUE       ? (void *)&p->epilogue
                   : attribute == CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE ? (void *)&p->bias_type
                   : attribute == CUBLASLT_MATMUL_DESC_BIAS_POINTER   ? (void *)&p->bias
                                                                      : NULL;
    if (!member || size != (attribute == CUBLASLT_MATMUL_DESC_BIAS_POINTER ? sizeof(void *) : sizeof(int)))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(member, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *made, int type, uint64_t rows,
                                                 uint64_t columns, int64_t stride) {
    MAY_FAIL();
    layout *l = *made = calloc(1, sizeof *l);
    *l = (layout){type, rows, columns, stride};
    return rows && columns && stride >= (int64_t)rows ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

EXPORT cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    free(l);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *made) {
    preference *p = *made = calloc(1, sizeof *p);
    *p = (preference){0, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    free(p);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t given, int attribute,
                                                           const void *value, size_t size) {
    preference *p = given;
    int matrix = attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && size == sizeof p->workspace)
        memcpy(&p->workspace, value, size);
    else if (matrix >= 0 && matrix < 4 && size == sizeof *p->alignments) memcpy(&p->alignments[matrix], value, size);
    else return CUBLAS_STATUS_INVALID_VALUE;
    return CUBLAS_STATUS_SUCCESS;
}

/* Whether this is D (m x n) = A^T (k x m, transposed) B (k x n) + beta C, with one floating type for A and B, and
 * float32 or the same for C and D. */
static int fits(const product *p, const layout *a, const layout *b, const layout *c, const layout *d) {
    int types = a->type == b->type && c->type == d->type && (d->type == a->type || d->type == CUDA_R_32F) &&
                (a->type == CUDA_R_32F || a->type == CUDA_R_16F || a->type == CUDA_R_16BF);
    int bias = p->epilogue == CUBLASLT_EPILOGUE_DEFAULT ||
               (p->epilogue == CUBLASLT_EPILOGUE_BIAS && p->bias && p->bias_type == d->type);
    return p->compute == CUBLAS_COMPUTE_32F && p->scale == CUDA_R_32F && p->transpose_a == CUBLAS_OP_T && types &&
           bias && a->rows == b->rows && a->columns == d->rows && b->columns == d->columns && c->rows == d->rows &&
           c->columns == d->columns;
}

EXPORT cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t p,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                     cublasLtMatmulPreference_t given, int requested,
                                                     cublasLtMatmulHeuristicResult_t *results, int *count) {
    const preference *wanted = given;
    const layout *of_d = d, *of_a = a;
    (void)handle;
    MAY_FAIL();
    *count = 0;
    if (requested < 1 || !fits(p, a, b, c, d)) return CUBLAS_STATUS_NOT_SUPPORTED;
    algorithm chosen = {
        of_d->rows, of_d->columns, of_a->rows, {0}, wanted->workspace >= SMALLEST_WORKSPACE ? SMALLEST_WORKSPACE : 0};
    memcpy(chosen.alignments, wanted->alignments, sizeof chosen.alignments);
    *results = (cublasLtMatmulHeuristicResult_t){.workspaceSize = chosen.workspace, .state = CUBLAS_STATUS_SUCCESS};
    memcpy(&results->algo, &chosen, sizeof chosen);
    *count = 1;
    return CUBLAS_STATUS_SUCCESS;
}

typedef struct {
    layout a, b, c, d;
    product p;
    float alpha, beta;
    const void *a_data, *b_data, *c_data;
    void *d_data;
} call;

static sid_dtype dtype_of(int type) { return type == CUDA_R_32F ? SID_F32 : type == CUDA_R_16BF ? SID_BF16 : SID_F16; }

/* Returns the columns of a matrix as float32. */
static float *columns_of(const layout *l, const void *data) {
    float *floats = malloc(l->rows * l->columns * sizeof *floats), *next = floats;
    for (uint64_t j = 0; j < l->columns; j++)
        for (uint64_t i = 0; i < l->rows; i++)
            *next++ = sid_load(data, dtype_of(l->type), (size_t)j * (size_t)l->stride + i);
    return floats;
}

static float dot(const float *a, const float *b, uint64_t count) {
    float sums[16] = {0}, sum = 0;
    uint64_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int lane = 0; lane < 16; lane++) sums[lane] += a[i + lane] * b[i + lane];
    for (; i < count; i++) sum += a[i] * b[i];
    for (int lane = 0; lane < 16; lane++) sum += sums[lane];
    return sum;
}

static void run_call(void *arguments) {
    const call *t = arguments;
    float *a = columns_of(&t->a, t->a_data), *b = columns_of(&t->b, t->b_data);
    uint64_t depth = t->a.rows;
    sid_dtype dtype = dtype_of(t->d.type);
    for (uint64_t j = 0; j < t->d.columns; j++)
        for (uint64_t i = 0; i < t->d.rows; i++) {
            float sum = t->alpha * dot(a + i * depth, b + j * depth, depth);
            if (t->beta != 0) sum += t->beta * sid_load(t->c_data, dtype, (size_t)j * (size_t)t->c.stride + i);
            if (t->p.epilogue == CUBLASLT_EPILOGUE_BIAS) sum += sid_load(t->p.bias, dtype, i);
            sid_store(t->d_data, dtype, (size_t)j * (size_t)t->d.stride + i, sum);
        }
    free(a);
    free(b);
}

static void check_matrix(const layout *l, const void *data, uint32_t alignment, const char *name) {
    size_t size = sid_dtype_size(dtype_of(l->type));
    if (!fake_is_device(data, ((l->columns - 1) * (size_t)l->stride + l->rows) * size))
        fake_refuse("cublasLtMatmul: %s is not memory of the device", name);
    if ((uintptr_t)data % alignment)
        fake_refuse("cublasLtMatmul: %s is less aligned than its algorithm was chosen for", name);
}

EXPORT cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t p, const void *alpha, const void *a,
                                     cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                                     const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                                     cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo, void *workspace,
                                     size_t workspace_size, CUstream stream) {
    call t = {*(layout *)a_layout,
              *(layout *)b_layout,
              *(layout *)c_layout,
              *(layout *)d_layout,
              *(product *)p,
              *(const float *)alpha,
              *(const float *)beta,
              a,
              b,
              c,
              d};
    algorithm chosen;
    (void)handle;
    MAY_FAIL();
    memcpy(&chosen, algo, sizeof chosen);
    if (!fits(&t.p, &t.a, &t.b, &t.c, &t.d)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (chosen.rows != t.d.rows || chosen.columns != t.d.columns || chosen.depth != t.a.rows)
        fake_refuse("cublasLtMatmul: the algorithm was chosen for another product");
    check_matrix(&t.a, a, chosen.alignments[0], "A");
    check_matrix(&t.b, b, chosen.alignments[1], "B");
    check_matrix(&t.d, d, chosen.alignments[3], "D");
    if (t.beta != 0) check_matrix(&t.c, c, chosen.alignments[2], "C");
    if (t.beta != 0 && c == d && t.c.stride != t.d.stride) fake_refuse("cublasLtMatmul: C is D, but of another layout");
    if (t.p.epilogue == CUBLASLT_EPILOGUE_BIAS &&
        !fake_is_device(t.p.bias, t.d.rows * sid_dtype_size(dtype_of(t.p.bias_type))))
        fake_refuse("cublasLtMatmul: the bias is not memory of the device");
    if (workspace_size < chosen.workspace || (chosen.workspace && !fake_is_device(workspace, chosen.workspace)))
        fake_refuse("cublasLtMatmul: the workspace is too small");
    return fake_enqueue(stream, run_call, &t, sizeof t) ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}
