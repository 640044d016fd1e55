/* The host functions of csrc/cuda that launch own kernels, on a device without a driver: its memory is the host's, and
 * a launch runs at once, in the kernel that the system's compiler made of its source (emu.h). */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "cuda/ops.h"

#define EXPORT __attribute__((visibility("default")))

typedef void (*emulated_run)(const unsigned *grid, unsigned threads, unsigned long shared, const void *parameters);
/* The path of the library that a file of kernels was compiled to. */
typedef const char *(*library_finder)(const char *file, const char *options);

struct sid_kernel {
    sid_kernel *next;
    char name[32], options[32];
    sid_cu file;
    emulated_run run;
    unsigned long size;
};

typedef struct {
    sid_cuda cuda;
    library_finder find_library;
    sid_kernel *kernels;
    int overflow;
    size_t launches;
} device;

#define FILE_NAME(name, file) #file,
static const char *const files[] = {SID_CU_FILES(FILE_NAME)};

static int load(device *d, sid_kernel *kernel) {
    char symbol[64];
    void *library = dlopen(d->find_library(files[kernel->file], kernel->options), RTLD_NOW | RTLD_LOCAL);
    if (!library) return sid_fail(SID_EINTERNAL, "%s", dlerror());
    snprintf(symbol, sizeof symbol, "sid_emu_run_%s", kernel->name);
    kernel->run = (emulated_run)(uintptr_t)dlsym(library, symbol);
    snprintf(symbol, sizeof symbol, "sid_emu_size_%s", kernel->name);
    unsigned long *size = dlsym(library, symbol);
    if (!kernel->run || !size) return sid_fail(SID_EINTERNAL, "%s has no kernel %s", files[kernel->file], kernel->name);
    kernel->size = *size;
    return SID_OK;
}

int sid_kernel_find(sid_cuda *cuda, const sid_kernel **kernel, sid_cu file, const char *name, const char *options) {
    device *d = (device *)cuda;
    sid_kernel *k = d->kernels;
    while (k && (k->file != file || strcmp(k->name, name) || strcmp(k->options, options))) k = k->next;
    *kernel = k;
    if (k) return SID_OK;
    k = calloc(1, sizeof *k);
    if (!k) return sid_fail(SID_EMEMORY, "out of memory");
    k->file = file;
    snprintf(k->name, sizeof k->name, "%s", name);
    snprintf(k->options, sizeof k->options, "%s", options);
    k->next = d->kernels;
    d->kernels = k;
    *kernel = k;
    return load(d, k);
}

int sid_launch(sid_exec *exec, const sid_kernel *kernel, sid_grid grid, const void *parameters, size_t size) {
    unsigned blocks[] = {grid.x, grid.y, grid.z};
    if (size != kernel->size) return sid_fail(SID_EINTERNAL, "%s: %zu bytes of parameters", kernel->name, size);
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535)
        return sid_fail(SID_EINTERNAL, "%s: no device launches (%u, %u, %u)", kernel->name, grid.x, grid.y, grid.z);
    if (sid_measuring(&exec->arena)) return SID_OK;
    kernel->run(blocks, grid.threads, 0, parameters);
    ((device *)exec->backend)->launches++;
    return SID_OK;
}

/* Memory that begins as NaNs. */
static int take(sid_memory *memory, void **block, size_t size, const char *what) {
    (void)memory;
    (void)what;
    *block = aligned_alloc(SID_ALIGN, (size + SID_ALIGN - 1) / SID_ALIGN * SID_ALIGN + SID_ALIGN);
    if (!*block) return sid_fail(SID_EMEMORY, "out of memory");
    memset(*block, 0xff, size);
    return SID_OK;
}

static void give(sid_memory *memory, void *block) {
    (void)memory;
    free(block);
}

static int copy(sid_exec *exec, void *block, const void *from, size_t size) {
    (void)exec;
    memcpy(block, from, size);
    return SID_OK;
}

EXPORT sid_backend *direct_open(int dtype, int architecture, library_finder find_library) {
    device *d = calloc(1, sizeof *d);
    if (!d) return NULL;
    d->find_library = find_library;
    d->cuda.overflow = &d->overflow;
    d->cuda.architecture = architecture;
    d->cuda.base = (sid_backend){.memory = {take, give, 0},
                                 .dtype = (sid_dtype)dtype,
                                 .write = copy,
                                 .group_norm = sid_cuda_group_norm,
                                 .layer_norm = sid_cuda_layer_norm,
                                 .attention = sid_cuda_attention,
                                 .combine = sid_cuda_combine,
                                 .blend_rows = sid_cuda_blend_rows,
                                 .from_planes = sid_cuda_from_planes,
                                 .to_planes = sid_cuda_to_planes,
                                 .mix = sid_cuda_mix,
                                 .tile_take = sid_cuda_tile_take,
                                 .tile_add = sid_cuda_tile_add,
                                 .floats_open = sid_cuda_floats_open};
    return &d->cuda.base;
}

