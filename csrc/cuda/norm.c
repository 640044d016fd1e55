/* Group norm and layer norm. */
#include "core/err.h"
#include "cuda/grids.h"
#include "cuda/ops.h"

/* The least work of a block, in numbers: less would not pay for its start. */
#define LEAST_WORK 16384
#define MAX_APPLY_CHUNKS 1024

static size_t max(size_t a, size_t b) { return a > b ? a : b; }

/* Returns the pixels of a chunk, so that there are at most `most` chunks. It depends on the shape alone, so that the
 * result is the same on every device. */
static size_t chunk_of(size_t pixels, size_t channels, size_t most) {
    return max(sid_cu_ceil(LEAST_WORK, channels), sid_cu_ceil(pixels, most));
}

static sid_cu_group_norm describe(const sid_tensor *dst, const sid_group_norm *norm) {
    const sid_tensor *a = norm->a, *b = norm->b, *add = norm->add;
    size_t pixels = a->h * a->w, chunk = chunk_of(pixels, dst->c, SID_CU_MAX_CHUNKS);
    size_t apply = chunk_of(pixels, dst->c, MAX_APPLY_CHUNKS);
    return (sid_cu_group_norm){.dst = dst->data,
                               .a = a->data,
                               .b = b ? b->data : NULL,
                               .add = add ? add->data : NULL,
                               .scale = norm->scale,
                               .shift = norm->shift,
                               .pixels = (long long)pixels,
                               .a_channels = (int)a->c,
                               .b_channels = b ? (int)b->c : 0,
                               .a_stride = (int)a->stride,
                               .b_stride = b ? (int)b->stride : 0,
                               .add_stride = add && add->n > 1 ? (int)add->stride : 0,
                               .groups = (int)norm->groups,
                               .chunk = (int)chunk,
                               .chunks = (int)sid_cu_ceil(pixels, chunk),
                               .apply_chunk = (int)apply,
                               .apply_chunks = (int)sid_cu_ceil(pixels, apply),
                               .eps = norm->eps,
                               .silu = norm->silu,
                               .vector = sid_cu_vectors(a) && sid_cu_vectors(b) && sid_cu_vectors(dst)};
}

int sid_cuda_group_norm(sid_exec *exec, sid_tensor *dst, const sid_group_norm *norm) {
    size_t mark = sid_arena_mark(&exec->arena);
    sid_cu_group_norm p = describe(dst, norm);
    unsigned n = (unsigned)dst->n;
    if (p.groups > SID_CU_MAX_GROUPS) return sid_fail(SID_EINTERNAL, "group_norm: %d groups are too many", p.groups);
    SID_TRY(sid_arena_floats(&exec->arena, &p.stats, (size_t)n * (size_t)p.chunks * norm->groups * 2));
    sid_grid stats = {(unsigned)p.chunks, n, 1, SID_CU_THREADS},
             apply = {(unsigned)p.apply_chunks, n, 1, SID_CU_THREADS};
    SID_TRY(sid_cu_run(exec, SID_CU_NORM, "group_stats", "", stats, &p, sizeof p));
    SID_TRY(sid_cu_run(exec, SID_CU_NORM, "group_apply", "", apply, &p, sizeof p));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

int sid_cuda_layer_norm(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, const float *scale, const float *shift,
                        float eps) {
    size_t rows = sid_rows(src);
    sid_cu_layer_norm p = {.dst = dst->data,
                           .src = src->data,
                           .scale = scale,
                           .shift = shift,
                           .rows = (long long)rows,
                           .c = (int)src->c,
                           .dst_stride = (int)dst->stride,
                           .src_stride = (int)src->stride,
                           .vector = sid_cu_vectors(dst) && sid_cu_vectors(src),
                           .eps = eps};
    return sid_cu_run(exec, SID_CU_NORM, "layer_norm", "", sid_cu_threads(rows * SID_CU_WARP), &p, sizeof p);
}
