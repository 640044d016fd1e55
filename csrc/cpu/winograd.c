#include "cpu/winograd.h"

#include <stdlib.h>

#include "core/err.h"

#define MOST_INPUT 6 /* rows and columns of an input tile */
#define CHANNEL_MULTIPLE 16
#define BLOCK CHANNEL_MULTIPLE
#define LEAST_CHANNELS 64
/* For fewer pixels, reading the larger weights costs more than the saved multiplications. The limit is highest where
 * the maps are bfloat16 and the tiles float32, whose products are half as fast, and lowest where the tiles are
 * bfloat16 too. */
#define LEAST_PIXELS_F32 1024
#define LEAST_PIXELS_MIXED 4096
#define LEAST_PIXELS_BF16 256
#define CHUNK_BYTES ((size_t)8 << 20) /* of transformed tiles processed at a time, so that they stay in the cache */
#define CHUNK_MULTIPLE 64             /* tiles */

struct sid_winograd {
    sid_product product;
    size_t in, out;
    sid_dtype dtype; /* that of the transformed tiles and weights */
};

/* The rows and columns of an input tile, and the number of elements that it has when transformed. */
static size_t input_of(const sid_winograd *w) { return sid_winograd_side(w->dtype) + 2; }
static size_t elements_of(const sid_winograd *w) { return input_of(w) * input_of(w); }

/* Returns the dtype that tiles are transformed to. */
static sid_dtype tile_dtype(const sid_cpu *cpu) {
    return cpu->base.dtype == SID_BF16 && cpu->kernels.isa == SID_ISA_AVX512_BF16 ? SID_BF16 : SID_F32;
}

int sid_winograd_suits(const sid_cpu *cpu, const sid_conv_shape *s) {
    const sid_dtype dtype = cpu->base.dtype;
    if (dtype == SID_BF16 && cpu->kernels.isa >= SID_ISA_AMX)
        return 0; /* direct products are fast there; the transforms have not been measured on such a CPU */
    size_t least = dtype == SID_F32              ? LEAST_PIXELS_F32
                   : tile_dtype(cpu) == SID_BF16 ? LEAST_PIXELS_BF16
                                                 : LEAST_PIXELS_MIXED;
    return s->kernel == 3 && s->stride == 1 && s->pad_before == 1 && s->pad_after == 1 &&
           s->in % CHANNEL_MULTIPLE == 0 && s->out % CHANNEL_MULTIPLE == 0 && s->in >= LEAST_CHANNELS &&
           s->out >= LEAST_CHANNELS && s->height * s->width >= least;
}

void sid_winograd_close(sid_winograd **winograd) {
    if (!*winograd) return;
    sid_product_close(&(*winograd)->product);
    free(*winograd);
    *winograd = NULL;
}

/* Transforms three rows of taps to six, BLOCK columns at a time: G x for the points 0, s, -s, 1/s, -1/s and infinity
 * with s = sqrt(2). Rows are `step` and `x_step` apart. */
static void six_taps(double *six, size_t step, const double *x, size_t x_step) {
    const double s = 1.4142135623730951;
#pragma omp simd
    for (size_t j = 0; j < BLOCK; j++) {
        double a = x[j], b = x[x_step + j], c = x[2 * x_step + j];
        six[j] = a;
        six[step + j] = (a + s * b + 2 * c) / 6;
        six[2 * step + j] = (a - s * b + 2 * c) / 6;
        six[3 * step + j] = -(a + b / s + c / 2) / 1.5;
        six[4 * step + j] = -(a - b / s + c / 2) / 1.5;
        six[5 * step + j] = c;
    }
}

/* Transforms them to four, for the points 0, 1, -1 and infinity. */
static void four_taps(double *four, size_t step, const double *x, size_t x_step) {
#pragma omp simd
    for (size_t j = 0; j < BLOCK; j++) {
        double a = x[j], b = x[x_step + j], c = x[2 * x_step + j];
        four[j] = a;
        four[step + j] = (a + b + c) / 2;
        four[2 * step + j] = (a - b + c) / 2;
        four[3 * step + j] = c;
    }
}

/* Fills transformed [elements][out / width][in][width] from taps (out, in, 3, 3), BLOCK columns of one row at a
 * time, so that reads and writes proceed in a few streams. */
