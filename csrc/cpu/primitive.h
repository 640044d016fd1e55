/* oneDNN primitives, created once per shape, and weights packed into the layout that they like. */
#ifndef SID_CPU_PRIMITIVE_H
#define SID_CPU_PRIMITIVE_H

#include <oneapi/dnnl/dnnl.h>

#include "core/backend.h"
#include "cpu/kernels.h"

typedef struct {
    sid_backend base;
    sid_kernels kernels;
    dnnl_engine_t engine;
} sid_cpu;

#define SID_KEY_SIZE 8

/* One primitive of a layer, for one shape and team; a layer has a list of them, the last used one first. Lists and
 * packed weights are guarded by SID_LOCK_PRODUCTS. */
typedef struct sid_primitive {
    size_t key[SID_KEY_SIZE];
    int team; /* threads that it was created for */
    dnnl_primitive_desc_t description;
    dnnl_primitive_t handle;
    void *weights; /* in the layout that it wants; NULL where it has none */
    size_t scratch;
    size_t users; /* prepared and not yet run: such a one is not dropped */
    struct sid_primitive *next;
} sid_primitive;

/* Weights in the layout that the usual shape wants, and copies in those that others insist on. */
typedef struct sid_packed {
    dnnl_memory_desc_t layout; /* NULL for panels */
    void *data;
    float *bias; /* NULL: none */
    struct sid_packed *next;
} sid_packed;

/* What convolutions and matrix products have in common: weights, and a primitive per shape. */
typedef struct {
    sid_cpu *cpu;
    sid_packed packed;
    sid_primitive *primitives;
} sid_product;

/* How a product's primitive for one request is made. */
typedef struct {
    const void *request;
    /* weights: their layout, or NULL where oneDNN may choose. */
    int (*describe)(const void *request, dnnl_primitive_desc_t *description, const_dnnl_memory_desc_t weights);
    /* Calls sid_pack() with the product's weights; for sid_product_pack() alone. */
    int (*pack)(const void *request, const_dnnl_memory_desc_t layout);
} sid_recipe;

/* An argument of an execution: its oneDNN number and memory. */
typedef struct {
    int number;
    void *data;
} sid_argument;

/* Text of a failed oneDNN call. */
int sid_dnnl_fail(const char *what, dnnl_status_t status);
#define SID_DNNL(call)                                                                     \
    do {                                                                                   \
        dnnl_status_t sid_dnnl_status = (call);                                            \
        if (sid_dnnl_status != dnnl_success) return sid_dnnl_fail(#call, sid_dnnl_status); \
    } while (0)

static inline dnnl_data_type_t sid_dnnl_type(sid_dtype dtype) { return dtype == SID_F32 ? dnnl_f32 : dnnl_bf16; }

/* The attributes that carry `post`: activation, factor and residual in this order. Layouts may be NULL where unused. */
int sid_attributes_open(dnnl_primitive_attr_t *attributes, const sid_post *post, int accumulate,
                        const_dnnl_memory_desc_t factor, const_dnnl_memory_desc_t residual);

/* Packs the weights in the layout that oneDNN chooses for the request. */
int sid_product_pack(sid_product *product, const sid_recipe *recipe);
/* The product's primitive of that key, to be run once: found, or made at its first use. */
int sid_product_prepare(sid_product *product, const size_t *key, const sid_recipe *recipe, sid_primitive **primitive);
void sid_product_close(sid_product *product);

/* Takes the scratch and, unless measuring, executes; ends the use that sid_product_prepare() began. */
int sid_primitive_run(sid_exec *exec, sid_primitive *primitive, const sid_argument *arguments, size_t count);

/* Packs the stacked weights (as dtype and dense rows in C order: the layout `plain`) into `layout`, of the same dtype.
 */
int sid_pack(sid_cpu *cpu, sid_packed *packed, sid_dtype dtype, const_dnnl_memory_desc_t plain,
             const_dnnl_memory_desc_t layout, size_t parts, const sid_weight *const *weights);
/* Packs the stacked weights (out, in) as the panels that the kernel matmul reads. */
int sid_pack_panels(sid_cpu *cpu, sid_packed *packed, const sid_linear_shape *shape, size_t parts,
                    const sid_weight *const *weights);
int sid_pack_bias(sid_packed *packed, size_t parts, const sid_weight *const *biases);
/* Memory for packed weights, counted as such. */
int sid_take_packed(sid_cpu *cpu, void **data, size_t size);
/* *stacked: all weights as dense rows, one below the other; the caller frees it. */
int sid_stack(const sid_cpu *cpu, void **stacked, sid_dtype dtype, size_t parts, const sid_weight *const *weights);

/* Filled into the backend's table by backend.c. */
int sid_cpu_conv_open(sid_backend *, sid_conv **, const sid_conv_shape *, const sid_weight *, const sid_weight *);
void sid_cpu_conv_close(sid_conv **);
int sid_cpu_conv(sid_exec *, sid_tensor *, const sid_tensor *, sid_conv *, const sid_post *);
int sid_cpu_linear_open(sid_backend *, sid_linear **, const sid_linear_shape *, size_t, const sid_weight *const *,
                        const sid_weight *const *);
void sid_cpu_linear_close(sid_linear **);
int sid_cpu_linear(sid_exec *, sid_tensor *, const sid_tensor *, sid_linear *, const sid_post *);

#endif
