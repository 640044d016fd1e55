#include "cpu/primitive.h"

#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "core/lock.h"
#include "cpu/team.h"

#define MAX_ARGUMENTS 8
/* How many shapes a layer keeps: more than most runs use, and few where images of every size come. */
#define MOST_SHAPES 16

int sid_dnnl_fail(const char *what, dnnl_status_t status) {
    const char *why = status == dnnl_out_of_memory       ? "out of memory"
                      : status == dnnl_unimplemented     ? "not implemented for this shape or CPU"
                      : status == dnnl_invalid_arguments ? "invalid arguments"
                                                         : "run-time error";
    return sid_fail(status == dnnl_out_of_memory ? SID_EMEMORY : SID_EINTERNAL, "oneDNN: %s (%.60s)", why, what);
}

static int append_post(dnnl_post_ops_t ops, const sid_post *post, int accumulate, const_dnnl_memory_desc_t factor,
                       const_dnnl_memory_desc_t residual) {
    if (post->activation == SID_GELU_ERF) SID_DNNL(dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_gelu_erf, 0, 0));
    if (post->activation == SID_GELU_QUICK) SID_DNNL(dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_swish, 1.702f, 0));
    if (post->factor) SID_DNNL(dnnl_post_ops_append_binary(ops, dnnl_binary_mul, factor));
    if (accumulate) SID_DNNL(dnnl_post_ops_append_sum(ops, 1, 0, dnnl_data_type_undef));
    else if (post->residual) SID_DNNL(dnnl_post_ops_append_binary(ops, dnnl_binary_add, residual));
    if (post->relu) SID_DNNL(dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_relu, 0, 0));
    return SID_OK;
}

int sid_attributes_open(dnnl_primitive_attr_t *attributes, const sid_post *post, int accumulate,
                        const_dnnl_memory_desc_t factor, const_dnnl_memory_desc_t residual) {
    dnnl_post_ops_t ops = NULL;
    int status = SID_EINTERNAL;
    *attributes = NULL;
    if (dnnl_primitive_attr_create(attributes) != dnnl_success || dnnl_post_ops_create(&ops) != dnnl_success ||
        dnnl_primitive_attr_set_scratchpad_mode(*attributes, dnnl_scratchpad_mode_user) != dnnl_success)
        status = sid_fail(SID_EMEMORY, "oneDNN: no attributes could be made");
    else if ((status = append_post(ops, post, accumulate, factor, residual)) == SID_OK &&
             dnnl_primitive_attr_set_post_ops(*attributes, ops) != dnnl_success)
        status = sid_fail(SID_EINTERNAL, "oneDNN: post-operations were refused");
    dnnl_post_ops_destroy(ops);
    if (status != SID_OK) {
        dnnl_primitive_attr_destroy(*attributes);
        *attributes = NULL;
    }
    return status;
}

/* Returns the primitive of that key and team, which becomes the first of the list; NULL if there is none. */
static sid_primitive *find(sid_primitive **list, const size_t *key, int team) {
    for (sid_primitive **link = list; *link; link = &(*link)->next) {
        sid_primitive *p = *link;
        if (p->team != team || memcmp(p->key, key, sizeof p->key) != 0) continue;
        *link = p->next;
        p->next = *list;
        return *list = p;
    }
    return NULL;
}

/* Whether oneDNN has nothing better for this than its reference code, which is a hundred times slower. */
static int is_reference(const_dnnl_primitive_desc_t description) {
    const char *name = "";
    dnnl_primitive_desc_query(description, dnnl_query_impl_info_str, 0, &name);
    return strncmp(name, "ref", 3) == 0;
}

static void primitives_close(sid_primitive **list) {
    for (sid_primitive *p = *list, *next; p; p = next) {
        next = p->next;
        if (p->handle) dnnl_primitive_destroy(p->handle);
        dnnl_primitive_desc_destroy(p->description);
        free(p);
    }
    *list = NULL;
}

/* Drops the least recently used primitives beyond the number that is kept, but never the first. */
static void trim(sid_primitive **list) {
    for (size_t count = 0; *list;) {
        sid_primitive *p = *list;
        if (++count > MOST_SHAPES && !p->users) {
            *list = p->next;
            p->next = NULL;
            primitives_close(&p);
        } else {
            list = &p->next;
        }
    }
}

/* Creates a primitive within a team of that size. It owns the description, even if it fails. */
static int add(sid_primitive **list, const size_t *key, int team, dnnl_primitive_desc_t description,
               sid_primitive **primitive) {
    sid_primitive *p = calloc(1, sizeof *p);
    if (!p) {
        dnnl_primitive_desc_destroy(description);
        return sid_fail(SID_EMEMORY, "out of memory");
    }
    memcpy(p->key, key, sizeof p->key);
    p->team = team;
    p->description = description;
    p->scratch = dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(description, dnnl_query_exec_arg_md,
                                                                        DNNL_ARG_SCRATCHPAD));
    dnnl_status_t status = dnnl_primitive_create(&p->handle, description);
    if (status != dnnl_success) {
        primitives_close(&p);
        return sid_dnnl_fail("dnnl_primitive_create", status);
    }
    p->next = *list;
    *primitive = *list = p;
    return SID_OK;
}

