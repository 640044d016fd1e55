/* A convolution as oneDNN computes it: NHWC in and out, weights in the layout of the first shape that was asked for. */
#include <stdlib.h>

#include "core/err.h"
#include "cpu/direct.h"

struct sid_direct {
    sid_cpu *cpu;
    sid_direct_shape shape;
    sid_weight weight, bias; /* borrowed until packed */
    sid_packed packed;
    sid_primitive *primitives;
};

int sid_direct_open(sid_cpu *cpu, sid_direct **direct, const sid_direct_shape *shape, const sid_weight *weight,
                    const sid_weight *bias) {
    sid_direct *d = *direct = calloc(1, sizeof *d);
    if (!d) return sid_fail(SID_EMEMORY, "out of memory");
    *d = (sid_direct){.cpu = cpu, .shape = *shape, .weight = *weight, .bias = *bias};
    return SID_OK;
}

void sid_direct_close(sid_direct **direct) {
    sid_direct *d = *direct;
    if (!d) return;
    sid_primitives_close(&d->primitives);
    sid_packed_close(&d->packed);
    free(d);
    *direct = NULL;
}

/* The layouts of one shape. */
typedef struct {
    dnnl_memory_desc_t src, dst, plain, any, bias;
} layouts;

static int layouts_open(layouts *l, const sid_direct *d, const sid_tensor *dst, const sid_tensor *src) {
    const sid_direct_shape *s = &d->shape;
    dnnl_data_type_t type = sid_dnnl_type(d->cpu->base.dtype);
    dnnl_dims_t src_dims = {(dnnl_dim_t)src->n, (dnnl_dim_t)src->c, (dnnl_dim_t)src->h, (dnnl_dim_t)src->w};
    dnnl_dims_t dst_dims = {(dnnl_dim_t)dst->n, (dnnl_dim_t)dst->c, (dnnl_dim_t)dst->h, (dnnl_dim_t)dst->w};
    dnnl_dims_t weight_dims = {(dnnl_dim_t)s->out, (dnnl_dim_t)s->in, (dnnl_dim_t)s->kernel, (dnnl_dim_t)s->kernel};
    dnnl_dims_t bias_dims = {(dnnl_dim_t)s->out};
    SID_DNNL(dnnl_memory_desc_create_with_tag(&l->src, 4, src_dims, type, dnnl_nhwc));
    SID_DNNL(dnnl_memory_desc_create_with_tag(&l->dst, 4, dst_dims, sid_dnnl_type(dst->dtype), dnnl_nhwc));
    SID_DNNL(dnnl_memory_desc_create_with_tag(&l->plain, 4, weight_dims, type, dnnl_oihw));
    SID_DNNL(dnnl_memory_desc_create_with_tag(&l->any, 4, weight_dims, type, dnnl_format_tag_any));
    SID_DNNL(dnnl_memory_desc_create_with_tag(&l->bias, 1, bias_dims, dnnl_f32, dnnl_x));
    return SID_OK;
}

static void layouts_close(layouts *l) {
    dnnl_memory_desc_t all[] = {l->src, l->dst, l->plain, l->any, l->bias};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]) dnnl_memory_desc_destroy(all[i]);
}

static int describe(dnnl_primitive_desc_t *description, const sid_direct *d, const layouts *l, const sid_post *post,
                    int accumulate, const_dnnl_memory_desc_t weights) {
    const sid_direct_shape *s = &d->shape;
    dnnl_dims_t strides = {(dnnl_dim_t)s->stride, (dnnl_dim_t)s->stride}, dilates = {0, 0};
    dnnl_dims_t before = {(dnnl_dim_t)s->top, (dnnl_dim_t)s->left};
    dnnl_dims_t after = {(dnnl_dim_t)s->bottom, (dnnl_dim_t)s->right};
    dnnl_primitive_attr_t attributes;
    SID_TRY(sid_attributes_open(&attributes, post, accumulate, l->dst, l->dst));
    dnnl_status_t status = dnnl_convolution_forward_primitive_desc_create(
        description, d->cpu->engine, dnnl_forward_inference, dnnl_convolution_direct, l->src,
        weights, l->bias, l->dst, strides, dilates, before, after, attributes);
    dnnl_primitive_attr_destroy(attributes);
    return status == dnnl_success ? SID_OK : sid_dnnl_fail("convolution", status);
}

static int create(sid_direct *d, const size_t *key, const sid_tensor *dst, const sid_tensor *src, const sid_post *post,
                  int accumulate, sid_primitive **primitive) {
    layouts l = {0};
    dnnl_primitive_desc_t description = NULL;
    int status = layouts_open(&l, d, dst, src);
    if (status == SID_OK)
        status = describe(&description, d, &l, post, accumulate, d->packed.layout ? d->packed.layout : l.any);
    if (status == SID_OK && d->packed.layout && sid_is_reference(description)) { /* it wants another layout */
        dnnl_primitive_desc_destroy(description);
        description = NULL;
        status = describe(&description, d, &l, post, accumulate, l.any);
    }
    if (status == SID_OK && !d->packed.layout)
        status = sid_pack(d->cpu, &d->packed, l.plain, dnnl_primitive_desc_query_md(description, dnnl_query_weights_md, 0),
                          1, &d->weight, &d->bias);
    if (status == SID_OK) status = sid_primitive_add(d->cpu, &d->primitives, key, description, &d->packed, primitive);
    else if (description) dnnl_primitive_desc_destroy(description);
    layouts_close(&l);
    return status;
}

static int prepare(sid_direct *d, const sid_tensor *dst, const sid_tensor *src, const sid_post *post, int accumulate,
                   sid_primitive **primitive) {
    size_t key[SID_KEY_SIZE] = {src->n,          src->h, src->w, dst->dtype, post->activation, post->factor != NULL,
                                post->residual != NULL, (size_t)accumulate};
    pthread_mutex_lock(&d->cpu->lock);
    int status = SID_OK, before = sid_threads_enter(d->cpu);
    *primitive = sid_primitive_find(d->primitives, key);
    if (!*primitive) status = create(d, key, dst, src, post, accumulate, primitive);
    sid_threads_leave(before);
    pthread_mutex_unlock(&d->cpu->lock);
    return status;
}

int sid_direct_run(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_direct *d, const sid_post *post) {
    sid_primitive *primitive;
    int accumulate = post->residual == dst;
    SID_TRY(prepare(d, dst, src, post, accumulate, &primitive));
    size_t count = 0;
    sid_argument arguments[6];
    arguments[count++] = (sid_argument){DNNL_ARG_SRC, src->data};
    arguments[count++] = (sid_argument){DNNL_ARG_WEIGHTS, primitive->weights};
    arguments[count++] = (sid_argument){DNNL_ARG_BIAS, d->packed.bias};
    arguments[count++] = (sid_argument){DNNL_ARG_DST, dst->data};
    if (post->residual && !accumulate)
        arguments[count++] = (sid_argument){DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, post->residual->data};
    return sid_primitive_run(exec, primitive, arguments, count);
}
