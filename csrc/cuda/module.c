/* Kernels. Their sources are part of this module; NVRTC compiles them for the device when they are first used, and
 * the results are kept on disk. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/err.h"
#include "cuda/launch.h"

/* ---- the sources ---- */

#define EMBED(symbol, path)                                                                                 \
    __asm__(".pushsection .rodata\n.global " #symbol "\n.hidden " #symbol "\n" #symbol ":\n.incbin \"" path \
            "\"\n.byte 0\n.popsection\n");                                                                  \
    extern const char symbol[];

#define EMBED_FILE(name, file) EMBED(sid_source_##file, "cuda/kernels/" #file ".cu")
SID_CU_FILES(EMBED_FILE)
EMBED(sid_source_sid_cuh, "cuda/kernels/sid.cuh")
EMBED(sid_source_params_h, "cuda/kernels/params.h")
EMBED(sid_source_attention_cuh, "cuda/kernels/attention.cuh")

typedef struct {
    const char *name, *text;
} source;

#define SOURCE(name, file) {#file ".cu", sid_source_##file},
static const source sources[SID_CU_COUNT] = {SID_CU_FILES(SOURCE)};

#define HEADERS 3
static const char *const header_names[HEADERS] = {"sid.cuh", "params.h", "attention.cuh"};
static const char *const header_texts[HEADERS] = {sid_source_sid_cuh, sid_source_params_h, sid_source_attention_cuh};

/* ---- what was compiled ---- */

typedef struct module {
    struct module *next;
    sid_cu file;
    char *options;
    CUmodule loaded;
} module;

struct sid_kernel {
    sid_kernel *next;
    const module *module;
    char *name;
    CUfunction function;
};

struct sid_modules {
    module *modules;
    sid_kernel *kernels;
    char target[24]; /* NVRTC's target: sm_90, or compute_90 where that is the best that it supports */
    int version[2];  /* NVRTC's version */
};

/* Chooses the newest architecture that NVRTC supports among those whose cubins the device runs: they have its major
 * number and are not newer. */
static int choose_target(sid_cuda *cuda, sid_modules *modules) {
    int count = 0, best = 0, newest = 0, known[128];
    cuda->nv->nvrtcGetNumSupportedArchs(&count);
    if (count < 1 || count > 128 || cuda->nv->nvrtcGetSupportedArchs(known) != NVRTC_SUCCESS)
        return sid_fail(SID_EINTERNAL, "NVRTC does not say which architectures it knows");
    for (int i = 0; i < count; i++) {
        if (known[i] > cuda->architecture) continue;
        if (known[i] > newest) newest = known[i];
        if (known[i] / 10 == cuda->architecture / 10 && known[i] > best) best = known[i];
    }
    if (!newest)
        return sid_fail(SID_EVALUE,
                        "device: %s has compute capability %d.%d, which the installed CUDA %d no longer supports",
                        cuda->name, cuda->architecture / 10, cuda->architecture % 10, cuda->nv->major);
    snprintf(modules->target, sizeof modules->target, best ? "sm_%d" : "compute_%d", best ? best : newest);
    return SID_OK;
}

int sid_modules_open(sid_cuda *cuda) {
    sid_modules *m = cuda->modules = calloc(1, sizeof *m);
    if (!m) return sid_fail(SID_EMEMORY, "out of memory");
    cuda->nv->nvrtcVersion(&m->version[0], &m->version[1]);
    return choose_target(cuda, m);
}

void sid_modules_close(sid_cuda *cuda) {
    sid_modules *m = cuda->modules;
    if (!m) return;
    sid_cuda_enter(cuda);
    for (sid_kernel *k = m->kernels, *next; k; k = next) {
        next = k->next;
        free(k->name);
        free(k);
    }
    for (module *one = m->modules, *next; one; one = next) {
        next = one->next;
        if (one->loaded) cuda->nv->cuModuleUnload(one->loaded);
        free(one->options);
        free(one);
    }
    sid_cuda_leave(cuda);
    free(m);
    cuda->modules = NULL;
}

/* ---- compiling ---- */

#define MAX_OPTIONS 12
#define OPTION_SIZE 64

typedef struct {
    sid_cu file;
    const char *arguments[MAX_OPTIONS];
    int count;
    char texts[MAX_OPTIONS][OPTION_SIZE];
} recipe;

static void add_option(recipe *r, const char *text, size_t length) {
    snprintf(r->texts[r->count], OPTION_SIZE, "%.*s", (int)length, text);
    r->arguments[r->count] = r->texts[r->count];
    r->count++;
}

