/* Makes the allocations of one loaded library fail: its own calls of the functions below go through counters here.
 *
 * Nothing is preloaded and no other library sees a difference, because only the table of addresses through which
 * this library calls others is changed. So it works under AddressSanitizer as well. */
#include <elf.h>
#include <link.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MOST 200000

static atomic_long calls, failing = -1, living;
static void *sites[MOST]; /* where each call came from */

/* Resets the number of the next call to 0. The call of the given number fails; -1 stands for none. */
EXPORT void faults_arm(long number) {
    atomic_store(&calls, 0);
    atomic_store(&failing, number);
}
EXPORT long faults_calls(void) { return atomic_load(&calls); }
EXPORT long faults_living(void) { return atomic_load(&living); }
EXPORT void *faults_site(long number) { return number < MOST ? sites[number] : NULL; }

static int fails(void *site) {
    long number = atomic_fetch_add(&calls, 1);
    if (number < MOST) sites[number] = site;
    return number == atomic_load(&failing);
}

/* ---- functions that make things, which return NULL or another failure, and those that end them ---- */

typedef void *pointer;

#define MAKE(type, failure, made, name, parameters, arguments)  \
    static type(*real_##name) parameters;                       \
    static type fault_##name parameters {                       \
        if (fails(__builtin_return_address(0))) return failure; \
        type result = real_##name arguments;                    \
        if (made) atomic_fetch_add(&living, 1);                 \
        return result;                                          \
    }
#define END(type, name, parameters, arguments, thing) \
    static type(*real_##name) parameters;             \
    static type fault_##name parameters {             \
        if (thing) atomic_fetch_sub(&living, 1);      \
        return real_##name arguments;                 \
    }

MAKE(pointer, NULL, result, malloc, (size_t size), (size))
MAKE(pointer, NULL, result, calloc, (size_t count, size_t size), (count, size))
MAKE(pointer, NULL, result, strdup, (const char *text), (text))
MAKE(int, 12, !result, posix_memalign, (void **block, size_t unit, size_t size), (block, unit, size))
END(void, free, (void *block), (block), block)
MAKE(pointer, MAP_FAILED, result != MAP_FAILED, mmap, (void *a, size_t b, int c, int d, int e, off_t f),
     (a, b, c, d, e, f))
END(int, munmap, (void *block, size_t size), (block, size), block)
MAKE(pointer, NULL, result, PyMem_Malloc, (size_t size), (size))
MAKE(pointer, NULL, result, PyMem_Calloc, (size_t count, size_t size), (count, size))
MAKE(pointer, NULL, result, PyMem_RawMalloc, (size_t size), (size))
END(void, PyMem_Free, (void *block), (block), block)
END(void, PyMem_RawFree, (void *block), (block), block)

/* oneDNN's functions; 1 is its dnnl_out_of_memory. A failing call writes nothing, as it is when oneDNN fails. */
#define DNNL_MAKE(name, parameters, arguments) MAKE(int, 1, !result, name, parameters, arguments)
#define DNNL_DO(name, parameters, arguments) MAKE(int, 1, 0, name, parameters, arguments)
#define DNNL_END(name) END(int, name, (void *a), (a), a)

DNNL_MAKE(dnnl_engine_create, (void *a, int b, size_t c), (a, b, c))
DNNL_END(dnnl_engine_destroy)
DNNL_MAKE(dnnl_stream_create, (void *a, void *b, unsigned c), (a, b, c))
DNNL_END(dnnl_stream_destroy)
DNNL_MAKE(dnnl_memory_create, (void *a, void *b, void *c, void *d), (a, b, c, d))
DNNL_END(dnnl_memory_destroy)
DNNL_MAKE(dnnl_memory_desc_clone, (void *a, void *b), (a, b))
DNNL_MAKE(dnnl_memory_desc_create_with_strides, (void *a, int b, void *c, int d, void *e), (a, b, c, d, e))
DNNL_MAKE(dnnl_memory_desc_create_with_tag, (void *a, int b, void *c, int d, int e), (a, b, c, d, e))
DNNL_END(dnnl_memory_desc_destroy)
DNNL_MAKE(dnnl_post_ops_create, (void *a), (a))
DNNL_END(dnnl_post_ops_destroy)
DNNL_MAKE(dnnl_primitive_attr_create, (void *a), (a))
DNNL_END(dnnl_primitive_attr_destroy)
DNNL_DO(dnnl_primitive_attr_set_post_ops, (void *a, void *b), (a, b))
DNNL_DO(dnnl_primitive_attr_set_scratchpad_mode, (void *a, int b), (a, b))
DNNL_DO(dnnl_post_ops_append_binary, (void *a, int b, void *c), (a, b, c))
DNNL_DO(dnnl_post_ops_append_eltwise, (void *a, int b, float c, float d), (a, b, c, d))
DNNL_DO(dnnl_post_ops_append_sum, (void *a, float b, int c, int d), (a, b, c, d))
DNNL_MAKE(dnnl_convolution_forward_primitive_desc_create,
          (void *a, void *b, int c, int d, void *e, void *f, void *g, void *h, void *i, void *j, void *k, void *l,
           void *m),
          (a, b, c, d, e, f, g, h, i, j, k, l, m))
DNNL_MAKE(dnnl_matmul_primitive_desc_create, (void *a, void *b, void *c, void *d, void *e, void *f, void *g),
          (a, b, c, d, e, f, g))
DNNL_MAKE(dnnl_reorder_primitive_desc_create, (void *a, void *b, void *c, void *d, void *e, void *f),
          (a, b, c, d, e, f))