static void transform_weights(float *transformed, const float *taps, const sid_winograd *w, size_t width) {
    const size_t in = w->in, out = w->out, input = input_of(w);
    void (*const transform_line)(double *, size_t, const double *, size_t) = input == 6 ? six_taps : four_taps;
#pragma omp parallel for num_threads(w->product.cpu->base.threads)
    for (size_t o = 0; o < out; o += BLOCK)
        for (size_t i = 0; i < in; i++) {
            double kernel[9 * BLOCK], lines[3 * MOST_INPUT * BLOCK], tile[MOST_INPUT * MOST_INPUT * BLOCK];
            for (size_t j = 0; j < BLOCK; j++)
                for (size_t k = 0; k < 9; k++) kernel[k * BLOCK + j] = taps[((o + j) * in + i) * 9 + k];
            for (size_t x = 0; x < 3; x++) transform_line(lines + x * BLOCK, 3 * BLOCK, kernel + x * BLOCK, 3 * BLOCK);
            for (size_t y = 0; y < input; y++)
                transform_line(tile + input * y * BLOCK, BLOCK, lines + 3 * y * BLOCK, BLOCK);
            float *to = transformed + (o / width * in + i) * width + o % width;
            for (size_t k = 0; k < input * input; k++, to += in * out)
                for (size_t j = 0; j < BLOCK; j++) to[j] = (float)tile[k * BLOCK + j];
        }
}

/* A product for one number of tiles. */
typedef struct {
    sid_winograd *winograd;
    size_t tiles;
    const sid_weight *weight; /* what pack() packs; NULL at a run */
} request;

static int layout_of(dnnl_memory_desc_t *layout, const sid_winograd *w, size_t rows, size_t columns, sid_dtype dtype,
                     dnnl_format_tag_t tag) {
    dnnl_dims_t dims = {(dnnl_dim_t)elements_of(w), (dnnl_dim_t)rows, (dnnl_dim_t)columns};
    SID_DNNL(dnnl_memory_desc_create_with_tag(layout, 3, dims, sid_dnnl_type(dtype), tag));
    return SID_OK;
}

static int pack_transformed(sid_winograd *w, const float *transformed, const_dnnl_memory_desc_t layout) {
    sid_weight weight = {.dtype = SID_F32,
                         .rank = 3,
                         .shape = {elements_of(w), w->in, w->out},
                         .stride = w->in * w->out,
                         .data = transformed};
    dnnl_memory_desc_t plain;
    SID_TRY(layout_of(&plain, w, w->in, w->out, w->dtype, dnnl_abc));
    int status =
        sid_pack(w->product.cpu, &w->product.packed, w->dtype, plain, layout, 1, &(const sid_weight *){&weight});
    dnnl_memory_desc_destroy(plain);
    return status;
}

static int transform(const sid_winograd *w, float *transformed, const sid_weight *weight, size_t width) {
    void *taps;
    SID_TRY(sid_stack(w->product.cpu, &taps, SID_F32, 1, &weight));
    transform_weights(transformed, taps, w, width);
    free(taps);
    return SID_OK;
}

static int pack(const void *requested, const_dnnl_memory_desc_t layout) {
    const request *r = requested;
    sid_winograd *w = r->winograd;
    float *transformed = malloc(w->in * w->out * elements_of(w) * sizeof *transformed);
    int status = transformed ? transform(w, transformed, r->weight, w->out)
                             : sid_fail(SID_EMEMORY, "out of memory for transformed weights");
    if (status == SID_OK) status = pack_transformed(w, transformed, layout);
    free(transformed);
    return status;
}

/* Packs the transformed weights in panels for the kernel matmul. */
static int pack_panels(sid_winograd *w, const sid_weight *weight) {
    sid_packed *packed = &w->product.packed;
    SID_TRY(sid_take_packed(w->product.cpu, &packed->data, w->in * w->out * elements_of(w) * sizeof(float)));
    return transform(w, packed->data, weight, SID_MATMUL_PANEL);
}

static int describe(const void *requested, dnnl_primitive_desc_t *description, const_dnnl_memory_desc_t weights) {
    const request *r = requested;
    const sid_winograd *w = r->winograd;
    dnnl_memory_desc_t src = NULL, dst = NULL, any = NULL;
    dnnl_primitive_attr_t attributes;
    SID_TRY(sid_attributes_open(&attributes, &(sid_post){0}, 0, NULL, NULL));
    int status = layout_of(&src, w, r->tiles, w->in, w->dtype, dnnl_abc);
    if (status == SID_OK) status = layout_of(&dst, w, r->tiles, w->out, SID_F32, dnnl_abc);
    if (status == SID_OK) status = layout_of(&any, w, w->in, w->out, w->dtype, dnnl_format_tag_any);
    if (status == SID_OK &&
        dnnl_matmul_primitive_desc_create(description, w->product.cpu->engine, src, weights ? weights : any, NULL, dst,
                                          attributes) != dnnl_success)
        status = sid_fail(SID_EINTERNAL, "oneDNN: the products of a convolution were refused");
    dnnl_primitive_attr_destroy(attributes);
    dnnl_memory_desc_t all[] = {src, dst, any};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]) dnnl_memory_desc_destroy(all[i]);
    return status;
}

