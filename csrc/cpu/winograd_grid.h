/* Where the tiles of a Winograd convolution lie, and the kernels that walk over them. */
#ifndef SID_CPU_WINOGRAD_GRID_H
#define SID_CPU_WINOGRAD_GRID_H

#include "core/tensor.h"

/* Tiles first .. first + count - 1, counted row by row through all samples of h x w pixels. */
typedef struct {
    size_t h, w, first, count;
} sid_winograd_grid;

/* A tile's sample, and its first output pixel. */
typedef struct {
    size_t n, y, x;
} sid_tile_place;

/* Tile `at` of the grid's, of output x output pixels. */
static inline sid_tile_place sid_place_of(const sid_winograd_grid *g, size_t at, size_t output) {
    size_t tile = g->first + at, columns = (g->w + output - 1) / output, rows = (g->h + output - 1) / output;
    return (sid_tile_place){tile / columns / rows, tile / columns % rows * output, tile % columns * output};
}

/* The kernels winograd_input_N and winograd_output_N from functions of one tile. */
#define WINOGRAD_KERNELS(N, INPUT_TILE, OUTPUT_TILE)                                                                   \
    static void winograd_input_##N(void *v, const sid_winograd_grid *g, const void *src, sid_dtype dtype,              \
                                   size_t channels, int threads) {                                                     \
        _Pragma("omp parallel for num_threads(threads)") for (size_t i = 0; i < g->count; i++)                         \
            INPUT_TILE(v, i, g, src, dtype, channels);                                                                 \
    }                                                                                                                  \
    static void winograd_output_##N(void *dst, sid_dtype dtype, const sid_winograd_grid *g, const float *m,            \
                                    size_t channels, const float *bias, const void *residual, int relu, int threads) { \
        _Pragma("omp parallel for num_threads(threads)") for (size_t i = 0; i < g->count; i++)                         \
            OUTPUT_TILE(dst, dtype, g, m, i, channels, bias, residual, relu);                                          \
    }

#endif
