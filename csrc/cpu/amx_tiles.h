/* The tile instructions as the attention kernel uses them: eight tiles of 16 rows of 64 bytes. Tile numbers are
 * literals. With SID_AMX_EMULATED they are plain C instead, so that the kernel can be tested on any processor. */
#ifndef SID_CPU_AMX_TILES_H
#define SID_CPU_AMX_TILES_H

#include "core/floats.h"

#define SID_TILE_ROWS 16
#define SID_TILE_BYTES 64

#ifndef SID_AMX_EMULATED

#include <immintrin.h>

/* The layout that the instruction reads. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

SID_TARGET static inline void tiles_begin(void) {
    /* This is static because compilers do not see that the instruction reads all of it. */
    static const tile_shapes all __attribute__((aligned(64))) = {
        .palette = 1,
        .row_bytes = {SID_TILE_BYTES, SID_TILE_BYTES, SID_TILE_BYTES, SID_TILE_BYTES, SID_TILE_BYTES, SID_TILE_BYTES,
                      SID_TILE_BYTES, SID_TILE_BYTES},
        .rows = {SID_TILE_ROWS, SID_TILE_ROWS, SID_TILE_ROWS, SID_TILE_ROWS, SID_TILE_ROWS, SID_TILE_ROWS,
                 SID_TILE_ROWS, SID_TILE_ROWS},
    };
    _tile_loadconfig(&all);
}
SID_TARGET static inline void tiles_end(void) { _tile_release(); }

/* Compilers do not see either that a load reads memory, so everything before it has to be written by then. */
#define SID_MEMORY_BARRIER() __asm__ volatile("" ::: "memory")

#define SID_TILE_ZERO(tile) _tile_zero(tile)
#define SID_TILE_LOAD(tile, from, stride) \
    do {                                  \
        SID_MEMORY_BARRIER();             \
        _tile_loadd(tile, from, stride);  \
    } while (0)
#define SID_TILE_STORE(tile, to, stride) \
    do {                                 \
        _tile_stored(tile, to, stride);  \
        SID_MEMORY_BARRIER();            \
    } while (0)
/* c[16][16] += a[16][32] b[32][16]: c is float32, a is bfloat16, and b is [16][16] pairs of bfloat16, each from two
 * rows of the factor. */
#define SID_TILE_DOT(c, a, b) _tile_dpbf16ps(c, a, b)

#else

#include <string.h>

static _Thread_local union {
    float number[SID_TILE_ROWS][16];
    uint16_t pair[SID_TILE_ROWS][16][2];
} tiles[8];

static inline void tiles_begin(void) { memset(tiles, 0xff, sizeof tiles); }
static inline void tiles_end(void) { memset(tiles, 0xff, sizeof tiles); }
static inline void emulated_zero(int tile) { memset(&tiles[tile], 0, sizeof tiles[tile]); }
static inline void emulated_load(int tile, const void *from, size_t stride) {
    for (size_t r = 0; r < SID_TILE_ROWS; r++)
        memcpy(tiles[tile].number[r], (const char *)from + r * stride, SID_TILE_BYTES);
}
static inline void emulated_store(int tile, void *to, size_t stride) {
    for (size_t r = 0; r < SID_TILE_ROWS; r++) memcpy((char *)to + r * stride, tiles[tile].number[r], SID_TILE_BYTES);
}
static inline void emulated_dot(int c, int a, int b) {
    for (int m = 0; m < SID_TILE_ROWS; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++)
                for (int i = 0; i < 2; i++)
                    tiles[c].number[m][n] +=
                        sid_from_bf16(tiles[a].pair[m][k][i]) * sid_from_bf16(tiles[b].pair[k][n][i]);
}

#define SID_TILE_ZERO(tile) emulated_zero(tile)
#define SID_TILE_LOAD(tile, from, stride) emulated_load(tile, from, stride)
#define SID_TILE_STORE(tile, to, stride) emulated_store(tile, to, stride)
#define SID_TILE_DOT(c, a, b) emulated_dot(c, a, b)

#endif
#endif
