// Passes over numbers that only move, scale or mix them. The dtypes are fields of the parameters: the branch on them is
// the same for all threads and costs nothing beside the memory's time.
#include "sid.cuh"

// ---- matrices of any dtypes: each thread has N numbers of a row ----

// Gets the row and the first column of number i of rows * c, counted in steps of N. Returns false beyond the end.
template <int N> SID_DEVICE bool place(i64 *row, i64 *column, i64 rows, i64 c) {
    i64 i = (i64)blockIdx.x * SID_CU_THREADS + threadIdx.x, steps = c / N;
    *row = rows == 1 ? 0 : (u32)i / (u32)steps; // a single row may be longer than 2^32 numbers
    *column = (i - *row * steps) * N;
    return *row < rows && *column < c;
}

template <int N> SID_DEVICE void load_row(float *x, const sid_cu_matrix &m, i64 row, i64 column) {
    load_some<N>(x, m.data, m.dtype, row * m.stride + column);
}

template <int N> SID_DEVICE void store_row(const sid_cu_matrix &m, i64 row, i64 column, const float *x) {
    store_some<N>(m.data, m.dtype, row * m.stride + column, x);
}

template <int N> SID_DEVICE void combine_some(const sid_cu_combine &p) {
    i64 row, column;
    float x[N], y[N];
    if (!place<N>(&row, &column, p.rows, p.c)) return;
    float a = p.row_shares ? p.row_shares[row] : p.a, b = p.row_shares ? 1 - a : p.b;
    load_row<N>(x, p.x, row, column);
    if (p.y.data) load_row<N>(y, p.y, row, column);
    for (int k = 0; k < N; k++) x[k] = p.y.data ? a * x[k] + b * y[k] : a * x[k];
    store_row<N>(p.dst, row, column, x);
}

SID_KERNEL(combine, sid_cu_combine, SID_CU_THREADS) {
    if (p.vector) combine_some<SID_CU_VECTOR>(p);
    else combine_some<1>(p);
}

SID_DEVICE float activate(float x, int activation) {
    switch (activation) {
    case SID_CU_GELU_ERF:
        return 0.5f * x * (1 + erff(x * 0.70710678118654752f));
    case SID_CU_GELU_QUICK:
        return x / (1 + expf(-1.702f * x));
    case SID_CU_SILU:
        return silu(x);
    default:
        return x;
    }
}

template <int N> SID_DEVICE void finish_some(const sid_cu_finish &p) {
    i64 row, column;
    float x[N], factor[N], residual[N];
    if (!place<N>(&row, &column, p.rows, p.c)) return;
    load_row<N>(x, p.src, row, column);
    if (p.factor.data) load_row<N>(factor, p.factor, row, column);
    if (p.residual.data) load_row<N>(residual, p.residual, row, column);
    for (int k = 0; k < N; k++) {
        x[k] = activate(x[k], p.activation);
        if (p.factor.data) x[k] *= factor[k];
        if (p.residual.data) x[k] += residual[k];
        if (p.relu) x[k] = x[k] < 0 ? 0 : x[k]; // a NaN stays a NaN
    }
    store_row<N>(p.dst, row, column, x);
}

SID_KERNEL(finish, sid_cu_finish, SID_CU_THREADS) {
    if (p.vector) finish_some<SID_CU_VECTOR>(p);
    else finish_some<1>(p);
}

// ---- planes of float32 <-> pixels of the backend's dtype, through a tile, so that both sides move whole lines ----

#define TILE SID_CU_PLANES_TILE
#define TILE_ROWS (SID_CU_THREADS / TILE)

SID_DEVICE float bend(const sid_cu_planes &p, float x) {
    float y = p.factor * x + p.offset;
    return p.bound > 0 ? p.bound * tanhf(y / p.bound) : y;
}

// The place of a block's tile, for a grid of (n * tiles of pixels, tiles of channels).
struct planes_tile {
    int sample, pixel, channel;
};

