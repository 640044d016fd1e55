/* The kernels for AMX: attention in bfloat16 by tile instructions. */
#include "cpu/kernels.h"

/* GCC supports the tile instructions from version 11 on. */
#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 11)

#define AVX512_BF16 "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"
#ifdef SID_AMX_EMULATED
#define SID_TARGET __attribute__((target(AVX512_BF16)))
#else
#define SID_TARGET __attribute__((target(AVX512_BF16 ",amx-tile,amx-bf16")))
#endif
#define SID_LANES 16
#include "cpu/amx_tiles.h"
#include "cpu/simd_bf16.h"

#define SID_ROWS 16
#define SID_GROUP 32
#define SID_PAIR 2
#define SID_KEY_BLOCK 128
#define SID_EXP2 v_exp2_short

/* The multiply() of attention_tmpl.h. Tiles 0 to 2 hold c, tile 3 the panel's rows, and tiles 4 to 6 the columns of
 * b. */
SID_TARGET static inline __attribute__((always_inline)) void multiply(float *c, const uint16_t *panel, const float *b,
                                                                      size_t words, int add, int columns) {
    const size_t stride = (size_t)columns * SID_TILE_BYTES;
    if (add) {
        SID_TILE_LOAD(0, c, stride);
        if (columns > 1) SID_TILE_LOAD(1, c + SID_LANES, stride);
        if (columns > 2) SID_TILE_LOAD(2, c + 2 * SID_LANES, stride);
    } else {
        SID_TILE_ZERO(0);
        if (columns > 1) SID_TILE_ZERO(1);
        if (columns > 2) SID_TILE_ZERO(2);
    }
    for (size_t i = 0; i < words; i += SID_TILE_ROWS) {
        const float *rows = b + i * (size_t)columns * SID_LANES;
        SID_TILE_LOAD(3, panel + i * 2 * SID_ROWS, SID_TILE_BYTES);
        SID_TILE_LOAD(4, rows, stride);
        SID_TILE_DOT(0, 3, 4);
        if (columns > 1) {
            SID_TILE_LOAD(5, rows + SID_LANES, stride);
            SID_TILE_DOT(1, 3, 5);
        }
        if (columns > 2) {
            SID_TILE_LOAD(6, rows + 2 * SID_LANES, stride);
            SID_TILE_DOT(2, 3, 6);
        }
    }
    SID_TILE_STORE(0, c, stride);
    if (columns > 1) SID_TILE_STORE(1, c + SID_LANES, stride);
    if (columns > 2) SID_TILE_STORE(2, c + 2 * SID_LANES, stride);
}
#include "cpu/attention_tmpl.h"

SID_ATTENTION_TILE(on_tiles, SID_BF16)

SID_TARGET static void attention_tile(const sid_attention_tile *tile) {
    tiles_begin();
    on_tiles_tile(tile);
    tiles_end();
}

/* Panels of V^T need a transposition, which would take as long as the products if it moved single elements. Here it
 * moves words, each a pair of keys, so that a panel's row of 32 keys has 16 of them. */
SID_TARGET static void attention_pack(void *dst, const void *src, size_t row_stride, size_t depth_stride, size_t rows,
                                      size_t depth) {
    if (row_stride != 1) {
        on_tiles_pack(dst, src, row_stride, depth_stride, rows, depth);
        return;
    }
    float *word = dst;
    for (size_t row = 0; row < rows; row += SID_ROWS) {
        __mmask16 inside = rows - row < SID_ROWS ? (__mmask16)((1u << (rows - row)) - 1) : (__mmask16)0xffff;
        for (size_t first = 0; first < depth; first += SID_GROUP, word += SID_ROWS * SID_GROUP / SID_PAIR) {
            vec r[SID_ROWS];
            for (size_t j = 0; j < SID_ROWS; j++) {
                size_t d = first + 2 * j;
                const uint16_t *at = (const uint16_t *)src + d * depth_stride + row;
                __m256i low = _mm256_maskz_loadu_epi16(d < depth ? inside : 0, at);
                __m256i high = _mm256_maskz_loadu_epi16(d + 1 < depth ? inside : 0, at + depth_stride);
                r[j] = v_interleave(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
            }
            v_transpose(r);
            for (size_t i = 0; i < SID_ROWS; i++) v_store(word + i * SID_GROUP / SID_PAIR, r[i]);
        }
    }
}

SID_ATTENTION_TABLE(attention_bf16, attention_tile, attention_pack)

void sid_kernels_amx(sid_kernels *kernels) { SID_FILL_ATTENTION(kernels, SID_BF16, attention_bf16); }

#else

void sid_kernels_amx(sid_kernels *kernels) { (void)kernels; }

#endif