static int execute(const sid_cpu *cpu, const sid_primitive *primitive, const sid_argument *arguments, size_t count) {
    dnnl_exec_arg_t bound[MAX_ARGUMENTS];
    dnnl_stream_t stream = NULL;
    if (sid_team_size(cpu->base.threads) < primitive->team)
        return sid_fail(SID_EINTERNAL, "OpenMP has %d of %d threads left: its limits were lowered during a run",
                        sid_team_size(cpu->base.threads), primitive->team);
    dnnl_status_t status = dnnl_stream_create(&stream, cpu->engine, dnnl_stream_default_flags);
    size_t made = 0;
    for (; made < count && status == dnnl_success; made++) {
        const_dnnl_memory_desc_t layout =
            dnnl_primitive_desc_query_md(primitive->description, dnnl_query_exec_arg_md, arguments[made].number);
        bound[made] = (dnnl_exec_arg_t){arguments[made].number, NULL};
        status = dnnl_memory_create(&bound[made].memory, layout, cpu->engine, arguments[made].data);
    }
    if (status == dnnl_success) {
        sid_team before = sid_team_enter(primitive->team);
        status = dnnl_primitive_execute(primitive->handle, stream, (int)count, bound);
        if (status == dnnl_success) status = dnnl_stream_wait(stream);
        sid_team_leave(&before);
    }
    while (made--) dnnl_memory_destroy(bound[made].memory);
    dnnl_stream_destroy(stream);
    return status == dnnl_success ? SID_OK : sid_dnnl_fail("execution", status);
}

