/* The operations that own kernels do: those of the backend's table, and what products and convolutions need beside a
 * library. */
#ifndef SID_CUDA_OPS_H
#define SID_CUDA_OPS_H

#include "cuda/launch.h"

/* --- the backend's table: contracts in core/backend.h --- */

int sid_cuda_group_norm(sid_exec *exec, sid_tensor *dst, const sid_group_norm *norm);
int sid_cuda_layer_norm(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, const float *scale, const float *shift,
                        float eps);
int sid_cuda_attention(sid_exec *exec, sid_tensor *dst, const sid_attention *attention);
int sid_cuda_combine(sid_exec *exec, sid_tensor *dst, float a, const sid_tensor *x, float b, const sid_tensor *y);
int sid_cuda_blend_rows(sid_exec *exec, sid_tensor *dst, const float *a, const sid_tensor *x, const sid_tensor *y);
int sid_cuda_from_planes(sid_exec *exec, sid_tensor *dst, const sid_planes *planes, const sid_curve *curve);
int sid_cuda_to_planes(sid_exec *exec, sid_planes *planes, const sid_tensor *src, const sid_curve *curve);
int sid_cuda_mix(sid_exec *exec, float *z, const float *p, size_t count, double up, double down, double a, double b);
int sid_cuda_tile_take(sid_exec *exec, float *tile, const float *planes, const sid_window *window);
int sid_cuda_tile_add(sid_exec *exec, float *planes, const float *tile, const sid_window *window,
                      const float *row_shares, const float *column_shares);
int sid_cuda_floats_open(sid_backend *backend, float **floats, size_t parts, const sid_weight *const *weights);

/* --- pointwise.c --- */

/* Computes dst from src, which may be dst, as `post` says; each has a dtype and stride of its own. */
int sid_cuda_finish(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, const sid_post *post);

/* A convolution by an own kernel, fast for few outputs; dst and the residual may have any dtype. The weights are (out,
 * kernel, kernel, in) in the backend's dtype, the bias is [out] or NULL, and `post` may have only a residual and relu.
 */
int sid_cuda_conv_direct(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, const sid_conv_shape *shape,
                         const void *weights, const float *bias, const sid_post *post);

/* Spreads y (n, h + 1, w + 1, 4 out) to dst (n, 2h, 2w, out), both in the backend's dtype, and adds bias, which is
 * [out] or NULL. y is a 2 x 2 convolution with one pixel of zeros around its input and the weights that
 * sid_cuda_pack_conv() makes of a shape with `upsample`. */
int sid_cuda_unfold(sid_exec *exec, sid_tensor *dst, const void *y, const float *bias);

/* --- pack.c: weights, in blocks that sid_cuda_give() gives back --- */

/* Takes a block with the weights' numbers in the given dtype, one weight after the other. */
int sid_cuda_stack(sid_cuda *cuda, void **block, sid_dtype dtype, size_t parts, const sid_weight *const *weights);
/* Packs a weight (out, in, kernel, kernel) as (out, kernel, kernel, in) in the backend's dtype. For a shape with
 * `upsample`, which is 3 x 3, it becomes (4 out, 2, 2, in): output phase * out + o is output o of the pixels (2i +
 * p, 2j + q) with phase = 2p + q. */
int sid_cuda_pack_conv(sid_cuda *cuda, void **block, const sid_conv_shape *shape, const sid_weight *weight);

#endif
