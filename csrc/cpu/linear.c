/* Matrix products of rows of tokens and packed weights, by the CPU's own kernel or by oneDNN. The source and the
 * destination may be slices of channels. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "core/floats.h"
#include "cpu/primitive.h"

typedef struct {
    sid_linear base;
    sid_product product;
} cpu_linear;

void sid_cpu_linear_close(sid_linear **linear) {
    cpu_linear *l = (cpu_linear *)*linear;
    if (!l) return;
    sid_product_close(&l->product);
    free(l);
    *linear = NULL;
}

/* A product of one shape. */
typedef struct {
    cpu_linear *linear;
    const sid_tensor *dst, *src;
    const sid_post *post;
    size_t parts;
    const sid_weight *const *weights; /* what pack() packs; NULL at a run */
} request;

/* The layouts of a request's tensors. */
typedef struct {
    dnnl_memory_desc_t src, dst, weights, bias, factor, residual;
} layouts;

static int rows_layout(dnnl_memory_desc_t *layout, const sid_tensor *t) {
    dnnl_dims_t dims = {(dnnl_dim_t)sid_rows(t), (dnnl_dim_t)t->c}, strides = {(dnnl_dim_t)t->stride, 1};
    SID_DNNL(dnnl_memory_desc_create_with_strides(layout, 2, dims, sid_dnnl_type(t->dtype), strides));
    return SID_OK;
}

static int weights_layout(dnnl_memory_desc_t *layout, const cpu_linear *l, dnnl_format_tag_t tag) {
    dnnl_dims_t dims = {(dnnl_dim_t)l->base.shape.in, (dnnl_dim_t)l->base.shape.out};
    SID_DNNL(dnnl_memory_desc_create_with_tag(layout, 2, dims, sid_dnnl_type(l->product.cpu->base.dtype), tag));
    return SID_OK;
}

static int layouts_open(layouts *m, const request *r) {
    dnnl_dims_t bias_dims = {1, (dnnl_dim_t)r->linear->base.shape.out};
    SID_TRY(rows_layout(&m->src, r->src));
    SID_TRY(rows_layout(&m->dst, r->dst));
    if (r->post->factor) SID_TRY(rows_layout(&m->factor, r->post->factor));
    if (r->post->residual) SID_TRY(rows_layout(&m->residual, r->post->residual));
    SID_TRY(weights_layout(&m->weights, r->linear, dnnl_format_tag_any));
    if (r->linear->product.packed.bias)
        SID_DNNL(dnnl_memory_desc_create_with_tag(&m->bias, 2, bias_dims, dnnl_f32, dnnl_ab));
    return SID_OK;
}

static void layouts_close(layouts *m) {
    dnnl_memory_desc_t all[] = {m->src, m->dst, m->weights, m->bias, m->factor, m->residual};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]) dnnl_memory_desc_destroy(all[i]);
}

static int describe_with(const request *r, dnnl_primitive_desc_t *description, const layouts *m,
                         const_dnnl_memory_desc_t weights) {
    dnnl_primitive_attr_t attributes;
    SID_TRY(sid_attributes_open(&attributes, r->post, r->post->residual == r->dst, m->factor, m->residual));
    dnnl_status_t status =
        dnnl_matmul_primitive_desc_create(description, r->linear->product.cpu->engine, m->src,
                                          weights ? weights : m->weights, m->bias, m->dst, attributes);
    dnnl_primitive_attr_destroy(attributes);
    return status == dnnl_success ? SID_OK : sid_dnnl_fail("matrix product", status);
}

static int describe(const void *requested, dnnl_primitive_desc_t *description, const_dnnl_memory_desc_t weights) {
    layouts m = {0};
    int status = layouts_open(&m, requested);
    if (status == SID_OK) status = describe_with(requested, description, &m, weights);
    layouts_close(&m);
    return status;
}

static int pack(const void *requested, const_dnnl_memory_desc_t layout) {
    const request *r = requested;
    sid_product *product = &r->linear->product;
    dnnl_memory_desc_t plain;
    SID_TRY(weights_layout(&plain, r->linear, dnnl_ba));
    int status =
        sid_pack(product->cpu, &product->packed, product->cpu->base.dtype, plain, layout, r->parts, r->weights);
    dnnl_memory_desc_destroy(plain);
    return status;
}