SID_DEVICE planes_tile tile_of(const sid_cu_planes &p) {
    int tiles = (p.pixels + TILE - 1) / TILE, sample = blockIdx.x / tiles;
    return {sample, (int)(blockIdx.x - sample * tiles) * TILE, (int)blockIdx.y * TILE};
}

SID_KERNEL(from_planes, sid_cu_planes, SID_CU_THREADS) {
    SID_SHARED(float, tile, TILE *(TILE + 1)); // the extra column puts a column's numbers in different banks
    planes_tile t = tile_of(p);
    int x = threadIdx.x % TILE, first = threadIdx.x / TILE;
    for (int y = first; y < TILE; y += TILE_ROWS)
        if (t.channel + y < p.c && t.pixel + x < p.pixels)
            tile[y * (TILE + 1) + x] = p.planes[((i64)t.sample * p.c + t.channel + y) * p.pixels + t.pixel + x];
    __syncthreads();
    for (int y = first; y < TILE; y += TILE_ROWS)
        if (t.channel + x < p.c && t.pixel + y < p.pixels)
            store(p.pixels_first.data, p.pixels_first.dtype,
                  ((i64)t.sample * p.pixels + t.pixel + y) * p.pixels_first.stride + t.channel + x,
                  bend(p, tile[x * (TILE + 1) + y]));
}

SID_KERNEL(to_planes, sid_cu_planes, SID_CU_THREADS) {
    SID_SHARED(float, tile, TILE *(TILE + 1));
    planes_tile t = tile_of(p);
    int x = threadIdx.x % TILE, first = threadIdx.x / TILE;
    for (int y = first; y < TILE; y += TILE_ROWS)
        if (t.channel + x < p.c && t.pixel + y < p.pixels)
            tile[y * (TILE + 1) + x] =
                load(p.pixels_first.data, p.pixels_first.dtype,
                     ((i64)t.sample * p.pixels + t.pixel + y) * p.pixels_first.stride + t.channel + x);
    __syncthreads();
    for (int y = first; y < TILE; y += TILE_ROWS)
        if (t.channel + y < p.c && t.pixel + x < p.pixels)
            p.planes[((i64)t.sample * p.c + t.channel + y) * p.pixels + t.pixel + x] =
                bend(p, tile[x * (TILE + 1) + y]);
}

// ---- latents ----

SID_KERNEL(mix, sid_cu_mix, SID_CU_THREADS) {
    i64 i = (i64)blockIdx.x * SID_CU_THREADS + threadIdx.x;
    if (i >= p.count) return;
    double z = p.z[i];
    float result = (float)(p.up * z + p.down * (p.a * p.p[i] + p.b * z));
    p.z[i] = result;
    if ((float_bits(result) & 0x7f800000) == 0x7f800000) *p.overflow = 1; // other threads write the same value here
}

// ---- tiles of images: each thread has a number of the tile ----

SID_DEVICE bool tile_place(const sid_cu_tile &p, i64 *i, i64 *place, int *row, int *column) {
    *i = (i64)blockIdx.x * SID_CU_THREADS + threadIdx.x;
    if (*i >= p.count) return false;
    *column = (int)(*i % p.columns);
    *row = (int)(*i / p.columns % p.rows);
    *place = (*i / p.columns / p.rows * p.height + p.top + *row) * p.width + p.left + *column;
    return true;
}

SID_KERNEL(tile_take, sid_cu_tile, SID_CU_THREADS) {
    i64 i, place;
    int row, column;
    if (tile_place(p, &i, &place, &row, &column)) p.tile[i] = p.planes[place];
}

SID_KERNEL(tile_add, sid_cu_tile, SID_CU_THREADS) {
    i64 i, place;
    int row, column;
    if (tile_place(p, &i, &place, &row, &column))
        p.planes[place] += p.row_shares[row] * p.column_shares[column] * p.tile[i];
}
