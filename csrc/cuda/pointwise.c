/* Passes over numbers: each function fills in a kernel's parameters and chooses its grid. */
#include <string.h>

#include "core/err.h"
#include "cuda/grids.h"
#include "cuda/ops.h"

_Static_assert((int)SID_CU_F32 == (int)SID_F32 && (int)SID_CU_BF16 == (int)SID_BF16 &&
                   (int)SID_CU_F16 == (int)SID_F16 && (int)SID_CU_GELU_ERF == (int)SID_GELU_ERF &&
                   (int)SID_CU_GELU_QUICK == (int)SID_GELU_QUICK && (int)SID_CU_SILU == (int)SID_SILU,
               "params.h numbers dtypes and activations as core/ does");

static int launch(sid_exec *exec, const char *name, sid_grid grid, const void *parameters, size_t size) {
    return sid_cu_run(exec, SID_CU_POINTWISE, name, "", grid, parameters, size);
}

static int is_dense(const sid_tensor *t) { return !t || t->stride == t->c; }

/* ---- matrices ---- */

/* How the rows of `count` tensors are cut into vectors. Dense rows are one long row. */
typedef struct {
    long long rows, c;
    int vector;
    sid_grid grid;
} cut;

static int cut_rows(cut *cut, const sid_tensor *const *tensors, size_t count, int separate) {
    size_t rows = sid_rows(tensors[0]), c = tensors[0]->c;
    int dense = !separate, aligned = 1, vectors = 1;
    for (size_t i = 0; i < count; i++) {
        dense = dense && is_dense(tensors[i]);
        aligned = aligned && (!tensors[i] || sid_cu_aligned(tensors[i]->data));
        vectors = vectors && sid_cu_vectors(tensors[i]);
    }
    if (dense) {
        c *= rows;
        rows = 1;
        vectors = aligned && c % SID_CU_VECTOR == 0;
    }
    size_t steps = vectors ? c / SID_CU_VECTOR : c;
    if (rows > 1 && rows * steps > UINT32_MAX) return sid_fail(SID_EINTERNAL, "a slice of %zu rows is too large", rows);
    cut->rows = (long long)rows;
    cut->c = (long long)c;
    cut->vector = vectors;
    cut->grid = sid_cu_threads(rows * steps);
    return SID_OK;
}

static int combine(sid_exec *exec, sid_tensor *dst, const sid_tensor *x, const sid_tensor *y, sid_cu_combine *p) {
    const sid_tensor *tensors[] = {dst, x, y};
    cut cut = {0};
    SID_TRY(cut_rows(&cut, tensors, 3, p->row_shares != NULL));
    p->dst = sid_cu_rows(dst);
    p->x = sid_cu_rows(x);
    p->y = sid_cu_rows(y);
    p->rows = cut.rows;
    p->c = cut.c;
    p->vector = cut.vector;
    return launch(exec, "combine", cut.grid, p, sizeof *p);
}

int sid_cuda_combine(sid_exec *exec, sid_tensor *dst, float a, const sid_tensor *x, float b, const sid_tensor *y) {
    return combine(exec, dst, x, y, &(sid_cu_combine){.a = a, .b = b});
}

int sid_cuda_blend_rows(sid_exec *exec, sid_tensor *dst, const float *a, const sid_tensor *x, const sid_tensor *y) {
    return combine(exec, dst, x, y, &(sid_cu_combine){.row_shares = a});
}

int sid_cuda_finish(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, const sid_post *post) {
    const sid_tensor *tensors[] = {dst, src, post->factor, post->residual};
    cut cut = {0};
    SID_TRY(cut_rows(&cut, tensors, 4, 0));
    sid_cu_finish p = {.dst = sid_cu_rows(dst),
                       .src = sid_cu_rows(src),
                       .factor = sid_cu_rows(post->factor),
                       .residual = sid_cu_rows(post->residual),
                       .rows = cut.rows,
                       .c = cut.c,
                       .activation = (int)post->activation,
                       .relu = post->relu,
                       .vector = cut.vector};
    return launch(exec, "finish", cut.grid, &p, sizeof p);
}

/* ---- planes ---- */

