#include "cpu/winograd.h"

#include <stdlib.h>

#include "core/err.h"

#define PRODUCTS 36        /* 6 x 6: elements of a transformed tile */
#define OUTPUT 4           /* rows and columns of an output tile */
#define CHANNEL_MULTIPLE 16
#define LEAST_CHANNELS 64
#define LEAST_PIXELS 1024  /* below, the larger weights cost more to read than the multiplications saved */
#define CHUNK_BYTES ((size_t)8 << 20) /* of transformed tiles at a time, so that they stay in the cache */
#define CHUNK_MULTIPLE 64  /* tiles */

struct sid_winograd {
    sid_cpu *cpu;
    size_t in, out;
    sid_weight weight, bias; /* borrowed until packed */
    sid_packed packed;
    sid_primitive *primitives;
};

int sid_winograd_suits(const sid_conv_shape *s, const sid_tensor *src, const sid_tensor *dst) {
    return src->dtype == SID_F32 && dst->dtype == SID_F32 && s->kernel == 3 && s->stride == 1 && s->pad_before == 1 &&
           s->pad_after == 1 && s->in % CHANNEL_MULTIPLE == 0 && s->out % CHANNEL_MULTIPLE == 0 &&
           s->in >= LEAST_CHANNELS && s->out >= LEAST_CHANNELS && src->h * src->w >= LEAST_PIXELS;
}

int sid_winograd_open(sid_cpu *cpu, sid_winograd **winograd, const sid_conv_shape *s, const sid_weight *weight,
                      const sid_weight *bias) {
    sid_winograd *w = *winograd = calloc(1, sizeof *w);
    if (!w) return sid_fail(SID_EMEMORY, "out of memory");
    *w = (sid_winograd){.cpu = cpu, .in = s->in, .out = s->out, .weight = *weight, .bias = *bias};
    return SID_OK;
}

void sid_winograd_close(sid_winograd **winograd) {
    sid_winograd *w = *winograd;
    if (!w) return;
    sid_primitives_close(&w->primitives);
    sid_packed_close(&w->packed);
    free(w);
    *winograd = NULL;
}

/* Three taps to six, `step` apart: G x for the points 0, s, -s, 1/s, -1/s, infinity, s = sqrt(2). */
static void transform_taps(double *six, size_t step, const double *x, size_t x_step) {
    const double s = 1.4142135623730951, a = x[0], b = x[x_step], c = x[2 * x_step];
    six[0] = a;
    six[step] = (a + s * b + 2 * c) / 6;
    six[2 * step] = (a - s * b + 2 * c) / 6;
    six[3 * step] = -(a + b / s + c / 2) / 1.5;
    six[4 * step] = -(a - b / s + c / 2) / 1.5;
    six[5 * step] = c;
}

/* transformed [36][in][out] from taps (out, in, 3, 3). */
static void transform_weights(float *transformed, const float *taps, size_t in, size_t out, int threads) {
#pragma omp parallel for num_threads(threads)
    for (size_t pair = 0; pair < in * out; pair++) {
        size_t i = pair / out, o = pair % out;
        double kernel[9], lines[18], tile[PRODUCTS];
        for (size_t k = 0; k < 9; k++) kernel[k] = taps[(o * in + i) * 9 + k];
        for (size_t x = 0; x < 3; x++) transform_taps(lines + x, 3, kernel + x, 3);
        for (size_t y = 0; y < 6; y++) transform_taps(tile + 6 * y, 1, lines + 3 * y, 1);
        for (size_t k = 0; k < PRODUCTS; k++) transformed[k * in * out + pair] = (float)tile[k];
    }
}

static int pack(sid_winograd *w, const_dnnl_memory_desc_t plain, const_dnnl_memory_desc_t layout) {
    float *taps = malloc(w->in * w->out * 9 * sizeof *taps);
    float *transformed = malloc(w->in * w->out * PRODUCTS * sizeof *transformed);
    int status = taps && transformed ? SID_OK : sid_fail(SID_EMEMORY, "out of memory for transformed weights");
    if (status == SID_OK) {
        sid_weight weight = {.dtype = SID_F32,
                             .rank = 3,
                             .shape = {PRODUCTS, w->in, w->out},
                             .stride = w->in * w->out,
                             .data = transformed};
        sid_weight_floats(taps, &w->weight);
        transform_weights(transformed, taps, w->in, w->out, w->cpu->base.threads);
        status = sid_pack(w->cpu, &w->packed, plain, layout, 1, &weight, NULL);
    }
    free(taps);
    free(transformed);
    if (status == SID_OK) status = sid_pack_bias(&w->packed, 1, &w->bias);
    return status;
}

