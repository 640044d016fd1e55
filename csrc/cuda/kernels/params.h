/* The parameters of every kernel, in a header that is both C and CUDA C, so that the host and the device agree on
 * each structure by construction. Pointers are addresses of the device. No structure has padding, because launches
 * are compared by bytes. */
#ifndef SID_CUDA_KERNELS_PARAMS_H
#define SID_CUDA_KERNELS_PARAMS_H

/* These are numbered as sid_dtype and sid_activation. */
enum { SID_CU_F32, SID_CU_BF16, SID_CU_F16 };
enum { SID_CU_NO_ACTIVATION, SID_CU_GELU_ERF, SID_CU_GELU_QUICK, SID_CU_SILU };

/* Threads of a block, for kernels that have no reason for another number. */
#define SID_CU_THREADS 256
#define SID_CU_WARP 32

/* Numbers that a thread loads at once if channels, strides and addresses allow it (`vector`). */
#define SID_CU_VECTOR 8

/* Rows of numbers. */
typedef struct {
    void *data; /* NULL if there is no matrix */
    int stride; /* elements from one row to the next */
    int dtype;
} sid_cu_matrix;

/* ---- pointwise.cu ---- */

/* dst = a x + b y. With row_shares, a row's share is the factor of x, and the rest to 1 that of y. */
typedef struct {
    sid_cu_matrix dst, x, y;
    const float *row_shares; /* NULL, or [rows] */
    long long rows, c;
    float a, b;
    int vector, unused;
} sid_cu_combine;

/* dst = activation(src) * factor + residual, or the positive part of that where relu is set. */
typedef struct {
    sid_cu_matrix dst, src, factor, residual;
    long long rows, c;
    int activation, relu, vector, unused;
} sid_cu_finish;

/* Converts between (n, c, pixels) in float32 and (n, pixels, c): y = factor x + offset, or bound * tanh(y / bound)
 * where bound > 0. */
typedef struct {
    sid_cu_matrix pixels_first; /* n * pixels rows of c numbers */
    float *planes;
    int n, c, pixels;
    float factor, offset, bound;
} sid_cu_planes;
#define SID_CU_PLANES_TILE 32 /* pixels, and channels, of a block */

/* z = up z + down (a p + b z), in double precision. */
typedef struct {
    float *z;
    const float *p;
    int *overflow; /* set to 1 where a result is not finite, else left alone */
    long long count;
    double up, down, a, b;
} sid_cu_mix;

/* A rectangle of (planes, height, width) and the tile (planes, rows, columns) of its size. */
typedef struct {
    float *planes, *tile;
    const float *row_shares, *column_shares; /* used by tile_add */
    long long count;                         /* numbers of the tile */
    int height, width, top, left, rows, columns;
} sid_cu_tile;

/* ---- norm.cu ---- */

/* Grids: group_stats (chunks, n), group_apply (apply_chunks, n). */
typedef struct {
    void *dst;
    const void *a, *b; /* (n, pixels, a_channels) and (n, pixels, b_channels), side by side; b may be NULL */
    const float *add;  /* NULL, or added to each channel; add_stride leads from one sample's row to the next */
    const float *scale, *shift;
    float *stats; /* (n, chunks, groups, 2): mean, sum of squares about it */
    long long pixels;
    int a_channels, b_channels, a_stride, b_stride, add_stride, groups;
    int chunk, chunks;             /* pixels of a chunk, chunks of a sample */
    int apply_chunk, apply_chunks; /* the same for the second kernel */
    float eps;
    int silu, vector, unused;
} sid_cu_group_norm;
#define SID_CU_MAX_CHUNKS 128
#define SID_CU_MAX_GROUPS 1024

typedef struct {
    void *dst;
    const void *src;
    const float *scale, *shift;
    long long rows;
    int c, dst_stride, src_stride, vector;
    float eps;
    int unused;
} sid_cu_layer_norm;

/* ---- attention.cu, attention_wide.cu, attention_float.cu ---- */

typedef struct {
    const void *k, *v;
    const float *query_bias, *key_bias; /* NULL, or [queries], [tokens] */
    float bias;
    int tokens, k_stride, v_stride;
    int samples; /* 0 if one serves all samples; 1 if there is one for each, one after the other */
    int unused;
} sid_cu_source;

#define SID_CU_MAX_SOURCES 64 /* as many as fit into the 4 KB that a launch's parameters may have */

/* Grid: (blocks of queries, heads [* slices of the values' channels], samples). */
typedef struct {
    void *dst;
    const void *q;
    int queries, dst_stride, q_stride, sources;
    int heads, head_size;
    int causal; /* query i sees the keys up to i */
    int vector; /* the head size, all strides and all addresses are whole vectors */
    float scale;
    int unused;
    sid_cu_source source[SID_CU_MAX_SOURCES];
} sid_cu_attention;
#define SID_CU_LARGEST_HEAD 160 /* the largest head size of attention.cu */
#define SID_CU_WIDE_QUERIES 64  /* queries of a block of attention_wide */
#define SID_CU_WIDE_SLICE 128   /* channels of the values that it sums up */
#define SID_CU_FLOAT_QUERIES 32 /* queries of a block of attention_float */
#define SID_CU_FLOAT_SLICE 64

/* ---- conv.cu ---- */

/* A convolution by a warp for each output pixel and SID_CU_CONV_OUTPUTS outputs, whose groups are the grid's y. The
 * weights are (out, kernel, kernel, in). */
typedef struct {
    void *dst;
    const void *src, *weights, *residual; /* the residual is NULL, or has dst's shape */
    const float *bias;                    /* NULL: none */
    long long pixels;                     /* pixels of all outputs */
    int in_height, in_width, height, width, in, out, kernel, stride, pad;
    int dst_dtype, residual_dtype, relu, vector, unused;
} sid_cu_conv_direct;
#define SID_CU_CONV_OUTPUTS 8

/* dst (n, 2 h, 2 w, out) is made from the four phases y (n, h + 1, w + 1, 4 out) of a convolution of a doubled
 * image. */
typedef struct {
    void *dst;
    const void *y;
    const float *bias; /* NULL: none */
    long long count;   /* vectors, or numbers, of dst */
    int height, width; /* h, w */
    int out, vector;
} sid_cu_unfold;

/* ---- pack.cu ---- */

/* (out, in, kernel, kernel) as stored becomes (out, kernel, kernel, in), or, by pack_doubling, (4 out, 2, 2, in)
 * from 3x3. */
typedef struct {
    void *dst;
    const void *src;
    long long count; /* numbers of dst */
    int in, taps;    /* taps: kernel * kernel */
    int dst_dtype, src_dtype;
} sid_cu_pack;

#endif