static int transpose(sid_exec *exec, const char *name, const sid_tensor *tensor, const sid_planes *planes,
                     const sid_curve *curve) {
    size_t pixels = tensor->h * tensor->w, tiles = sid_cu_ceil(pixels, SID_CU_PLANES_TILE);
    sid_cu_planes p = {.pixels_first = sid_cu_rows(tensor),
                       .planes = planes->data,
                       .n = (int)tensor->n,
                       .c = (int)tensor->c,
                       .pixels = (int)pixels,
                       .factor = curve->factor,
                       .offset = curve->offset,
                       .bound = curve->bound};
    sid_grid grid = {(unsigned)(tensor->n * tiles), (unsigned)sid_cu_ceil(tensor->c, SID_CU_PLANES_TILE), 1,
                     SID_CU_THREADS};
    return launch(exec, name, grid, &p, sizeof p);
}

int sid_cuda_from_planes(sid_exec *exec, sid_tensor *dst, const sid_planes *planes, const sid_curve *curve) {
    return transpose(exec, "from_planes", dst, planes, curve);
}

int sid_cuda_to_planes(sid_exec *exec, sid_planes *planes, const sid_tensor *src, const sid_curve *curve) {
    return transpose(exec, "to_planes", src, planes, curve);
}

int sid_cuda_mix(sid_exec *exec, float *z, const float *p, size_t count, double up, double down, double a, double b) {
    sid_cu_mix m = {z, p, sid_cuda_of(exec)->overflow, (long long)count, up, down, a, b};
    return launch(exec, "mix", sid_cu_threads(count), &m, sizeof m);
}

/* ---- tiles ---- */

static int run_tile(sid_exec *exec, const char *name, sid_cu_tile *p, const sid_window *w) {
    p->count = (long long)w->planes * (long long)w->rows * (long long)w->columns;
    p->height = (int)w->height;
    p->width = (int)w->width;
    p->top = (int)w->top;
    p->left = (int)w->left;
    p->rows = (int)w->rows;
    p->columns = (int)w->columns;
    return launch(exec, name, sid_cu_threads((size_t)p->count), p, sizeof *p);
}

int sid_cuda_tile_take(sid_exec *exec, float *tile, const float *planes, const sid_window *window) {
    return run_tile(exec, "tile_take", &(sid_cu_tile){.planes = (float *)planes, .tile = tile}, window);
}

int sid_cuda_tile_add(sid_exec *exec, float *planes, const float *tile, const sid_window *window,
                      const float *row_shares, const float *column_shares) {
    sid_cu_tile p = {planes, (float *)tile, row_shares, column_shares, 0, 0, 0, 0, 0, 0, 0};
    return run_tile(exec, "tile_add", &p, window);
}

/* ---- convolutions ---- */

int sid_cuda_conv_direct(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, const sid_conv_shape *shape,
                         const void *weights, const float *bias, const sid_post *post) {
    size_t pixels = sid_rows(dst);
    sid_cu_conv_direct p = {.dst = dst->data,
                            .src = src->data,
                            .weights = weights,
                            .residual = post->residual ? post->residual->data : NULL,
                            .bias = bias,
                            .pixels = (long long)pixels,
                            .in_height = (int)src->h,
                            .in_width = (int)src->w,
                            .height = (int)dst->h,
                            .width = (int)dst->w,
                            .in = (int)shape->in,
                            .out = (int)shape->out,
                            .kernel = (int)shape->kernel,
                            .stride = (int)shape->stride,
                            .pad = (int)shape->pad_before,
                            .dst_dtype = (int)dst->dtype,
                            .residual_dtype = post->residual ? (int)post->residual->dtype : 0,
                            .relu = post->relu,
                            .vector = sid_cu_vectors(src) && sid_cu_aligned(weights)};
    sid_grid grid = sid_cu_threads(pixels * SID_CU_WARP);
    grid.y = (unsigned)sid_cu_ceil(shape->out, SID_CU_CONV_OUTPUTS);
    return sid_cu_run(exec, SID_CU_CONV, "conv_direct", "", grid, &p, sizeof p);
}

int sid_cuda_unfold(sid_exec *exec, sid_tensor *dst, const void *y, const float *bias) {
    int vector = sid_cu_vectors(dst) && sid_cu_aligned(y);
    size_t count = sid_rows(dst) * dst->c / (vector ? SID_CU_VECTOR : 1);
    sid_cu_unfold p = {.dst = dst->data,
                       .y = y,
                       .bias = bias,
                       .count = (long long)count,
                       .height = (int)dst->h / 2,
                       .width = (int)dst->w / 2,
                       .out = (int)dst->c,
                       .vector = vector};
    return sid_cu_run(exec, SID_CU_CONV, "unfold", "", sid_cu_threads(count), &p, sizeof p);
}
