/* oneDNN primitives, created once for each shape, and weights packed in the layouts that these choose. */
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

/* One primitive of a layer, for one shape and team. A layer has a list of them, the most recently used one first.
 * Lists and packed weights are guarded by SID_LOCK_PRODUCTS. */
typedef struct sid_primitive {
    size_t key[SID_KEY_SIZE];
    int team; /* the threads that it was created for */
    dnnl_primitive_desc_t description;
    dnnl_primitive_t handle;
    void *weights; /* in the layout that it reads; NULL if it has none */
    size_t scratch;
    size_t users; /* how often it is prepared but not run: such a primitive is not dropped */
    struct sid_primitive *next;
} sid_primitive;

/* Weights in the layout that suits the usual shape, and copies in those that other shapes require. */
typedef struct sid_packed {
    dnnl_memory_desc_t layout; /* NULL for panels */
    void *data;
    float *bias; /* NULL if there is none */
    struct sid_packed *next;
} sid_packed;

/* What convolutions and matrix products have in common: weights, and a primitive for each shape. */
typedef struct {
    sid_cpu *cpu;
    sid_packed packed;
    sid_primitive *primitives;
} sid_product;

/* How a product's primitive for one request is made. */
typedef struct {
    const void *request;
    /* `weights` is their layout, or NULL where oneDNN may choose. */
    int (*describe)(const void *request, dnnl_primitive_desc_t *description, const_dnnl_memory_desc_t weights);
    /* Calls sid_pack() with the product's weights. Only sid_product_pack() needs it. */
    int (*pack)(const void *request, const_dnnl_memory_desc_t layout);
} sid_recipe;

/* An argument of an execution: its oneDNN number and memory. */
typedef struct {
    int number;
    void *data;
} sid_argument;

/* Sets the error text for a failed oneDNN call. */
int sid_dnnl_fail(const char *what, dnnl_status_t status);
#define SID_DNNL(call)                                                                     \
    do {                                                                                   \
        dnnl_status_t sid_dnnl_status = (call);                                            \
        if (sid_dnnl_status != dnnl_success) return sid_dnnl_fail(#call, sid_dnnl_status); \
    } while (0)

static inline dnnl_data_type_t sid_dnnl_type(sid_dtype dtype) { return dtype == SID_F32 ? dnnl_f32 : dnnl_bf16; }

/* Creates the attributes for `post`: activation, factor and residual in this order. Layouts may be NULL where
 * unused. */
int sid_attributes_open(dnnl_primitive_attr_t *attributes, const sid_post *post, int accumulate,
                        const_dnnl_memory_desc_t factor, const_dnnl_memory_desc_t residual);

/* Packs the weights in the layout that oneDNN chooses for the request. */
int sid_product_pack(sid_product *product, const sid_recipe *recipe);
/* Finds the product's primitive of that key, which is to be run once, or makes it at its first use. */
int sid_product_prepare(sid_product *product, const size_t *key, const sid_recipe *recipe, sid_primitive **primitive);
void sid_product_close(sid_product *product);

/* Takes the scratch and, unless the arena measures, executes. Ends the use that sid_product_prepare() began. */
int sid_primitive_run(sid_exec *exec, sid_primitive *primitive, const sid_argument *arguments, size_t count);

/* Stacks the weights as dense rows of that dtype in C order, which is the layout `plain`, and packs them in
 * `layout`, which has the same dtype. */
int sid_pack(sid_cpu *cpu, sid_packed *packed, sid_dtype dtype, const_dnnl_memory_desc_t plain,
             const_dnnl_memory_desc_t layout, size_t parts, const sid_weight *const *weights);
/* Packs the stacked weights (out, in) in the panels that the kernel matmul reads. */
int sid_pack_panels(sid_cpu *cpu, sid_packed *packed, const sid_linear_shape *shape, size_t parts,
                    const sid_weight *const *weights);
int sid_pack_bias(sid_packed *packed, size_t parts, const sid_weight *const *biases);
/* Takes memory for packed weights and adds it to the backend's packed_bytes. */
int sid_take_packed(sid_cpu *cpu, void **data, size_t size);
/* Sets *stacked to all weights as dense rows, one below the other; the caller frees it. */
int sid_stack(const sid_cpu *cpu, void **stacked, sid_dtype dtype, size_t parts, const sid_weight *const *weights);

/* backend.c puts these into its table. */
int sid_cpu_conv_open(sid_backend *, sid_conv **, const sid_conv_shape *, const sid_weight *, const sid_weight *);
void sid_cpu_conv_close(sid_conv **);
int sid_cpu_conv(sid_exec *, sid_tensor *, const sid_tensor *, sid_conv *, const sid_post *);
int sid_cpu_linear_open(sid_backend *, sid_linear **, const sid_linear_shape *, size_t, const sid_weight *const *,
                        const sid_weight *const *);
void sid_cpu_linear_close(sid_linear **);
int sid_cpu_linear(sid_exec *, sid_tensor *, const sid_tensor *, sid_linear *, const sid_post *);

#endif