/* Computes m [elements][tiles][out] = v [elements][tiles][in] times the weights, by oneDNN. */
static int multiply_onednn(sid_exec *exec, float *m, void *v, size_t tiles, sid_winograd *w) {
    size_t key[SID_KEY_SIZE] = {tiles};
    sid_primitive *primitive;
    SID_TRY(sid_product_prepare(&w->product, key, &(sid_recipe){&(request){w, tiles, NULL}, describe, NULL},
                                &primitive));
    sid_argument arguments[] = {{DNNL_ARG_SRC, v}, {DNNL_ARG_WEIGHTS, primitive->weights}, {DNNL_ARG_DST, m}};
    return sid_primitive_run(exec, primitive, arguments, 3);
}

/* Computes the same by the CPU's own kernel, in float32. */
static int multiply_own(sid_exec *exec, float *m, const float *v, size_t tiles, const sid_winograd *w) {
    if (sid_measuring(&exec->arena)) return SID_OK;
    const size_t count = elements_of(w);
    sid_matmul products[MOST_INPUT * MOST_INPUT];
    for (size_t k = 0; k < count; k++)
        products[k] = (sid_matmul){.rows = tiles,
                                   .in = w->in,
                                   .out = w->out,
                                   .dst = m + k * tiles * w->out,
                                   .src = v + k * tiles * w->in,
                                   .weights = (const float *)w->product.packed.data + k * w->in * w->out,
                                   .dst_stride = w->out,
                                   .src_stride = w->in};
    w->product.cpu->kernels.matmul(products, count, exec->backend->threads);
    return SID_OK;
}

/* Transforms the grid's tiles, multiplies them and transforms the products back. */
static int run_chunk(sid_exec *exec, const sid_winograd_grid *grid, sid_tensor *dst, const sid_tensor *src,
                     sid_winograd *w, const sid_post *post) {
    const sid_kernels *kernels = &w->product.cpu->kernels;
    size_t mark = sid_arena_mark(&exec->arena), rows = elements_of(w) * grid->count;
    int measuring = sid_measuring(&exec->arena), threads = exec->backend->threads;
    void *v, *m;
    SID_TRY(sid_arena_take(&exec->arena, &v, rows * w->in * sid_dtype_size(w->dtype)));
    SID_TRY(sid_arena_take(&exec->arena, &m, rows * w->out * sizeof(float)));
    if (!measuring) kernels->winograd_input[w->dtype](v, grid, src->data, src->dtype, w->in, threads);
    SID_TRY(kernels->onednn_products ? multiply_onednn(exec, m, v, grid->count, w)
                                     : multiply_own(exec, m, v, grid->count, w));
    sid_winograd_maps maps = {.dst = dst->data,
                              .residual = post->residual ? post->residual->data : NULL,
                              .bias = w->product.packed.bias,
                              .dtype = dst->dtype,
                              .channels = w->out,
                              .relu = post->relu};
    if (!measuring) kernels->winograd_output[w->dtype](&maps, grid, m, threads);
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

/* Returns how many tiles stay in the cache. This depends on the widths alone, so that a tile's products are the same
 * in every batch. */
static size_t chunk_tiles(const sid_winograd *w) {
    size_t tile_bytes = elements_of(w) * (w->in * sid_dtype_size(w->dtype) + w->out * sizeof(float));
    size_t tiles = CHUNK_BYTES / tile_bytes / CHUNK_MULTIPLE * CHUNK_MULTIPLE;
    return tiles ? tiles : CHUNK_MULTIPLE;
}

/* Returns the number of tiles along a side of so many pixels. */
static size_t tile_rows(const sid_winograd *w, size_t pixels) {
    const size_t output = sid_winograd_side(w->dtype);
    return (pixels + output - 1) / output;
}

int sid_winograd_run(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_winograd *w, const sid_post *post) {
    size_t total = src->n * tile_rows(w, src->h) * tile_rows(w, src->w), most = chunk_tiles(w);
    for (size_t first = 0; first < total; first += most) {
        sid_winograd_grid grid = {src->h, src->w, first, total - first < most ? total - first : most};
        SID_TRY(run_chunk(exec, &grid, dst, src, w, post));
    }
    return SID_OK;
}

int sid_winograd_open(sid_cpu *cpu, sid_winograd **winograd, const sid_conv_shape *s, const sid_weight *weight,
                      const sid_weight *bias) {
    sid_winograd *w = *winograd = calloc(1, sizeof *w);
    if (!w) return sid_fail(SID_EMEMORY, "out of memory");
    *w = (sid_winograd){.product = {.cpu = cpu}, .in = s->in, .out = s->out, .dtype = tile_dtype(cpu)};
    SID_TRY(sid_pack_bias(&w->product.packed, 1, &bias));
    if (!cpu->kernels.onednn_products) return pack_panels(w, weight);
    size_t tiles = tile_rows(w, s->height) * tile_rows(w, s->width), most = chunk_tiles(w);
    request usual = {w, tiles < most ? tiles : most, weight};
    return sid_product_pack(&w->product, &(sid_recipe){&usual, describe, pack});
}
