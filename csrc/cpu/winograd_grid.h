/* Where the tiles of a Winograd convolution lie. */
#ifndef SID_CPU_WINOGRAD_GRID_H
#define SID_CPU_WINOGRAD_GRID_H

#include <stddef.h>

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

#endif