static int create(sid_winograd *w, const size_t *key, size_t tiles, sid_primitive **primitive) {
    dnnl_dims_t src_dims = {PRODUCTS, (dnnl_dim_t)tiles, (dnnl_dim_t)w->in};
    dnnl_dims_t weight_dims = {PRODUCTS, (dnnl_dim_t)w->in, (dnnl_dim_t)w->out};
    dnnl_dims_t dst_dims = {PRODUCTS, (dnnl_dim_t)tiles, (dnnl_dim_t)w->out};
    dnnl_memory_desc_t src = NULL, dst = NULL, plain = NULL, any = NULL;
    dnnl_primitive_desc_t description = NULL;
    dnnl_primitive_attr_t attributes;
    SID_TRY(sid_attributes_open(&attributes, &(sid_post){0}, 0, NULL, NULL));
    int status = SID_OK;
    if (dnnl_memory_desc_create_with_tag(&src, 3, src_dims, dnnl_f32, dnnl_abc) != dnnl_success ||
        dnnl_memory_desc_create_with_tag(&dst, 3, dst_dims, dnnl_f32, dnnl_abc) != dnnl_success ||
        dnnl_memory_desc_create_with_tag(&plain, 3, weight_dims, dnnl_f32, dnnl_abc) != dnnl_success ||
        dnnl_memory_desc_create_with_tag(&any, 3, weight_dims, dnnl_f32, dnnl_format_tag_any) != dnnl_success ||
        dnnl_matmul_primitive_desc_create(&description, w->cpu->engine, src, w->packed.layout ? w->packed.layout : any,
                                          NULL, dst, attributes) != dnnl_success)
        status = sid_fail(SID_EINTERNAL, "oneDNN: the products of a convolution were refused");
    if (status == SID_OK && !w->packed.layout)
        status = pack(w, plain, dnnl_primitive_desc_query_md(description, dnnl_query_weights_md, 0));
    if (status == SID_OK) status = sid_primitive_add(w->cpu, &w->primitives, key, description, &w->packed, primitive);
    else if (description) dnnl_primitive_desc_destroy(description);
    dnnl_primitive_attr_destroy(attributes);
    dnnl_memory_desc_t all[] = {src, dst, plain, any};
    for (size_t i = 0; i < 4; i++)
        if (all[i]) dnnl_memory_desc_destroy(all[i]);
    return status;
}

static int prepare(sid_winograd *w, size_t tiles, sid_primitive **primitive) {
    size_t key[SID_KEY_SIZE] = {tiles};
    pthread_mutex_lock(&w->cpu->lock);
    int status = SID_OK, before = sid_threads_enter(w->cpu);
    *primitive = sid_primitive_find(w->primitives, key);
    if (!*primitive) status = create(w, key, tiles, primitive);
    sid_threads_leave(before);
    pthread_mutex_unlock(&w->cpu->lock);
    return status;
}

/* Tiles of the grid first .. first + count - 1: transform, 36 products, transform back. */
static int run_chunk(sid_exec *exec, const sid_winograd_grid *grid, sid_tensor *dst, const sid_tensor *src,
                     sid_winograd *w, const sid_post *post) {
    const sid_kernels *kernels = &w->cpu->kernels;
    size_t mark = sid_arena_mark(&exec->arena);
    int measuring = sid_measuring(&exec->arena), threads = exec->backend->threads;
    void *v, *m;
    sid_primitive *primitive;
    SID_TRY(prepare(w, grid->count, &primitive));
    SID_TRY(sid_arena_take(&exec->arena, &v, PRODUCTS * grid->count * w->in * sizeof(float)));
    SID_TRY(sid_arena_take(&exec->arena, &m, PRODUCTS * grid->count * w->out * sizeof(float)));
    if (!measuring) kernels->winograd_input(v, grid, src->data, w->in, threads);
    sid_argument arguments[] = {{DNNL_ARG_SRC, v}, {DNNL_ARG_WEIGHTS, primitive->weights}, {DNNL_ARG_DST, m}};
    SID_TRY(sid_primitive_run(exec, primitive, arguments, 3));
    if (!measuring)
        kernels->winograd_output(dst->data, grid, m, w->out, w->packed.bias, post->residual ? post->residual->data : NULL,
                                 threads);
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

/* As many tiles as stay in the cache. It depends on the widths alone, so that a tile's products are the same in every
 * batch. */
static size_t chunk_tiles(const sid_winograd *w) {
    size_t tiles = CHUNK_BYTES / (PRODUCTS * (w->in + w->out) * sizeof(float)) / CHUNK_MULTIPLE * CHUNK_MULTIPLE;
    return tiles ? tiles : CHUNK_MULTIPLE;
}

int sid_winograd_run(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_winograd *w, const sid_post *post) {
    size_t columns = (src->w + OUTPUT - 1) / OUTPUT, rows = (src->h + OUTPUT - 1) / OUTPUT;
    size_t total = src->n * rows * columns, most = chunk_tiles(w);
    for (size_t first = 0; first < total; first += most) {
        sid_winograd_grid grid = {src->h, src->w, first, total - first < most ? total - first : most};
        SID_TRY(run_chunk(exec, &grid, dst, src, w, post));
    }
    return SID_OK;
}