static void describe(const sid_cuda *cuda, recipe *r, sid_cu file, const char *options) {
    char text[OPTION_SIZE];
    *r = (recipe){.file = file};
    add_option(r, "-std=c++17", OPTION_SIZE);
    snprintf(text, sizeof text, "--gpu-architecture=%s", cuda->modules->target);
    add_option(r, text, sizeof text);
    snprintf(text, sizeof text, "-DSID_T=%d", (int)cuda->base.dtype);
    add_option(r, text, sizeof text);
    snprintf(text, sizeof text, "-DSID_ARCH=%s", strchr(cuda->modules->target, '_') + 1);
    add_option(r, text, sizeof text);
    while (*options && r->count < MAX_OPTIONS) {
        size_t length = strcspn(options, " ");
        add_option(r, options, length);
        options += length + (options[length] == ' ');
    }
}

typedef struct {
    char *data; /* from malloc() */
    size_t size;
} image;

static int compile_failed(const sid_cuda *cuda, nvrtcProgram program, const recipe *r, nvrtcResult result) {
    size_t size = 0;
    cuda->nv->nvrtcGetProgramLogSize(program, &size);
    char *log = calloc(size + 1, 1);
    if (log) cuda->nv->nvrtcGetProgramLog(program, log);
    int status = sid_fail(SID_EINTERNAL, "NVRTC cannot compile %s: %s\n%.2000s", sources[r->file].name,
                          cuda->nv->nvrtcGetErrorString(result), log ? log : "");
    free(log);
    return status;
}

static nvrtcResult take_image(const sid_nvidia *nv, nvrtcProgram program, image *image, int ptx) {
    nvrtcResult result =
        ptx ? nv->nvrtcGetPTXSize(program, &image->size) : nv->nvrtcGetCUBINSize(program, &image->size);
    image->data = result == NVRTC_SUCCESS ? malloc(image->size) : NULL;
    if (!image->data) return result;
    return ptx ? nv->nvrtcGetPTX(program, image->data) : nv->nvrtcGetCUBIN(program, image->data);
}

static int compile(const sid_cuda *cuda, const recipe *r, image *image) {
    const source *s = &sources[r->file];
    nvrtcProgram program;
    nvrtcResult result = cuda->nv->nvrtcCreateProgram(&program, s->text, s->name, HEADERS, header_texts, header_names);
    if (result != NVRTC_SUCCESS) return sid_fail(SID_EINTERNAL, "NVRTC: %s", cuda->nv->nvrtcGetErrorString(result));
    int status = SID_OK;
    result = cuda->nv->nvrtcCompileProgram(program, r->count, r->arguments);
    if (result == NVRTC_SUCCESS) result = take_image(cuda->nv, program, image, cuda->modules->target[0] == 'c');
    if (result != NVRTC_SUCCESS) status = compile_failed(cuda, program, r, result);
    else if (!image->data) status = sid_fail(SID_EMEMORY, "out of memory for a kernel");
    cuda->nv->nvrtcDestroyProgram(&program);
    return status;
}

/* ---- the disk cache ---- */

#define PATH_SIZE 1024

static uint64_t hash_text(uint64_t hash, const char *text) {
    do hash = (hash ^ (unsigned char)*text) * 0x100000001b3; /* FNV-1a, including the final 0 */
    while (*text++);
    return hash;
}

/* Builds the path of a kernel's file; the path is empty where there is no place for a cache. */
static void cache_path(const sid_cuda *cuda, const recipe *r, char *folder, char *path) {
    const char *root = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    uint64_t hash =
        0xcbf29ce484222325 ^ (uint64_t)cuda->modules->version[0] << 16 ^ (uint64_t)cuda->modules->version[1];
    for (int i = 0; i < HEADERS; i++) hash = hash_text(hash, header_texts[i]);
    hash = hash_text(hash, sources[r->file].text);
    for (int i = 0; i < r->count; i++) hash = hash_text(hash, r->arguments[i]);
    *path = 0;
    if (root && *root) snprintf(folder, PATH_SIZE, "%s/styleid/kernels", root);
    else if (home && *home) snprintf(folder, PATH_SIZE, "%s/.cache/styleid/kernels", home);
    else return;
    if (snprintf(path, PATH_SIZE, "%s/%s-%016llx.cubin", folder, cuda->modules->target, (unsigned long long)hash) >=
        PATH_SIZE)
        *path = 0;
}

