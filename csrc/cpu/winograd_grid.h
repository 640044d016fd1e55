/* The places of the tiles of a Winograd convolution, and the kernels that walk over them. */
#ifndef SID_CPU_WINOGRAD_GRID_H
#define SID_CPU_WINOGRAD_GRID_H

#include "core/tensor.h"

/* The tiles first .. first + count - 1, counted row by row through all samples of h x w pixels. */
typedef struct {
    size_t h, w, first, count;
} sid_winograd_grid;

/* Returns the rows and columns of an output tile, by the dtype of the transformed tiles: F(4x4, 3x3) in float32, and
 * F(2x2, 3x3), which loses less, in bfloat16. An input tile has two more. */
static inline size_t sid_winograd_side(sid_dtype dtype) { return dtype == SID_F32 ? 4 : 2; }

/* What the tiles are transformed back to: dst (n, h, w, channels) = the convolution + bias (channels) + residual,
 * and the positive part of that sum where relu is set. The residual, which may be NULL, has dst's shape and dtype. */
typedef struct {
    void *dst;
    const void *residual;
    const float *bias;
    sid_dtype dtype;
    size_t channels;
    int relu;
} sid_winograd_maps;

/* A tile's sample and its first output pixel. */
typedef struct {
    size_t n, y, x;
} sid_tile_place;

/* Returns the place of tile `at` of the grid, for tiles of output x output pixels. */
static inline sid_tile_place sid_place_of(const sid_winograd_grid *g, size_t at, size_t output) {
    size_t tile = g->first + at, columns = (g->w + output - 1) / output, rows = (g->h + output - 1) / output;
    return (sid_tile_place){tile / columns / rows, tile / columns % rows * output, tile % columns * output};
}

/* Defines the kernels winograd_input_NAME and winograd_output_NAME from functions of one tile. */
#define SID_WINOGRAD_KERNELS(NAME, INPUT_TILE, OUTPUT_TILE)                                                       \
    static void winograd_input_##NAME(void *v, const sid_winograd_grid *g, const void *src, sid_dtype dtype,      \
                                      size_t channels, int threads) {                                             \
        _Pragma("omp parallel for num_threads(threads)") for (size_t i = 0; i < g->count; i++)                    \
            INPUT_TILE(v, i, g, src, dtype, channels);                                                            \
    }                                                                                                             \
    static void winograd_output_##NAME(const sid_winograd_maps *maps, const sid_winograd_grid *g, const float *m, \
                                       int threads) {                                                             \
        _Pragma("omp parallel for num_threads(threads)") for (size_t i = 0; i < g->count; i++)                    \
            OUTPUT_TILE(maps, g, m, i);                                                                           \
    }

#endif
