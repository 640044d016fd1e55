/* Matrix products, rows of tokens times packed weights, on the CPU's own kernel or on oneDNN; source and destination may be
 * slices of channels. */
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "core/lock.h"
#include "cpu/primitive.h"

typedef struct {
    sid_linear base;
    sid_product product;
    size_t parts;
    sid_weight *weights, *biases; /* borrowed data until packed; biases NULL: none */
} cpu_linear;

static sid_weight *copy_parts(size_t parts, const sid_weight *const *from) {
    sid_weight *copy = calloc(parts, sizeof *copy);
    for (size_t i = 0; copy && i < parts; i++) copy[i] = *from[i];
    return copy;
}

int sid_cpu_linear_open(sid_backend *backend, sid_linear **linear, size_t in, size_t out, size_t parts,
                        const sid_weight *const *weights, const sid_weight *const *biases) {
    cpu_linear *l = calloc(1, sizeof *l);
    *linear = (sid_linear *)l;
    if (!l) return sid_fail(SID_EMEMORY, "out of memory");
    l->base = (sid_linear){in, out};
    l->product.cpu = (sid_cpu *)backend;
    l->parts = parts;
    l->weights = copy_parts(parts, weights);
    l->biases = biases ? copy_parts(parts, biases) : NULL;
    return l->weights && (l->biases || !biases) ? SID_OK : sid_fail(SID_EMEMORY, "out of memory");
}

void sid_cpu_linear_close(sid_linear **linear) {
    cpu_linear *l = (cpu_linear *)*linear;
    if (!l) return;
    sid_product_close(&l->product);
    free(l->weights);
    free(l->biases);
    free(l);
    *linear = NULL;
}

/* One shape's product. */
typedef struct {
    cpu_linear *linear;
    const sid_tensor *dst, *src;
    const sid_post *post;
} request;

/* Its layouts. */
typedef struct {
    dnnl_memory_desc_t src, dst, weights, bias, factor, residual;
} layouts;

static int rows_layout(dnnl_memory_desc_t *layout, const sid_tensor *t) {
    dnnl_dims_t dims = {(dnnl_dim_t)sid_rows(t), (dnnl_dim_t)t->c}, strides = {(dnnl_dim_t)t->stride, 1};
    SID_DNNL(dnnl_memory_desc_create_with_strides(layout, 2, dims, sid_dnnl_type(t->dtype), strides));
    return SID_OK;
}

static int weights_layout(dnnl_memory_desc_t *layout, const cpu_linear *l, dnnl_format_tag_t tag) {
    dnnl_dims_t dims = {(dnnl_dim_t)l->base.in, (dnnl_dim_t)l->base.out};
    SID_DNNL(dnnl_memory_desc_create_with_tag(layout, 2, dims, sid_dnnl_type(l->product.cpu->base.dtype), tag));
    return SID_OK;
}

static int layouts_open(layouts *m, const request *r) {
    dnnl_dims_t bias_dims = {1, (dnnl_dim_t)r->linear->base.out};
    SID_TRY(rows_layout(&m->src, r->src));
    SID_TRY(rows_layout(&m->dst, r->dst));
    if (r->post->factor) SID_TRY(rows_layout(&m->factor, r->post->factor));
    if (r->post->residual) SID_TRY(rows_layout(&m->residual, r->post->residual));
    SID_TRY(weights_layout(&m->weights, r->linear, dnnl_format_tag_any));
    if (r->linear->biases) SID_DNNL(dnnl_memory_desc_create_with_tag(&m->bias, 2, bias_dims, dnnl_f32, dnnl_ab));
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
    cpu_linear *l = ((const request *)requested)->linear;
    dnnl_memory_desc_t plain;
    SID_TRY(weights_layout(&plain, l, dnnl_ba));
    int status = sid_pack(l->product.cpu, &l->product.packed, l->product.cpu->base.dtype, plain, layout, l->parts, l->weights, l->biases);
    dnnl_memory_desc_destroy(plain);
    return status;
}

static int run_own(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, cpu_linear *l, const sid_post *post) {
    sid_cpu *cpu = l->product.cpu;
    sid_packed *packed = &l->product.packed;
    int status = SID_OK;
    sid_lock(SID_LOCK_PRODUCTS);
    if (!packed->data)
        status = sid_pack_panels(cpu, packed, l->base.in, l->base.out, l->parts, l->weights, l->biases);
    sid_unlock(SID_LOCK_PRODUCTS);
    if (status != SID_OK || sid_measuring(&exec->arena)) return status;
    sid_matmul product = {.rows = sid_rows(src),
                          .in = l->base.in,
                          .out = l->base.out,
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
    SID_TRY(sid_product_prepare(&l->product, key, &(sid_recipe){&(request){l, dst, src, post}, describe, pack},
                                &primitive));
    /* Post-operations are numbered in the order in which sid_attributes_open() appends them. */
    int next = post->activation != SID_NO_ACTIVATION;
    size_t count = 0;
    sid_argument arguments[7];
    arguments[count++] = (sid_argument){DNNL_ARG_SRC, src->data};
    arguments[count++] = (sid_argument){DNNL_ARG_WEIGHTS, primitive->weights};
    arguments[count++] = (sid_argument){DNNL_ARG_DST, dst->data};
    if (l->biases) arguments[count++] = (sid_argument){DNNL_ARG_BIAS, l->product.packed.bias};
    if (post->factor)
        arguments[count++] =
            (sid_argument){DNNL_ARG_ATTR_MULTIPLE_POST_OP(next++) | DNNL_ARG_SRC_1, post->factor->data};
    if (post->residual && !accumulate)
        arguments[count++] =
            (sid_argument){DNNL_ARG_ATTR_MULTIPLE_POST_OP(next) | DNNL_ARG_SRC_1, post->residual->data};
    return sid_primitive_run(exec, primitive, arguments, count);
}

int sid_cpu_linear(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_linear *linear, const sid_post *post) {
    cpu_linear *l = (cpu_linear *)linear;
    return l->product.cpu->kernels.matmul ? run_own(exec, dst, src, l, post) : run_onednn(exec, dst, src, l, post);
}
