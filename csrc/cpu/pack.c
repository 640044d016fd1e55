/* Weights on their way from a model's files into the memory that the products read. */
#include <stdlib.h>
#include <sys/mman.h>

#include "core/err.h"
#include "cpu/primitive.h"

#define HUGE_PAGE ((size_t)2 << 20)

/* Large blocks begin at a huge page, so that the weights that every evaluation reads take few TLB entries. */
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

static void stack_rows(const sid_cpu *cpu, char *dst, sid_dtype dtype, const sid_weight *weight) {
    size_t columns = 1, size = sid_dtype_size(weight->dtype), out = sid_dtype_size(dtype);
    for (size_t i = 1; i < weight->rank; i++) columns *= weight->shape[i];
    int dense = columns == weight->stride;
    size_t rows = dense ? 1 : weight->shape[0], count = dense ? columns * weight->shape[0] : columns;
    for (size_t row = 0; row < rows; row++)
        cpu->kernels.convert(dst + row * columns * out, dtype, (const char *)weight->data + row * weight->stride * size,
                             weight->dtype, count, cpu->base.threads);
}

int sid_pack_bias(sid_packed *packed, size_t parts, const sid_weight *biases) {
    size_t count = 0;
    for (size_t i = 0; i < parts; i++) count += biases[i].shape[0];
    float *next = packed->bias = malloc(count * sizeof *next);
    if (!next) return sid_fail(SID_EMEMORY, "out of memory");
    for (size_t i = 0; i < parts; next += biases[i++].shape[0]) sid_weight_floats(next, &biases[i]);
    return SID_OK;
}

static size_t elements(const sid_weight *weight) {
    size_t count = 1;
    for (size_t d = 0; d < weight->rank; d++) count *= weight->shape[d];
    return count;
}

int sid_stack(const sid_cpu *cpu, void **stacked, sid_dtype dtype, size_t parts, const sid_weight *weights) {
    size_t total = 0;
    for (size_t i = 0; i < parts; i++) total += elements(&weights[i]);
    char *next = *stacked = take_block(total * sid_dtype_size(dtype));
    if (!next) return sid_fail(SID_EMEMORY, "out of memory for weights");
    for (size_t i = 0; i < parts; next += elements(&weights[i++]) * sid_dtype_size(dtype))
        stack_rows(cpu, next, dtype, &weights[i]);
    return SID_OK;
}

int sid_pack_panels(sid_cpu *cpu, sid_packed *packed, size_t in, size_t out, size_t parts, const sid_weight *weights,
                    const sid_weight *biases) {
    const size_t width = SID_MATMUL_PANEL, panels = (out + width - 1) / width;
    void *stacked = NULL;
    int status = sid_take_packed(cpu, &packed->data, panels * width * in * sizeof(float));
    if (status == SID_OK) status = sid_stack(cpu, &stacked, SID_F32, parts, weights);
    if (status == SID_OK) {
        const float *rows = stacked;
        float *to = packed->data;
#pragma omp parallel for num_threads(cpu->base.threads)
        for (size_t panel = 0; panel < panels; panel++)
            for (size_t i = 0; i < in; i++)
                for (size_t j = 0; j < width; j++) {
                    size_t column = panel * width + j;
                    to[(panel * in + i) * width + j] = column < out ? rows[column * in + i] : 0;
                }
    }
    free(stacked);
    return status == SID_OK && biases ? sid_pack_bias(packed, parts, biases) : status;
}
