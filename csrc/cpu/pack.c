/* Converts and packs weights from a model's files into the memory that the products read. */
#include <stdlib.h>
#include <sys/mman.h>

#include "core/err.h"
#include "core/finite.h"
#include "cpu/primitive.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define STRETCH ((size_t)1 << 13) /* numbers that a thread converts at a time */

/* Large blocks begin at a huge page, so that the weights, which every evaluation reads, take few TLB entries. */
static void *take_block(size_t size) {
    size_t unit = size >= HUGE_PAGE ? HUGE_PAGE : SID_ALIGN;
    size_t padded = (size + SID_ALIGN - 1) / SID_ALIGN * SID_ALIGN;
    void *block = NULL;
    if (posix_memalign(&block, unit, padded) != 0) return NULL;
    if (unit == HUGE_PAGE) madvise(block, padded, MADV_HUGEPAGE);
    return block;
}

int sid_take_packed(sid_cpu *cpu, void **data, size_t size) {
    *data = take_block(size);
    if (!*data) return sid_fail(SID_EMEMORY, "out of memory for %zu bytes of weights", size);
    cpu->base.packed_bytes += size;
    return SID_OK;
}

/* Converts and checks a stretch at a time, while it is in the cache. Returns whether all numbers fit the dtype. */
static int convert(const sid_cpu *cpu, char *dst, sid_dtype dtype, const char *src, sid_dtype stored, size_t count) {
    const size_t size = sid_dtype_size(stored), out = sid_dtype_size(dtype);
    int fit = 1;
#pragma omp parallel for num_threads(cpu->base.threads) reduction(& : fit)
    for (size_t first = 0; first < count; first += STRETCH) {
        size_t some = count - first < STRETCH ? count - first : STRETCH;
        fit &= sid_all_fit(src + first * size, stored, some, dtype);
        cpu->kernels.convert(dst + first * out, dtype, src + first * size, stored, some, 1);
    }
    return fit;
}

static int stack_rows(const sid_cpu *cpu, char *dst, sid_dtype dtype, const sid_weight *weight) {
    size_t rows = weight->shape[0], columns = sid_weight_count(weight) / rows;
    size_t size = sid_dtype_size(weight->dtype), out = sid_dtype_size(dtype);
    if (columns == weight->stride) columns *= rows, rows = 1; /* the rows are dense */
    int fit = 1;
    for (size_t row = 0; row < rows; row++)
        fit &= convert(cpu, dst + row * columns * out, dtype, (const char *)weight->data + row * weight->stride * size,
                       weight->dtype, columns);
    return fit ? SID_OK : sid_refuse_weight(weight, dtype);
}

int sid_pack_bias(sid_packed *packed, size_t parts, const sid_weight *const *biases) {
    size_t count = 0;
    for (size_t i = 0; i < parts; i++) count += biases[i]->shape[0];
    float *next = packed->bias = malloc(count * sizeof *next);
    if (!next) return sid_fail(SID_EMEMORY, "out of memory");
    for (size_t i = 0; i < parts; next += biases[i++]->shape[0]) SID_TRY(sid_weight_floats(next, biases[i]));
    return SID_OK;
}

int sid_stack(const sid_cpu *cpu, void **stacked, sid_dtype dtype, size_t parts, const sid_weight *const *weights) {
    size_t total = 0;
    for (size_t i = 0; i < parts; i++) total += sid_weight_count(weights[i]);
    char *next = *stacked = take_block(total * sid_dtype_size(dtype));
    if (!next) return sid_fail(SID_EMEMORY, "out of memory for weights");
    int status = SID_OK;
    for (size_t i = 0; i < parts && status == SID_OK; next += sid_weight_count(weights[i++]) * sid_dtype_size(dtype))
        status = stack_rows(cpu, next, dtype, weights[i]);
    if (status == SID_OK) return SID_OK;
    free(*stacked);
    *stacked = NULL;
    return status;
}

/* Fills to [panels][in][SID_MATMUL_PANEL] from rows (out, in). */
static void fill_panels(float *to, const float *rows, size_t in, size_t out, int threads) {
    const size_t width = SID_MATMUL_PANEL, panels = (out + width - 1) / width;
#pragma omp parallel for num_threads(threads)
    for (size_t panel = 0; panel < panels; panel++)
        for (size_t i = 0; i < in; i++)
            for (size_t j = 0; j < width; j++) {
                size_t column = panel * width + j;
                to[(panel * in + i) * width + j] = column < out ? rows[column * in + i] : 0;
            }
}

int sid_pack_panels(sid_cpu *cpu, sid_packed *packed, const sid_linear_shape *shape, size_t parts,
                    const sid_weight *const *weights) {
    const size_t padded = (shape->out + SID_MATMUL_PANEL - 1) / SID_MATMUL_PANEL * SID_MATMUL_PANEL;
    void *stacked = NULL;
    SID_TRY(sid_take_packed(cpu, &packed->data, padded * shape->in * sizeof(float)));
    SID_TRY(sid_stack(cpu, &stacked, SID_F32, parts, weights));
    fill_panels(packed->data, stacked, shape->in, shape->out, cpu->base.threads);
    free(stacked);
    return SID_OK;
}
