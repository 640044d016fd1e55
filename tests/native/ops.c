/* What tests/ops.py calls by ctypes: a backend's memory, and its operations through core/ops.h, each in a run of its
 * own whose scratch is dirty and has exactly the measured size. */
#include "core/ops.h"

#include <string.h>

#include "core/err.h"
#include "core/run.h"

#define EXPORT __attribute__((visibility("default")))
#define GUARD SID_ALIGN

enum {
    CONV,
    LINEAR,
    GROUP_NORM,
    LAYER_NORM,
    ATTENTION,
    COMBINE,
    BLEND_ROWS,
    FROM_PLANES,
    TO_PLANES,
    MIX,
    TILE_TAKE,
    TILE_ADD,
    COPY,
    ZERO
};

/* The arguments of any operation; an operation ignores those that it has no use for. tests/ops.py mirrors this. */
typedef struct {
    int op;
    sid_tensor *dst;
    const sid_tensor *x, *y;
    void *part; /* a sid_conv or sid_linear */
    sid_post *post;
    sid_group_norm *norm;
    sid_attention *attention;
    sid_planes *planes;
    sid_curve *curve;
    sid_window *window;
    float *floats[4];
    float a, b;
    size_t count;
    double factors[4];
} operation;

static int pass(sid_exec *exec, const void *arguments) {
    const operation *o = arguments;
    switch (o->op) {
    case CONV:
        return sid_conv2d(exec, o->dst, o->x, o->part, o->post);
    case LINEAR:
        return sid_linear_map(exec, o->dst, o->x, o->part, o->post);
    case GROUP_NORM:
        return sid_group_normalize(exec, o->dst, o->norm);
    case LAYER_NORM:
        return sid_layer_normalize(exec, o->dst, o->x, o->floats[0], o->floats[1], o->a);
    case ATTENTION:
        return sid_attend(exec, o->dst, o->attention);
    case COMBINE:
        return sid_combine(exec, o->dst, o->a, o->x, o->b, o->y);
    case BLEND_ROWS:
        return sid_blend_rows(exec, o->dst, o->floats[0], o->x, o->y);
    case FROM_PLANES:
        return sid_from_planes(exec, o->dst, o->planes, o->curve);
    case TO_PLANES:
        return sid_to_planes(exec, o->planes, o->x, o->curve);
    case MIX:
        return sid_mix(exec, o->floats[0], o->floats[1], o->count, o->factors[0], o->factors[1], o->factors[2],
                       o->factors[3]);
    case TILE_TAKE:
        return sid_tile_take(exec, o->floats[0], o->floats[1], o->window);
    case TILE_ADD:
        return sid_tile_add(exec, o->floats[0], o->floats[1], o->window, o->floats[2], o->floats[3]);
    case COPY:
        return sid_copy(exec, o->floats[0], o->floats[1], o->count);
    case ZERO:
        return sid_zero(exec, o->floats[0], o->count);
    }
    return sid_fail(SID_EINTERNAL, "no such operation");
}

/* Fills memory with bytes of 0xff, which are NaNs in every format. */
static int poison(sid_exec *exec, char *block, size_t size) {
    char nans[4096];
    memset(nans, 0xff, sizeof nans);
    for (size_t first = 0; first < size; first += sizeof nans)
        SID_TRY(exec->backend->write(exec, block + first, nans,
                                     size - first < sizeof nans ? size - first : sizeof nans));
    return SID_OK;
}

/* Checks that the guard behind the arena is unchanged. */
static int check_guard(sid_exec *exec, const char *end) {
    unsigned char guard[GUARD];
    SID_TRY(exec->backend->read(exec, guard, end, GUARD));
    for (size_t i = 0; i < GUARD; i++)
        if (guard[i] != 0xff) return sid_fail(SID_EINTERNAL, "the scratch was overrun");
    return SID_OK;
}

static int compute(sid_exec *exec, const operation *o) {
    int again = 0, status;
    do {
        again = 0;
        sid_arena_release(&exec->arena, 0);
        SID_TRY(exec->backend->begin(exec, 0));
        status = exec->backend->end(exec, pass(exec, o), &again);
    } while (status == SID_OK && again);
    return status;
}

/* Runs an operation. `scratch` is NULL, or gets the measured bytes. */
EXPORT int ops_run(sid_backend *backend, const operation *o, size_t *scratch) {
    sid_runner runner = {.backend = backend};
    sid_exec exec = {.backend = backend};
    size_t bytes;
    SID_TRY(sid_run_scratch(&runner, &bytes, pass, o));
    if (scratch) *scratch = bytes;
    SID_TRY(sid_arena_open(&exec.arena, &backend->memory, bytes + GUARD));
    char *base = exec.arena.base;
    exec.arena.size = bytes;
    int status = poison(&exec, base, bytes + GUARD);
    if (status == SID_OK) status = compute(&exec, o);
    if (status == SID_OK) status = check_guard(&exec, base + bytes);
    sid_arena_close(&exec.arena);
    return status;
}

/* Only measures an operation. */
EXPORT int ops_scratch(sid_backend *backend, const operation *o, size_t *bytes) {
    return sid_run_scratch(&(sid_runner){.backend = backend}, bytes, pass, o);
}

EXPORT int ops_take(sid_backend *backend, void **block, size_t size) {
    return backend->memory.take(&backend->memory, block, size, "a test");
}
EXPORT void ops_give(sid_backend *backend, void *block) { sid_memory_give(&backend->memory, block); }
EXPORT int ops_write(sid_backend *backend, void *block, const void *host, size_t size) {
    return sid_write(&(sid_exec){.backend = backend}, block, host, size);
}
EXPORT int ops_read(sid_backend *backend, void *host, const void *block, size_t size) {
    return sid_read(&(sid_exec){.backend = backend}, host, block, size);
}

EXPORT int ops_conv_open(sid_backend *backend, sid_conv **conv, const sid_conv_shape *shape, const sid_weight *weight,
                         const sid_weight *bias) {
    return backend->conv_open(backend, conv, shape, weight, bias);
}
EXPORT void ops_conv_close(sid_backend *backend, sid_conv *conv) {
    if (conv) backend->conv_close(&conv);
}
EXPORT int ops_linear_open(sid_backend *backend, sid_linear **linear, const sid_linear_shape *shape, size_t parts,
                           const sid_weight *const *weights, const sid_weight *const *biases) {
    return backend->linear_open(backend, linear, shape, parts, weights, biases);
}
EXPORT void ops_linear_close(sid_backend *backend, sid_linear *linear) {
    if (linear) backend->linear_close(&linear);
}
EXPORT int ops_floats_open(sid_backend *backend, float **floats, size_t parts, const sid_weight *const *weights) {
    return backend->floats_open(backend, floats, parts, weights);
}
EXPORT void ops_close(sid_backend *backend) { backend->close(&backend); }
EXPORT const char *ops_error(void) { return sid_error(); }

/* Returns the sizes of the structures that tests/ops.py mirrors, in its order. */
EXPORT size_t ops_size(int which) {
    const size_t sizes[] = {sizeof(sid_tensor),       sizeof(sid_planes), sizeof(sid_curve),
                            sizeof(sid_window),       sizeof(sid_keys),   sizeof(sid_attention),
                            sizeof(sid_group_norm),   sizeof(sid_post),   sizeof(sid_conv_shape),
                            sizeof(sid_linear_shape), sizeof(sid_weight), sizeof(operation)};
    return sizes[which];
}