DNNL_END(dnnl_primitive_desc_destroy)
DNNL_MAKE(dnnl_primitive_create, (void *a, void *b), (a, b))
DNNL_END(dnnl_primitive_destroy)
DNNL_DO(dnnl_primitive_execute, (void *a, void *b, int c, void *d), (a, b, c, d))

/* ---- the table of addresses ---- */

#define ENTRY(name) {#name, (void *)fault_##name, (void **)(void *)&real_##name}
static const struct {
    const char *name;
    void *fault, **real;
} entries[] = {
    ENTRY(malloc),
    ENTRY(calloc),
    ENTRY(strdup),
    ENTRY(posix_memalign),
    ENTRY(free),
    ENTRY(mmap),
    ENTRY(munmap),
    ENTRY(PyMem_Malloc),
    ENTRY(PyMem_Calloc),
    ENTRY(PyMem_RawMalloc),
    ENTRY(PyMem_Free),
    ENTRY(PyMem_RawFree),
    ENTRY(dnnl_engine_create),
    ENTRY(dnnl_engine_destroy),
    ENTRY(dnnl_stream_create),
    ENTRY(dnnl_stream_destroy),
    ENTRY(dnnl_memory_create),
    ENTRY(dnnl_memory_destroy),
    ENTRY(dnnl_memory_desc_clone),
    ENTRY(dnnl_memory_desc_create_with_strides),
    ENTRY(dnnl_memory_desc_create_with_tag),
    ENTRY(dnnl_memory_desc_destroy),
    ENTRY(dnnl_post_ops_create),
    ENTRY(dnnl_post_ops_destroy),
    ENTRY(dnnl_primitive_attr_create),
    ENTRY(dnnl_primitive_attr_destroy),
    ENTRY(dnnl_primitive_attr_set_post_ops),
    ENTRY(dnnl_primitive_attr_set_scratchpad_mode),
    ENTRY(dnnl_post_ops_append_binary),
    ENTRY(dnnl_post_ops_append_eltwise),
    ENTRY(dnnl_post_ops_append_sum),
    ENTRY(dnnl_convolution_forward_primitive_desc_create),
    ENTRY(dnnl_matmul_primitive_desc_create),
    ENTRY(dnnl_reorder_primitive_desc_create),
    ENTRY(dnnl_primitive_desc_destroy),
    ENTRY(dnnl_primitive_create),
    ENTRY(dnnl_primitive_destroy),
    ENTRY(dnnl_primitive_execute),
};
#define ENTRIES (sizeof entries / sizeof *entries)

/* The library's imports, as the dynamic section describes them. */
typedef struct {
    const ElfW(Sym) * symbols;
    const char *names;
    const ElfW(Rela) * tables[2];
    size_t sizes[2];
} imports;

static imports read_imports(const ElfW(Dyn) * dynamic) {
    imports found = {0};
    for (const ElfW(Dyn) *d = dynamic; d->d_tag != DT_NULL; d++) {
        if (d->d_tag == DT_SYMTAB) found.symbols = (const void *)d->d_un.d_ptr;
        if (d->d_tag == DT_STRTAB) found.names = (const void *)d->d_un.d_ptr;
        if (d->d_tag == DT_JMPREL) found.tables[0] = (const void *)d->d_un.d_ptr;
        if (d->d_tag == DT_PLTRELSZ) found.sizes[0] = d->d_un.d_val;
        if (d->d_tag == DT_RELA) found.tables[1] = (const void *)d->d_un.d_ptr;
        if (d->d_tag == DT_RELASZ) found.sizes[1] = d->d_un.d_val;
    }
    return found;
}

/* resolve returns the address of the function itself, which the wrappers call, as dlsym does in the program's scope. */
typedef struct {
    const char *library;
    void *(*resolve)(const char *name);
    int changed;
} request;

static void redirect(request *r, uintptr_t *place, const char *name) {
    for (size_t i = 0; i < ENTRIES; i++) {
        if (strcmp(name, entries[i].name) != 0) continue;
        uintptr_t page = (uintptr_t)place & ~(uintptr_t)(sysconf(_SC_PAGESIZE) - 1);
        if (!*entries[i].real) *entries[i].real = r->resolve(name);
        if (!*entries[i].real || mprotect((void *)page, (size_t)sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE)) return;
        *place = (uintptr_t)entries[i].fault;
        r->changed++;
    }
}

static int visit(struct dl_phdr_info *info, size_t size, void *argument) {
    request *r = argument;
    (void)size;
    if (!strstr(info->dlpi_name, r->library)) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type != PT_DYNAMIC) continue;
        imports found = read_imports((const void *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr));
        for (size_t t = 0; t < 2; t++)
            for (size_t j = 0; j < found.sizes[t] / sizeof(ElfW(Rela)); j++) {
                const ElfW(Rela) *relocation = &found.tables[t][j];
                const ElfW(Sym) *symbol = &found.symbols[ELF64_R_SYM(relocation->r_info)];
                if (symbol->st_name && symbol->st_shndx == SHN_UNDEF)
                    redirect(r, (uintptr_t *)(info->dlpi_addr + relocation->r_offset), found.names + symbol->st_name);
            }
    }
    return 1;
}

/* Changes the addresses of the library whose path contains the text. Returns how many were changed. */
EXPORT int faults_install(const char *library, void *(*resolve)(const char *name)) {
    request r = {library, resolve, 0};
    dl_iterate_phdr(visit, &r);
    return r.changed;
}
