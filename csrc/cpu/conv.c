/* Convolutions on oneDNN: NHWC in and out, weights in the layout of the first shape that was asked for. */
#include <stdlib.h>

#include "core/err.h"
#include "core/ops.h"
#include "cpu/primitive.h"

typedef struct {
    sid_conv base;
    sid_cpu *cpu;
    sid_weight weight, bias; /* borrowed until packed */
    sid_packed packed;
    sid_primitive *primitives;
} cpu_conv;

int sid_cpu_conv_open(sid_backend *backend, sid_conv **conv, const sid_conv_shape *shape, const sid_weight *weight,
                      const sid_weight *bias) {
    cpu_conv *c = calloc(1, sizeof *c);
    *conv = (sid_conv *)c;
    if (!c) return sid_fail(SID_EMEMORY, "out of memory");
    c->base.shape = *shape;
    c->cpu = (sid_cpu *)backend;
    c->weight = *weight;
    c->bias = *bias;
    return SID_OK;
}

void sid_cpu_conv_close(sid_conv **conv) {
    cpu_conv *c = (cpu_conv *)*conv;
    if (!c) return;
    sid_primitives_close(&c->primitives);
    sid_packed_close(&c->packed);
    free(c);
    *conv = NULL;
}

/* The layouts of one shape. */
typedef struct {
    dnnl_memory_desc_t src, dst, plain, any, bias;
} layouts;

static int layouts_open(layouts *l, const cpu_conv *c, const sid_tensor *dst, const sid_tensor *src) {
    const sid_conv_shape *s = &c->base.shape;
    dnnl_data_type_t type = sid_dnnl_type(c->cpu->base.dtype);
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

static int describe(dnnl_primitive_desc_t *description, const cpu_conv *c, const layouts *l, const sid_post *post,
                    int accumulate) {
    const sid_conv_shape *s = &c->base.shape;
    dnnl_dims_t strides = {(dnnl_dim_t)s->stride, (dnnl_dim_t)s->stride}, dilates = {0, 0};
    dnnl_dims_t before = {(dnnl_dim_t)s->pad_before, (dnnl_dim_t)s->pad_before};
    dnnl_dims_t after = {(dnnl_dim_t)s->pad_after, (dnnl_dim_t)s->pad_after};
    dnnl_primitive_attr_t attributes;
    SID_TRY(sid_attributes_open(&attributes, post, accumulate, l->dst, l->dst));
    dnnl_status_t status = dnnl_convolution_forward_primitive_desc_create(
        description, c->cpu->engine, dnnl_forward_inference, dnnl_convolution_direct, l->src,
        c->packed.layout ? c->packed.layout : l->any, l->bias, l->dst, strides, dilates, before, after, attributes);
    dnnl_primitive_attr_destroy(attributes);
    return status == dnnl_success ? SID_OK : sid_dnnl_fail("convolution", status);
}

static int create(cpu_conv *c, const size_t *key, const sid_tensor *dst, const sid_tensor *src, const sid_post *post,
                  int accumulate, sid_primitive **primitive) {
    layouts l = {0};
    dnnl_primitive_desc_t description = NULL;
    int status = layouts_open(&l, c, dst, src);
    if (status == SID_OK) status = describe(&description, c, &l, post, accumulate);
    if (status == SID_OK && !c->packed.layout)
        status = sid_pack(c->cpu, &c->packed, l.plain, dnnl_primitive_desc_query_md(description, dnnl_query_weights_md, 0),
                          1, &c->weight, &c->bias);
    if (status == SID_OK) status = sid_primitive_add(&c->primitives, key, description, primitive);
    else if (description) dnnl_primitive_desc_destroy(description);
    layouts_close(&l);
    return status;
}

static int prepare(cpu_conv *c, const sid_tensor *dst, const sid_tensor *src, const sid_post *post, int accumulate,
                   sid_primitive **primitive) {
    size_t key[SID_KEY_SIZE] = {src->n,          src->h, src->w, dst->dtype, post->activation, post->factor != NULL,
                                post->residual != NULL, (size_t)accumulate};
    pthread_mutex_lock(&c->cpu->lock);
    int status = SID_OK, before = sid_threads_enter(c->cpu);
    *primitive = sid_primitive_find(c->primitives, key);
    if (!*primitive) status = create(c, key, dst, src, post, accumulate, primitive);
    sid_threads_leave(before);
    pthread_mutex_unlock(&c->cpu->lock);
    return status;
}

static int upsample(sid_exec *exec, sid_tensor *dst, const sid_tensor *src) {
    const sid_cpu *cpu = (const sid_cpu *)exec->backend;
    SID_TRY(sid_new(exec, dst, src->n, 2 * src->h, 2 * src->w, src->c));
    if (!sid_measuring(&exec->arena))
        cpu->kernels.upsample(dst->data, src->data, src->dtype, src->n, src->h, src->w, src->c, cpu->base.threads);
    return SID_OK;
}

int sid_cpu_conv(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_conv *conv, const sid_post *post) {
    cpu_conv *c = (cpu_conv *)conv;
    sid_primitive *primitive;
    sid_tensor doubled;
    size_t mark = sid_arena_mark(&exec->arena);
    int accumulate = post->residual == dst;
    if (c->base.shape.upsample) {
        SID_TRY(upsample(exec, &doubled, src));
        src = &doubled;
    }
    SID_TRY(prepare(c, dst, src, post, accumulate, &primitive));
    size_t count = 0;
    sid_argument arguments[6];
    arguments[count++] = (sid_argument){DNNL_ARG_SRC, src->data};
    arguments[count++] = (sid_argument){DNNL_ARG_WEIGHTS, c->packed.data};
    arguments[count++] = (sid_argument){DNNL_ARG_BIAS, c->packed.bias};
    arguments[count++] = (sid_argument){DNNL_ARG_DST, dst->data};
    if (post->residual && !accumulate)
        arguments[count++] = (sid_argument){DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, post->residual->data};
    SID_TRY(sid_primitive_run(exec, primitive, arguments, count));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}
