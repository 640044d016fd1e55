/* A backend for tests/ops.py that has only own kernels, on a device without a driver. Its memory is the host's, and
 * a launch runs at once, in the kernel that the system's compiler made of its source (emu.h). It has no products and
 * convolutions. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "cuda/ops.h"

#define EXPORT __attribute__((visibility("default")))

typedef void (*emulated_run)(const unsigned *grid, unsigned threads, unsigned long shared, const void *parameters);
/* Returns the path of the library that a file of kernels was compiled to. */
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
} device;

#define FILE_NAME(name, file) #file,
static const char *const files[] = {SID_CU_FILES(FILE_NAME)};

/* ---- launches ---- */

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
    if (!sid_measuring(&exec->arena)) kernel->run(blocks, grid.threads, 0, parameters);
    return SID_OK;
}

/* ---- memory: a block lies between two guards and is, like them, full of NaNs ---- */

#define GUARD 512

static int take(sid_memory *memory, void **block, size_t size, const char *what) {
    (void)memory;
    (void)what;
    size_t all = (size + 3 * GUARD - 1) / GUARD * GUARD;
    char *start = aligned_alloc(GUARD, all);
    if (!start) return sid_fail(SID_EMEMORY, "out of memory");
    memset(start, 0xff, all);
    memcpy(start, &size, sizeof size);
    *block = start + GUARD;
    return SID_OK;
}

static void give(sid_memory *memory, void *block) {
    (void)memory;
    unsigned char *start = (unsigned char *)block - GUARD;
    size_t size;
    memcpy(&size, start, sizeof size);
    size_t all = (size + 3 * GUARD - 1) / GUARD * GUARD;
    for (size_t i = sizeof size; i < all; i = i == GUARD - 1 ? GUARD + size : i + 1)
        if (start[i] != 0xff) {
            fprintf(stderr, "a kernel wrote beside a block of %zu bytes\n", size);
            abort();
        }
    free(start);
}

static int copy(sid_exec *exec, void *block, const void *from, size_t size) {
    (void)exec;
    memcpy(block, from, size);
    return SID_OK;
}

static int zero(sid_exec *exec, void *block, size_t size) {
    (void)exec;
    memset(block, 0, size);
    return SID_OK;
}

/* ---- the backend ---- */

static int begin(sid_exec *exec, uint64_t key) {
    (void)exec;
    (void)key;
    return SID_OK;
}

static int end(sid_exec *exec, int status, int *again) {
    (void)exec;
    *again = 0;
    return status;
}

EXPORT int direct_open(sid_backend **backend, int dtype, int architecture, library_finder find_library) {
    device *d = calloc(1, sizeof *d);
    if (!d) return sid_fail(SID_EMEMORY, "out of memory");
    d->find_library = find_library;
    d->cuda.overflow = &d->overflow;
    d->cuda.architecture = architecture;
    d->cuda.base = (sid_backend){.memory = {take, give, 0},
                                 .dtype = (sid_dtype)dtype,
                                 .write = copy,
                                 .read = copy,
                                 .copy = copy,
                                 .zero = zero,
                                 .begin = begin,
                                 .end = end,
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
    *backend = &d->cuda.base;
    return SID_OK;
}

/* Returns whether mix has met a number that is not finite since this was last asked. */
EXPORT int direct_overflow(sid_backend *backend) {
    device *d = (device *)backend;
    int met = d->overflow;
    d->overflow = 0;
    return met;
}
