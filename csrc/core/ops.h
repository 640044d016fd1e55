/* The operations that models are written in: each checks its shapes once, then calls the backend. */
#ifndef SID_CORE_OPS_H
#define SID_CORE_OPS_H

#include "core/backend.h"

/* Makes *t a dense activation in the backend's dtype, in the arena. */
int sid_new(sid_exec *exec, sid_tensor *t, size_t n, size_t h, size_t w, size_t c);
/* Makes *t one of the shape of `like`, but with c channels. */
int sid_new_like(sid_exec *exec, sid_tensor *t, const sid_tensor *like, size_t c);

/* Height or width after a convolution. */
size_t sid_conv_size(const sid_conv_shape *shape, size_t size);

/* What these do is said in core/backend.h. post and curve may be NULL. */
int sid_conv2d(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_conv *conv, const sid_post *post);
int sid_linear_map(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_linear *linear, const sid_post *post);
int sid_group_normalize(sid_exec *exec, sid_tensor *dst, const sid_group_norm *norm);
int sid_layer_normalize(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, const float *scale, const float *shift,
                        float eps);
int sid_attend(sid_exec *exec, sid_tensor *dst, const sid_attention *attention);
int sid_combine(sid_exec *exec, sid_tensor *dst, float a, const sid_tensor *x, float b, const sid_tensor *y);
int sid_blend_rows(sid_exec *exec, sid_tensor *dst, const float *a, const sid_tensor *x, const sid_tensor *y);
int sid_from_planes(sid_exec *exec, sid_tensor *dst, const sid_planes *planes, const sid_curve *curve);
int sid_to_planes(sid_exec *exec, sid_planes *planes, const sid_tensor *src, const sid_curve *curve);
int sid_mix(sid_exec *exec, float *z, const float *p, size_t count, double up, double down, double a, double b);
int sid_tile_take(sid_exec *exec, float *tile, const float *planes, const sid_window *window);
int sid_tile_add(sid_exec *exec, float *planes, const float *tile, const sid_window *window, const float *row_shares,
                 const float *column_shares);

/* These copy between host and backend memory, and within backend memory. While the arena measures, nothing happens. */
int sid_write(sid_exec *exec, void *block, const void *host, size_t size);
int sid_read(sid_exec *exec, void *host, const void *block, size_t size);
int sid_copy(sid_exec *exec, void *block, const void *from, size_t size);
int sid_zero(sid_exec *exec, void *block, size_t size);

#endif