static int read_cached(const char *path, image *image) {
    struct stat facts;
    int file = *path ? open(path, O_RDONLY | O_CLOEXEC) : -1, good = 0;
    if (file < 0) return 0;
    if (fstat(file, &facts) == 0 && facts.st_size > 0 && (image->data = malloc((size_t)facts.st_size))) {
        image->size = (size_t)facts.st_size;
        good = read(file, image->data, image->size) == (ssize_t)image->size;
    }
    close(file);
    return good;
}

static void make_folders(char *folder) {
    for (char *slash = folder + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = 0;
        mkdir(folder, 0755);
    }
    mkdir(folder, 0755);
}

/* Writes beside the file and renames, so that others see all of it or nothing. A disk that cannot be written to is
 * no error. */
static void write_cached(char *folder, const char *path, const image *image) {
    char beside[PATH_SIZE + 16];
    if (!*path) return;
    make_folders(folder);
    snprintf(beside, sizeof beside, "%s.XXXXXX", path);
    int file = mkstemp(beside);
    if (file < 0) return;
    int good = write(file, image->data, image->size) == (ssize_t)image->size;
    if (close(file) != 0 || !good || rename(beside, path) != 0) unlink(beside);
}

/* ---- looking up ---- */

/* A cached file that does not load, for whatever reason, is made anew. */
static int load(sid_cuda *cuda, module *m) {
    char folder[PATH_SIZE], path[PATH_SIZE];
    image image = {0};
    recipe r;
    describe(cuda, &r, m->file, m->options);
    cache_path(cuda, &r, folder, path);
    if (read_cached(path, &image) && cuda->nv->cuModuleLoadData(&m->loaded, image.data) == CUDA_SUCCESS) {
        free(image.data);
        return SID_OK;
    }
    free(image.data);
    image.data = NULL;
    m->loaded = NULL;
    int status = compile(cuda, &r, &image);
    if (status == SID_OK)
        status = sid_cuda_check(cuda, cuda->nv->cuModuleLoadData(&m->loaded, image.data), sources[m->file].name);
    if (status == SID_OK) write_cached(folder, path, &image);
    free(image.data);
    return status;
}

static int find_module(sid_cuda *cuda, module **found, sid_cu file, const char *options) {
    for (module *m = cuda->modules->modules; m; m = m->next)
        if (m->file == file && strcmp(m->options, options) == 0) {
            *found = m;
            return SID_OK;
        }
    module *m = *found = calloc(1, sizeof *m);
    if (!m) return sid_fail(SID_EMEMORY, "out of memory");
    m->file = file;
    m->options = strdup(options);
    int status = m->options ? load(cuda, m) : sid_fail(SID_EMEMORY, "out of memory");
    if (status != SID_OK) {
        free(m->options);
        free(m);
        return status;
    }
    m->next = cuda->modules->modules;
    cuda->modules->modules = m;
    return SID_OK;
}

static int find(sid_cuda *cuda, sid_kernel **kernel, sid_cu file, const char *name, const char *options) {
    module *m;
    for (sid_kernel *k = cuda->modules->kernels; k; k = k->next)
        if (k->module->file == file && strcmp(k->name, name) == 0 && strcmp(k->module->options, options) == 0) {
            *kernel = k;
            return SID_OK;
        }
    SID_TRY(find_module(cuda, &m, file, options));
    CUfunction function;
    SID_TRY(sid_cuda_check(cuda, cuda->nv->cuModuleGetFunction(&function, m->loaded, name), name));
    sid_kernel *k = *kernel = calloc(1, sizeof *k);
    if (!k || !(k->name = strdup(name))) {
        free(k);
        return sid_fail(SID_EMEMORY, "out of memory");
    }
    k->module = m;
    k->function = function;
    k->next = cuda->modules->kernels;
    cuda->modules->kernels = k;
    return SID_OK;
}

int sid_kernel_find(sid_cuda *cuda, const sid_kernel **kernel, sid_cu file, const char *name, const char *options) {
    sid_kernel *found = NULL;
    pthread_mutex_lock(&cuda->tables);
    sid_cuda_enter(cuda);
    int status = find(cuda, &found, file, name, options);
    sid_cuda_leave(cuda);
    pthread_mutex_unlock(&cuda->tables);
    *kernel = found;
    return status;
}

CUfunction sid_kernel_function(const sid_kernel *kernel) { return kernel->function; }
const char *sid_kernel_name(const sid_kernel *kernel) { return kernel->name; }
