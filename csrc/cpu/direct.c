/* A convolution by oneDNN: the input and output are NHWC, and the weights have the layout that suits the usual
 * shape. */
#include <stdlib.h>

#include "core/err.h"
#include "cpu/direct.h"

struct sid_direct {
    sid_product product;
    sid_direct_shape shape;
};

void sid_direct_close(sid_direct **direct) {
    if (!*direct) return;
    sid_product_close(&(*direct)->product);
    free(*direct);
    *direct = NULL;
}

/* A convolution of one shape. */
typedef struct {
    sid_direct *direct;
    const sid_tensor *dst, *src;
    const sid_post *post;
    const sid_weight *weight; /* what pack() packs; NULL at a run */
} request;

/* The layouts of a request's tensors. */
typedef struct {
    dnnl_memory_desc_t src, dst, weights, bias;
} layouts;

static int weights_layout(dnnl_memory_desc_t *layout, const sid_direct *d, dnnl_format_tag_t tag) {
    dnnl_dim_t kernel = (dnnl_dim_t)d->shape.kernel;
    dnnl_dims_t dims = {(dnnl_dim_t)d->shape.out, (dnnl_dim_t)d->shape.in, kernel, kernel};
    SID_DNNL(dnnl_memory_desc_create_with_tag(layout, 4, dims, sid_dnnl_type(d->product.cpu->base.dtype), tag));
    return SID_OK;
}

static int map_layout(dnnl_memory_desc_t *layout, const sid_tensor *t) {
    dnnl_dims_t dims = {(dnnl_dim_t)t->n, (dnnl_dim_t)t->c, (dnnl_dim_t)t->h, (dnnl_dim_t)t->w};
    SID_DNNL(dnnl_memory_desc_create_with_tag(layout, 4, dims, sid_dnnl_type(t->dtype), dnnl_nhwc));
    return SID_OK;
}

static int layouts_open(layouts *l, const request *r) {
    dnnl_dims_t bias_dims = {(dnnl_dim_t)r->direct->shape.out};
    SID_TRY(map_layout(&l->src, r->src));
    SID_TRY(map_layout(&l->dst, r->dst));
    SID_TRY(weights_layout(&l->weights, r->direct, dnnl_format_tag_any));
    SID_DNNL(dnnl_memory_desc_create_with_tag(&l->bias, 1, bias_dims, dnnl_f32, dnnl_x));
    return SID_OK;
}

static void layouts_close(layouts *l) {
    dnnl_memory_desc_t all[] = {l->src, l->dst, l->weights, l->bias};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]) dnnl_memory_desc_destroy(all[i]);
}

static int describe_with(const request *r, dnnl_primitive_desc_t *description, const layouts *l,
                         const_dnnl_memory_desc_t weights) {
    const sid_direct_shape *s = &r->direct->shape;
    dnnl_dims_t strides = {(dnnl_dim_t)s->stride, (dnnl_dim_t)s->stride}, dilates = {0, 0};
    dnnl_dims_t before = {(dnnl_dim_t)s->top, (dnnl_dim_t)s->left};
    dnnl_dims_t after = {(dnnl_dim_t)s->bottom, (dnnl_dim_t)s->right};
    dnnl_primitive_attr_t attributes;
    SID_TRY(sid_attributes_open(&attributes, r->post, r->post->residual == r->dst, l->dst, l->dst));
    dnnl_status_t status =
        dnnl_convolution_forward_primitive_desc_create(description, r->direct->product.cpu->engine,
                                                       dnnl_forward_inference, dnnl_convolution_direct, l->src,
                                                       weights ? weights : l->weights, l->bias, l->dst, strides,
                                                       dilates, before, after, attributes);
    dnnl_primitive_attr_destroy(attributes);
    return status == dnnl_success ? SID_OK : sid_dnnl_fail("convolution", status);
}

static int describe(const void *requested, dnnl_primitive_desc_t *description, const_dnnl_memory_desc_t weights) {
    layouts l = {0};
    int status = layouts_open(&l, requested);
    if (status == SID_OK) status = describe_with(requested, description, &l, weights);
    layouts_close(&l);
    return status;
}

static int pack(const void *requested, const_dnnl_memory_desc_t layout) {
    const request *r = requested;
    sid_product *product = &r->direct->product;
    sid_dtype dtype = product->cpu->base.dtype;
    dnnl_memory_desc_t plain;
    SID_TRY(weights_layout(&plain, r->direct, dnnl_oihw));
    int status = sid_pack(product->cpu, &product->packed, dtype, plain, layout, 1, &r->weight);
    dnnl_memory_desc_destroy(plain);
    return status;
}

static size_t size_after(size_t size, size_t before, size_t after, const sid_direct_shape *s) {
    return (size + before + after - s->kernel) / s->stride + 1;
}

int sid_direct_open(sid_cpu *cpu, sid_direct **direct, const sid_direct_shape *s, const sid_weight *weight,
                    const sid_weight *bias) {
    sid_direct *d = *direct = calloc(1, sizeof *d);
    if (!d) return sid_fail(SID_EMEMORY, "out of memory");
    *d = (sid_direct){.product = {.cpu = cpu}, .shape = *s};
    size_t height = size_after(s->height, s->top, s->bottom, s), width = size_after(s->width, s->left, s->right, s);
    sid_tensor src = sid_dense(NULL, cpu->base.dtype, 1, s->height, s->width, s->in);
    sid_tensor dst = sid_dense(NULL, cpu->base.dtype, 1, height, width, s->out);
    SID_TRY(sid_pack_bias(&d->product.packed, 1, &bias));
    return sid_product_pack(&d->product,
                            &(sid_recipe){&(request){d, &dst, &src, &(sid_post){0}, weight}, describe, pack});
}

int sid_direct_run(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_direct *d, const sid_post *post) {
    int accumulate = post->residual == dst;
    size_t key[SID_KEY_SIZE] = {
        src->n, src->h, src->w, dst->dtype, post->residual != NULL, (size_t)accumulate, (size_t)post->relu};
    sid_primitive *primitive;
    SID_TRY(sid_product_prepare(&d->product, key, &(sid_recipe){&(request){d, dst, src, post, NULL}, describe, NULL},
                                &primitive));
    size_t count = 0;
    sid_argument arguments[6];
    arguments[count++] = (sid_argument){DNNL_ARG_SRC, src->data};
    arguments[count++] = (sid_argument){DNNL_ARG_WEIGHTS, primitive->weights};
    arguments[count++] = (sid_argument){DNNL_ARG_BIAS, d->product.packed.bias};
    arguments[count++] = (sid_argument){DNNL_ARG_DST, dst->data};
    if (post->residual && !accumulate)
        arguments[count++] = (sid_argument){DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, post->residual->data};
    return sid_primitive_run(exec, primitive, arguments, count);
}