static int run(sid_exec *exec, const sid_primitive *primitive, const sid_argument *arguments, size_t count) {
    sid_argument all[MAX_ARGUMENTS];
    size_t mark = sid_arena_mark(&exec->arena);
    memcpy(all, arguments, count * sizeof *arguments);
    all[count].number = DNNL_ARG_SCRATCHPAD;
    SID_TRY(sid_arena_take(&exec->arena, &all[count].data, primitive->scratch));
    if (!sid_measuring(&exec->arena)) SID_TRY(execute((const sid_cpu *)exec->backend, primitive, all, count + 1));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

int sid_primitive_run(sid_exec *exec, sid_primitive *primitive, const sid_argument *arguments, size_t count) {
    int status = run(exec, primitive, arguments, count);
    sid_lock(SID_LOCK_PRODUCTS);
    primitive->users--;
    sid_unlock(SID_LOCK_PRODUCTS);
    return status;
}

/* Computes dst = src in another layout, within a team. */
static int reorder(sid_cpu *cpu, void *dst, const_dnnl_memory_desc_t dst_layout, void *src,
                   const_dnnl_memory_desc_t src_layout) {
    dnnl_primitive_desc_t description = NULL;
    sid_primitive *primitive = NULL;
    size_t key[SID_KEY_SIZE] = {0};
    dnnl_primitive_attr_t attributes;
    SID_TRY(sid_attributes_open(&attributes, &(sid_post){0}, 0, NULL, NULL));
    dnnl_status_t made =
        dnnl_reorder_primitive_desc_create(&description, src_layout, cpu->engine, dst_layout, cpu->engine, attributes);
    dnnl_primitive_attr_destroy(attributes);
    if (made != dnnl_success) return sid_dnnl_fail("packing of weights", made);
    SID_TRY(add(&primitive, key, sid_team_size(cpu->base.threads), description, &primitive));

    sid_exec exec = {.backend = &cpu->base};
    sid_argument arguments[] = {{DNNL_ARG_FROM, src}, {DNNL_ARG_TO, dst}};
    int status = sid_arena_open(&exec.arena, &cpu->base.memory, primitive->scratch + SID_ALIGN);
    if (status == SID_OK) status = run(&exec, primitive, arguments, 2);
    sid_arena_close(&exec.arena);
    primitives_close(&primitive);
    return status;
}

/* Computes dst = src from one packed layout to another by way of dense rows, because oneDNN has fast code from and
 * to these. */
static int repack(sid_cpu *cpu, void *dst, const_dnnl_memory_desc_t dst_layout, void *src,
                  const_dnnl_memory_desc_t src_layout) {
    int rank = 0;
    dnnl_dims_t *dims;
    dnnl_data_type_t type;
    dnnl_memory_desc_t dense;
    SID_DNNL(dnnl_memory_desc_query(src_layout, dnnl_query_ndims_s32, &rank));
    SID_DNNL(dnnl_memory_desc_query(src_layout, dnnl_query_dims, &dims));
    SID_DNNL(dnnl_memory_desc_query(src_layout, dnnl_query_data_type, &type));
    SID_DNNL(dnnl_memory_desc_create_with_strides(&dense, rank, *dims, type, NULL));
    void *rows = malloc(dnnl_memory_desc_get_size(dense));
    int status = rows ? reorder(cpu, rows, dense, src, src_layout) : sid_fail(SID_EMEMORY, "out of memory");
    if (status == SID_OK) status = reorder(cpu, dst, dst_layout, rows, dense);
    free(rows);
    dnnl_memory_desc_destroy(dense);
    return status;
}

/* Takes the memory and copies the layout of weights that are to be packed. */
static int take_packed(sid_cpu *cpu, sid_packed *packed, const_dnnl_memory_desc_t layout) {
    SID_TRY(sid_take_packed(cpu, &packed->data, dnnl_memory_desc_get_size(layout)));
    return dnnl_memory_desc_clone(&packed->layout, layout) == dnnl_success ? SID_OK
                                                                           : sid_fail(SID_EMEMORY, "out of memory");
}

static void packed_close(sid_packed *packed) {
    for (sid_packed *copy = packed->next, *next; copy; copy = next) {
        next = copy->next;
        copy->next = NULL;
        packed_close(copy);
        free(copy);
    }
    if (packed->layout) dnnl_memory_desc_destroy(packed->layout);
    free(packed->data);
    free(packed->bias);
    *packed = (sid_packed){0};
}

/* Sets *data to the weights in the given layout, which are made from the first copy when they are first needed. */
static int packed_in(sid_cpu *cpu, sid_packed *packed, const_dnnl_memory_desc_t layout, void **data) {
    sid_packed *p = packed;
    while (p && !dnnl_memory_desc_equal(p->layout, layout)) p = p->next;
    if (!p) {
        p = calloc(1, sizeof *p);
        if (!p) return sid_fail(SID_EMEMORY, "out of memory");
        int status = take_packed(cpu, p, layout);
        if (status == SID_OK) status = repack(cpu, p->data, layout, packed->data, packed->layout);
        if (status != SID_OK) {
            packed_close(p);
            free(p);
            return status;
        }
        p->next = packed->next;
        packed->next = p;
    }
    *data = p->data;
    return SID_OK;
}

int sid_pack(sid_cpu *cpu, sid_packed *packed, sid_dtype dtype, const_dnnl_memory_desc_t plain,
             const_dnnl_memory_desc_t layout, size_t parts, const sid_weight *const *weights) {
    void *stacked;
    SID_TRY(sid_stack(cpu, &stacked, dtype, parts, weights));
    int status = take_packed(cpu, packed, layout);
    if (status == SID_OK) status = reorder(cpu, packed->data, layout, stacked, plain);
    free(stacked);
    return status;
}

int sid_product_pack(sid_product *product, const sid_recipe *recipe) {
    dnnl_primitive_desc_t description = NULL;
    sid_lock(SID_LOCK_PRODUCTS);
    sid_team before = sid_team_enter(sid_team_size(product->cpu->base.threads));
    int status = recipe->describe(recipe->request, &description, NULL);
    if (status == SID_OK) {
        status = recipe->pack(recipe->request, dnnl_primitive_desc_query_md(description, dnnl_query_weights_md, 0));
        dnnl_primitive_desc_destroy(description);
    }
    sid_team_leave(&before);
    sid_unlock(SID_LOCK_PRODUCTS);
    return status;
}

/* Makes a primitive that multiplies by the weights as they are packed, or else by a copy in another layout. The lock
 * is held, and the thread is within a team. */
static int make(sid_product *product, const size_t *key, int team, const sid_recipe *recipe,
                sid_primitive **primitive) {
    sid_packed *packed = &product->packed;
    dnnl_primitive_desc_t description = NULL;
    void *weights = NULL;
    SID_TRY(recipe->describe(recipe->request, &description, packed->layout));
    if (is_reference(description)) {
        dnnl_primitive_desc_destroy(description);
        SID_TRY(recipe->describe(recipe->request, &description, NULL));
    }
    const_dnnl_memory_desc_t layout = dnnl_primitive_desc_query_md(description, dnnl_query_weights_md, 0);
    int status = packed_in(product->cpu, packed, layout, &weights);
    if (status != SID_OK) {
        dnnl_primitive_desc_destroy(description);
        return status;
    }
    SID_TRY(add(&product->primitives, key, team, description, primitive));
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): sid_fail() never returns SID_OK. */
    (*primitive)->weights = weights;
    return SID_OK;
}

int sid_product_prepare(sid_product *product, const size_t *key, const sid_recipe *recipe, sid_primitive **primitive) {
    sid_lock(SID_LOCK_PRODUCTS);
    int status = SID_OK, team = sid_team_size(product->cpu->base.threads);
    sid_team before = sid_team_enter(team);
    *primitive = find(&product->primitives, key, team);
    if (!*primitive) {
        status = make(product, key, team, recipe, primitive);
        trim(&product->primitives);
    }
    if (status == SID_OK) (*primitive)->users++;
    sid_team_leave(&before);
    sid_unlock(SID_LOCK_PRODUCTS);
    return status;
}

void sid_product_close(sid_product *product) {
    primitives_close(&product->primitives);
    packed_close(&product->packed);
}