int sid_cpu_linear_open(sid_backend *backend, sid_linear **linear, const sid_linear_shape *shape, size_t parts,
                        const sid_weight *const *weights, const sid_weight *const *biases) {
    sid_cpu *cpu = (sid_cpu *)backend;
    cpu_linear *l = calloc(1, sizeof *l);
    *linear = (sid_linear *)l;
    if (!l) return sid_fail(SID_EMEMORY, "out of memory");
    *l = (cpu_linear){.base = {*shape}, .product = {.cpu = cpu}};
    if (biases) SID_TRY(sid_pack_bias(&l->product.packed, parts, biases));
    if (!cpu->kernels.onednn_products) return sid_pack_panels(cpu, &l->product.packed, shape, parts, weights);
    sid_tensor src = sid_dense(NULL, backend->dtype, 1, 1, shape->rows, shape->in);
    sid_tensor dst = sid_dense(NULL, backend->dtype, 1, 1, shape->rows, shape->out);
    request usual = {l, &dst, &src, &(sid_post){0}, parts, weights};
    return sid_product_pack(&l->product, &(sid_recipe){&usual, describe, pack});
}

static int run_own(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, cpu_linear *l, const sid_post *post) {
    const sid_cpu *cpu = l->product.cpu;
    const sid_packed *packed = &l->product.packed;
    if (sid_measuring(&exec->arena)) return SID_OK;
    sid_matmul product = {.rows = sid_rows(src),
                          .in = l->base.shape.in,
                          .out = l->base.shape.out,
                          .dst = dst->data,
                          .src = src->data,
                          .weights = packed->data,
                          .bias = packed->bias,
                          .dst_stride = dst->stride,
                          .src_stride = src->stride,
                          .activation = post->activation};
    if (post->factor) product.factor = post->factor->data, product.factor_stride = post->factor->stride;
    if (post->residual) product.residual = post->residual->data, product.residual_stride = post->residual->stride;
    cpu->kernels.matmul(&product, 1, cpu->base.threads);
    return SID_OK;
}

static int run_onednn(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, cpu_linear *l, const sid_post *post) {
    int accumulate = post->residual == dst;
    size_t key[SID_KEY_SIZE] = {sid_rows(src),
                                src->stride,
                                dst->stride,
                                dst->dtype,
                                post->activation,
                                post->factor ? post->factor->stride : 0,
                                post->residual ? post->residual->stride : 0,
                                (size_t)accumulate};
    sid_primitive *primitive;
    SID_TRY(sid_product_prepare(&l->product, key, &(sid_recipe){&(request){l, dst, src, post, 0, NULL}, describe, NULL},
                                &primitive));
    /* Post-operations are numbered in the order in which sid_attributes_open() appends them. */
    int next = post->activation != SID_NO_ACTIVATION;
    size_t count = 0;
    sid_argument arguments[7];
    arguments[count++] = (sid_argument){DNNL_ARG_SRC, src->data};
    arguments[count++] = (sid_argument){DNNL_ARG_WEIGHTS, primitive->weights};
    arguments[count++] = (sid_argument){DNNL_ARG_DST, dst->data};
    if (l->product.packed.bias) arguments[count++] = (sid_argument){DNNL_ARG_BIAS, l->product.packed.bias};
    if (post->factor)
        arguments[count++] =
            (sid_argument){DNNL_ARG_ATTR_MULTIPLE_POST_OP(next++) | DNNL_ARG_SRC_1, post->factor->data};
    if (post->residual && !accumulate)
        arguments[count++] =
            (sid_argument){DNNL_ARG_ATTR_MULTIPLE_POST_OP(next) | DNNL_ARG_SRC_1, post->residual->data};
    return sid_primitive_run(exec, primitive, arguments, count);
}

/* Works in place, on values that have been rounded to the dtype. */
static void silu(sid_tensor *t, int threads) {
#pragma omp parallel for num_threads(threads)
    for (size_t row = 0; row < sid_rows(t); row++)
        for (size_t i = row * t->stride; i < row * t->stride + t->c; i++) {
            float x = sid_load(t->data, t->dtype, i);
            sid_store(t->data, t->dtype, i, x / (1 + expf(-x)));
        }
}

int sid_cpu_linear(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_linear *linear, const sid_post *post) {
    cpu_linear *l = (cpu_linear *)linear;
    sid_post own = *post;
    if (post->activation == SID_SILU) own.activation = SID_NO_ACTIVATION;
    SID_TRY(l->product.cpu->kernels.onednn_products ? run_onednn(exec, dst, src, l, &own)
                                                    : run_own(exec, dst, src, l, &own));
    if (post->activation == SID_SILU && !sid_measuring(&exec->arena)) silu(dst, exec->backend->threads);
    return SID_OK;
}
