/* The CPU's entry in the backend table: oneDNN does convolutions and products, own kernels do the rest. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "cpu/cpu.h"
#include "cpu/memory.h"
#include "cpu/primitive.h"
#include "cpu/team.h"

static sid_isa forced_isa = SID_ISA_COUNT; /* SID_ISA_COUNT stands for the best */

static sid_isa isa_in_use(void) {
    sid_isa best = sid_cpu_isa();
    return forced_isa < best ? forced_isa : best;
}

static const sid_kernels *kernels_of(const sid_exec *exec) { return &((const sid_cpu *)exec->backend)->kernels; }

static int cpu_group_norm(sid_exec *exec, sid_tensor *dst, const sid_group_norm *norm) {
    size_t mark = sid_arena_mark(&exec->arena);
    int threads = exec->backend->threads;
    void *scratch;
    SID_TRY(sid_arena_take(&exec->arena, &scratch, sid_group_norm_scratch(norm, threads)));
    if (!sid_measuring(&exec->arena)) kernels_of(exec)->group_norm(dst->data, norm, scratch, threads);
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

static int cpu_layer_norm(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, const float *scale,
                          const float *shift, float eps) {
    if (!sid_measuring(&exec->arena)) kernels_of(exec)->layer_norm(dst, src, scale, shift, eps, exec->backend->threads);
    return SID_OK;
}

static int cpu_attention(sid_exec *exec, sid_tensor *dst, const sid_attention *attention) {
    const sid_kernels *kernels = kernels_of(exec);
    size_t mark = sid_arena_mark(&exec->arena);
    sid_dtype dtype = exec->backend->dtype;
    int threads = exec->backend->threads;
    void *scratch;
    SID_TRY(sid_arena_take(&exec->arena, &scratch, kernels->attention_scratch[dtype](attention, threads)));
    if (!sid_measuring(&exec->arena)) kernels->attention[dtype](dst, attention, scratch, threads);
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

static void *row_of(const sid_tensor *t, size_t row) {
    return (char *)t->data + row * t->stride * sid_dtype_size(t->dtype);
}

/* The combination of dst, x and y, which may be NULL, from that row on. */
static sid_combination combination_of(const sid_tensor *dst, float a, const sid_tensor *x, float b, const sid_tensor *y,
                                      size_t row) {
    sid_combination c = {.dst = row_of(dst, row), .x = row_of(x, row), .a = a, .b = b};
    c.dst_dtype = dst->dtype, c.x_dtype = x->dtype;
    if (y) c.y = row_of(y, row), c.y_dtype = y->dtype;
    return c;
}

static int cpu_combine(sid_exec *exec, sid_tensor *dst, float a, const sid_tensor *x, float b, const sid_tensor *y) {
    const sid_kernels *kernels = kernels_of(exec);
    int threads = exec->backend->threads;
    size_t rows = sid_rows(dst), c = dst->c;
    if (sid_measuring(&exec->arena)) return SID_OK;
    if (dst->stride == c && x->stride == c && (!y || y->stride == c)) {
        sid_combination all = combination_of(dst, a, x, b, y, 0);
        kernels->combine(&all, rows * c, threads);
        return SID_OK;
    }
#pragma omp parallel for num_threads(threads)
    for (size_t row = 0; row < rows; row++) {
        sid_combination one = combination_of(dst, a, x, b, y, row);
        kernels->combine(&one, c, 1);
    }
    return SID_OK;
}

static int cpu_blend_rows(sid_exec *exec, sid_tensor *dst, const float *a, const sid_tensor *x, const sid_tensor *y) {
    const sid_kernels *kernels = kernels_of(exec);
    size_t rows = sid_rows(dst);
    if (sid_measuring(&exec->arena)) return SID_OK;
#pragma omp parallel for num_threads(exec->backend->threads)
    for (size_t row = 0; row < rows; row++) {
        sid_combination one = combination_of(dst, a[row], x, 1 - a[row], y, row);
        kernels->combine(&one, dst->c, 1);
    }
    return SID_OK;
}

static int cpu_from_planes(sid_exec *exec, sid_tensor *dst, const sid_planes *planes, const sid_curve *curve) {
    if (!sid_measuring(&exec->arena)) kernels_of(exec)->from_planes(dst, planes, curve, exec->backend->threads);
    return SID_OK;
}

static int cpu_to_planes(sid_exec *exec, sid_planes *planes, const sid_tensor *src, const sid_curve *curve) {
    if (!sid_measuring(&exec->arena)) kernels_of(exec)->to_planes(planes, src, curve, exec->backend->threads);
    return SID_OK;
}

/* When a call returns, the CPU has done what was asked for, so a run has nothing to begin, end or wait for. */
static int cpu_begin(sid_exec *exec, uint64_t key) {
    (void)exec, (void)key;
    return SID_OK;
}

static int cpu_end(sid_exec *exec, int status, int *again) {
    (void)exec, (void)again;
    return status;
}

static int cpu_pace(sid_backend *backend, size_t runs) {
    (void)backend, (void)runs;
    return SID_OK;
}

static void cpu_close(sid_backend **backend) {
    sid_cpu *cpu = (sid_cpu *)*backend;
    if (!cpu) return;
    if (cpu->engine) dnnl_engine_destroy(cpu->engine);
    free(cpu);
    *backend = NULL;
}

int sid_cpu_open(sid_backend **backend, sid_dtype dtype, int threads) {
    *backend = NULL;
    if (dtype == SID_F16)
        return sid_fail(SID_EVALUE, "dtype: float16 is computed on GPUs only; use float32 or bfloat16");
    if (dtype == SID_BF16 && isa_in_use() < SID_ISA_AVX512) /* oneDNN has no products of bfloat16 there */
        return sid_fail(SID_EVALUE, "dtype: bfloat16 needs AVX-512, and this CPU has or uses %s; use float32",
                        sid_isa_name(isa_in_use()));
    SID_TRY(sid_team_open());
    sid_cpu *cpu = calloc(1, sizeof *cpu);
    *backend = (sid_backend *)cpu;
    if (!cpu) return sid_fail(SID_EMEMORY, "out of memory");
    cpu->base = (sid_backend){
        .memory = sid_cpu_memory,
        .dtype = dtype,
        .threads = threads,
        .close = cpu_close,
        .write = sid_cpu_move,
        .read = sid_cpu_move,
        .copy = sid_cpu_move,
        .zero = sid_cpu_zero,
        .begin = cpu_begin,
        .end = cpu_end,
        .pace = cpu_pace,
        .floats_open = sid_cpu_floats_open,
        .conv_open = sid_cpu_conv_open,
        .conv_close = sid_cpu_conv_close,
        .conv = sid_cpu_conv,
        .linear_open = sid_cpu_linear_open,
        .linear_close = sid_cpu_linear_close,
        .linear = sid_cpu_linear,
        .group_norm = cpu_group_norm,
        .layer_norm = cpu_layer_norm,
        .attention = cpu_attention,
        .combine = cpu_combine,
        .blend_rows = cpu_blend_rows,
        .from_planes = cpu_from_planes,
        .to_planes = cpu_to_planes,
        .mix = sid_cpu_mix,
        .tile_take = sid_cpu_tile_take,
        .tile_add = sid_cpu_tile_add,
    };
    sid_kernels_fill(&cpu->kernels, isa_in_use());
    SID_DNNL(dnnl_engine_create(&cpu->engine, dnnl_cpu, 0));
    return SID_OK;
}

int sid_cpu_force_isa(const char *name) {
    static const dnnl_cpu_isa_t limits[SID_ISA_COUNT] = {dnnl_cpu_isa_sse41, dnnl_cpu_isa_avx2,
                                                         dnnl_cpu_isa_avx512_core, dnnl_cpu_isa_avx512_core_bf16,
                                                         dnnl_cpu_isa_avx512_core_amx};
    for (sid_isa isa = SID_ISA_GENERIC; isa < SID_ISA_COUNT; isa++) {
        if (strcmp(name, sid_isa_name(isa)) != 0) continue;
        if (isa > sid_cpu_isa())
            return sid_fail(SID_EVALUE, "this CPU has no %s, only %s", name, sid_isa_name(sid_cpu_isa()));
        SID_DNNL(dnnl_set_max_cpu_isa(limits[isa]));
        forced_isa = isa;
        return SID_OK;
    }
    return sid_fail(SID_EVALUE, "unknown instruction set %.32s, expected generic, avx2, avx512, avx512_bf16 or amx",
                    name);
}

void sid_cpu_describe(sid_cpu_info *info) {
    const dnnl_version_t *version = dnnl_version();
    *info = (sid_cpu_info){
        .isa = sid_isa_name(isa_in_use()),
        .isa_count = (size_t)sid_cpu_isa() + 1,
        .native_bfloat16 = isa_in_use() >= SID_ISA_AVX512_BF16,
        .major = version->major,
        .minor = version->minor,
        .patch = version->patch,
        .threading = version->cpu_runtime == DNNL_RUNTIME_OMP ? "OpenMP" : "other",
        .threads = omp_get_max_threads(),
    };
}
