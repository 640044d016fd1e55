/* Matrix products on oneDNN: rows of tokens times packed weights; source and destination may be slices of channels. */
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "cpu/primitive.h"

typedef struct {
    sid_linear base;
    sid_cpu *cpu;
    size_t parts;
    sid_weight *weights, *biases; /* borrowed data until packed; biases NULL: none */
    sid_packed packed;
    sid_primitive *primitives;
    int has_bias;
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
    l->cpu = (sid_cpu *)backend;
    l->parts = parts;
    l->has_bias = biases != NULL;
    l->weights = copy_parts(parts, weights);
    l->biases = biases ? copy_parts(parts, biases) : NULL;
    return l->weights && (l->biases || !biases) ? SID_OK : sid_fail(SID_EMEMORY, "out of memory");
}

void sid_cpu_linear_close(sid_linear **linear) {
    cpu_linear *l = (cpu_linear *)*linear;
    if (!l) return;
    sid_primitives_close(&l->primitives);
    sid_packed_close(&l->packed);
    free(l->weights);
    free(l->biases);
    free(l);
    *linear = NULL;
}

static int rows_layout(dnnl_memory_desc_t *layout, const sid_tensor *t) {
    dnnl_dims_t dims = {(dnnl_dim_t)sid_rows(t), (dnnl_dim_t)t->c}, strides = {(dnnl_dim_t)t->stride, 1};
    SID_DNNL(dnnl_memory_desc_create_with_strides(layout, 2, dims, sid_dnnl_type(t->dtype), strides));
    return SID_OK;
}

/* The layouts of one shape. */
typedef struct {
    dnnl_memory_desc_t src, dst, plain, any, bias, factor, residual;
} layouts;

static int layouts_open(layouts *m, const cpu_linear *l, const sid_tensor *dst, const sid_tensor *src,
                        const sid_post *post) {
    dnnl_data_type_t type = sid_dnnl_type(l->cpu->base.dtype);
    dnnl_dims_t weight_dims = {(dnnl_dim_t)l->base.in, (dnnl_dim_t)l->base.out};
    dnnl_dims_t bias_dims = {1, (dnnl_dim_t)l->base.out};
    SID_TRY(rows_layout(&m->src, src));
    SID_TRY(rows_layout(&m->dst, dst));
    if (post->factor) SID_TRY(rows_layout(&m->factor, post->factor));
    if (post->residual) SID_TRY(rows_layout(&m->residual, post->residual));
    SID_DNNL(dnnl_memory_desc_create_with_tag(&m->plain, 2, weight_dims, type, dnnl_ba));
    SID_DNNL(dnnl_memory_desc_create_with_tag(&m->any, 2, weight_dims, type, dnnl_format_tag_any));
    if (l->has_bias) SID_DNNL(dnnl_memory_desc_create_with_tag(&m->bias, 2, bias_dims, dnnl_f32, dnnl_ab));
    return SID_OK;
}

static void layouts_close(layouts *m) {
    dnnl_memory_desc_t all[] = {m->src, m->dst, m->plain, m->any, m->bias, m->factor, m->residual};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]) dnnl_memory_desc_destroy(all[i]);
}

static int describe(dnnl_primitive_desc_t *description, const cpu_linear *l, const layouts *m, const sid_post *post,
                    int accumulate, const_dnnl_memory_desc_t weights) {
    dnnl_primitive_attr_t attributes;
    SID_TRY(sid_attributes_open(&attributes, post, accumulate, m->factor, m->residual));
    dnnl_status_t status = dnnl_matmul_primitive_desc_create(description, l->cpu->engine, m->src, weights, m->bias,
                                                             m->dst, attributes);
    dnnl_primitive_attr_destroy(attributes);
    return status == dnnl_success ? SID_OK : sid_dnnl_fail("matrix product", status);
}

static int create(cpu_linear *l, const size_t *key, const sid_tensor *dst, const sid_tensor *src, const sid_post *post,
                  int accumulate, sid_primitive **primitive) {
    layouts m = {0};
    dnnl_primitive_desc_t description = NULL;
    int status = layouts_open(&m, l, dst, src, post);
    if (status == SID_OK)
        status = describe(&description, l, &m, post, accumulate, l->packed.layout ? l->packed.layout : m.any);
    if (status == SID_OK && l->packed.layout && sid_is_reference(description)) { /* it wants another layout */
        dnnl_primitive_desc_destroy(description);
        description = NULL;
        status = describe(&description, l, &m, post, accumulate, m.any);
    }
    if (status == SID_OK && !l->packed.layout)
        status = sid_pack(l->cpu, &l->packed, m.plain, dnnl_primitive_desc_query_md(description, dnnl_query_weights_md, 0),
                          l->parts, l->weights, l->biases);
    if (status == SID_OK) status = sid_primitive_add(l->cpu, &l->primitives, key, description, &l->packed, primitive);
    else if (description) dnnl_primitive_desc_destroy(description);
    layouts_close(&m);
    return status;
}

static int prepare(cpu_linear *l, const sid_tensor *dst, const sid_tensor *src, const sid_post *post, int accumulate,
                   sid_primitive **primitive) {
    size_t key[SID_KEY_SIZE] = {sid_rows(src),
                                src->stride,
                                dst->stride,
                                dst->dtype,
                                post->activation,
                                post->factor ? post->factor->stride : 0,
                                post->residual ? post->residual->stride : 0,
                                (size_t)accumulate};
    pthread_mutex_lock(&l->cpu->lock);
    int status = SID_OK, before = sid_threads_enter(l->cpu);
    *primitive = sid_primitive_find(l->primitives, key);
    if (!*primitive) status = create(l, key, dst, src, post, accumulate, primitive);
    sid_threads_leave(before);
    pthread_mutex_unlock(&l->cpu->lock);
    return status;
}

int sid_cpu_linear(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_linear *linear, const sid_post *post) {
    cpu_linear *l = (cpu_linear *)linear;
    sid_primitive *primitive;
    int accumulate = post->residual == dst;
    SID_TRY(prepare(l, dst, src, post, accumulate, &primitive));
    /* Post-operations are numbered in the order in which sid_attributes_open() appends them. */
    int next = post->activation != SID_NO_ACTIVATION;
    size_t count = 0;
    sid_argument arguments[7];
    arguments[count++] = (sid_argument){DNNL_ARG_SRC, src->data};
    arguments[count++] = (sid_argument){DNNL_ARG_WEIGHTS, primitive->weights};
    arguments[count++] = (sid_argument){DNNL_ARG_DST, dst->data};
    if (l->has_bias) arguments[count++] = (sid_argument){DNNL_ARG_BIAS, l->packed.bias};
    if (post->factor)
        arguments[count++] =
            (sid_argument){DNNL_ARG_ATTR_MULTIPLE_POST_OP(next++) | DNNL_ARG_SRC_1, post->factor->data};
    if (post->residual && !accumulate)
        arguments[count++] =
            (sid_argument){DNNL_ARG_ATTR_MULTIPLE_POST_OP(next) | DNNL_ARG_SRC_1, post->residual->data};
    return sid_primitive_run(exec, primitive, arguments, count);
}