EXPORT const char *direct_error(void) { return sid_error(); }
EXPORT int *direct_overflow(sid_backend *backend) { return &((device *)backend)->overflow; }

/* A pass as a run makes it: measured, then computed in memory of exactly that size. */
typedef int (*pass)(sid_exec *exec, void *arguments);

static int run(sid_backend *backend, pass pass, void *arguments) {
    sid_exec exec = {.backend = backend, .arena = {.memory = &backend->memory, .measuring = 1}};
    SID_TRY(pass(&exec, arguments));
    size_t size = exec.arena.peak;
    SID_TRY(sid_arena_open(&exec.arena, &backend->memory, size));
    int status = pass(&exec, arguments);
    sid_arena_close(&exec.arena);
    return status;
}

typedef struct {
    sid_tensor *dst;
    const void *argument;
} two;

static int norm_pass(sid_exec *exec, void *arguments) {
    two *t = arguments;
    return exec->backend->group_norm(exec, t->dst, t->argument);
}
EXPORT int direct_group_norm(sid_backend *backend, sid_tensor *dst, const sid_group_norm *norm) {
    return run(backend, norm_pass, &(two){dst, norm});
}

static int attention_pass(sid_exec *exec, void *arguments) {
    two *t = arguments;
    return exec->backend->attention(exec, t->dst, t->argument);
}
EXPORT int direct_attention(sid_backend *backend, sid_tensor *dst, const sid_attention *attention) {
    return run(backend, attention_pass, &(two){dst, attention});
}

/* The others take no scratch. */
#define OUTSIDE(backend) (&(sid_exec){.backend = (backend)})

EXPORT int direct_layer_norm(sid_backend *backend, sid_tensor *dst, const sid_tensor *src, const float *scale,
                             const float *shift, float eps) {
    return backend->layer_norm(OUTSIDE(backend), dst, src, scale, shift, eps);
}
EXPORT int direct_combine(sid_backend *backend, sid_tensor *dst, float a, const sid_tensor *x, float b,
                          const sid_tensor *y) {
    return backend->combine(OUTSIDE(backend), dst, a, x, b, y);
}
EXPORT int direct_blend_rows(sid_backend *backend, sid_tensor *dst, const float *a, const sid_tensor *x,
                             const sid_tensor *y) {
    return backend->blend_rows(OUTSIDE(backend), dst, a, x, y);
}
EXPORT int direct_from_planes(sid_backend *backend, sid_tensor *dst, const sid_planes *planes, const sid_curve *curve) {
    return backend->from_planes(OUTSIDE(backend), dst, planes, curve);
}
EXPORT int direct_to_planes(sid_backend *backend, sid_planes *planes, const sid_tensor *src, const sid_curve *curve) {
    return backend->to_planes(OUTSIDE(backend), planes, src, curve);
}
EXPORT int direct_mix(sid_backend *backend, float *z, const float *p, size_t count, const double *coefficients) {
    const double *c = coefficients;
    return backend->mix(OUTSIDE(backend), z, p, count, c[0], c[1], c[2], c[3]);
}
EXPORT int direct_tile_take(sid_backend *backend, float *tile, const float *planes, const sid_window *window) {
    return backend->tile_take(OUTSIDE(backend), tile, planes, window);
}
EXPORT int direct_tile_add(sid_backend *backend, float *planes, const float *tile, const sid_window *window,
                           const float *row_shares, const float *column_shares) {
    return backend->tile_add(OUTSIDE(backend), planes, tile, window, row_shares, column_shares);
}
EXPORT int direct_finish(sid_backend *backend, sid_tensor *dst, const sid_tensor *src, const sid_post *post) {
    return sid_cuda_finish(OUTSIDE(backend), dst, src, post);
}
EXPORT int direct_conv_few(sid_backend *backend, sid_tensor *dst, const sid_tensor *src, const sid_conv_shape *shape,
                           const void *weights, const float *bias, const sid_post *post) {
    return sid_cuda_conv_few(OUTSIDE(backend), dst, src, shape, weights, bias, post);
}
EXPORT int direct_unfold(sid_backend *backend, sid_tensor *dst, const void *y, const float *bias) {
    return sid_cuda_unfold(OUTSIDE(backend), dst, y, bias);
}
EXPORT int direct_stack(sid_backend *backend, void **block, int dtype, size_t parts, const sid_weight *const *weights) {
    return sid_cuda_stack((sid_cuda *)backend, block, (sid_dtype)dtype, parts, weights);
}
EXPORT int direct_pack_conv(sid_backend *backend, void **block, const sid_conv_shape *shape, const sid_weight *weight) {
    return sid_cuda_pack_conv((sid_cuda *)backend, block, shape, weight);
}
EXPORT void direct_give(sid_backend *backend, void *block) { backend->memory.give(&backend->memory, block); }
