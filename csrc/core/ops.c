#include "core/ops.h"

#include "core/err.h"

/* Models are built from checked configurations, so a mismatch here is a mistake in this library, not the user's. */
static int expect(int fits, const char *op) {
    return fits ? SID_OK : sid_fail(SID_EINTERNAL, "%s: shapes do not fit", op);
}

static int same_shape(const sid_tensor *a, const sid_tensor *b) {
    return a->n == b->n && a->h == b->h && a->w == b->w && a->c == b->c;
}

static int post_fits(const sid_tensor *dst, const sid_post *post) {
    return (!post->factor || same_shape(dst, post->factor)) && (!post->residual || same_shape(dst, post->residual));
}

int sid_new(sid_exec *exec, sid_tensor *t, size_t n, size_t h, size_t w, size_t c) {
    return sid_arena_tensor(&exec->arena, t, exec->backend->dtype, n, h, w, c);
}

int sid_new_like(sid_exec *exec, sid_tensor *t, const sid_tensor *like, size_t c) {
    return sid_new(exec, t, like->n, like->h, like->w, c);
}

size_t sid_conv_size(const sid_conv_shape *s, size_t size) {
    size_t padded = (s->upsample ? 2 * size : size) + s->pad_before + s->pad_after;
    return padded < s->kernel ? 0 : (padded - s->kernel) / s->stride + 1;
}

int sid_conv2d(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_conv *conv, const sid_post *post) {
    const sid_conv_shape *s = &conv->shape;
    post = post ? post : &(sid_post){0};
    SID_TRY(expect(src->c == s->in && dst->c == s->out && dst->n == src->n && dst->h == sid_conv_size(s, src->h) &&
                       dst->w == sid_conv_size(s, src->w) && dst->h && dst->w && src->stride == src->c &&
                       dst->stride == dst->c && post_fits(dst, post) && !post->factor && !post->activation &&
                       !(s->upsample && (post->residual || post->relu)),
                   "conv2d"));
    return exec->backend->conv(exec, dst, src, conv, post);
}

int sid_linear_map(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, sid_linear *linear, const sid_post *post) {
    post = post ? post : &(sid_post){0};
    SID_TRY(expect(src->c == linear->in && dst->c == linear->out && sid_rows(dst) == sid_rows(src) &&
                       post_fits(dst, post) && !post->relu,
                   "linear"));
    return exec->backend->linear(exec, dst, src, linear, post);
}

int sid_group_normalize(sid_exec *exec, sid_tensor *dst, const sid_group_norm *norm) {
    const sid_tensor *a = norm->a, *b = norm->b;
    size_t channels = a->c + (b ? b->c : 0);
    SID_TRY(expect(dst->n == a->n && dst->h == a->h && dst->w == a->w && dst->c == channels &&
                       (!b || (b->n == a->n && b->h == a->h && b->w == a->w)) && channels % norm->groups == 0 &&
                       dst->stride == dst->c,
                   "group_norm"));
    return exec->backend->group_norm(exec, dst, norm);
}

int sid_layer_normalize(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, const float *scale, const float *shift,
                        float eps) {
    SID_TRY(expect(same_shape(dst, src), "layer_norm"));
    return exec->backend->layer_norm(exec, dst, src, scale, shift, eps);
}

int sid_attend(sid_exec *exec, const sid_attention *problems, size_t count) {
    for (size_t i = 0; i < count; i++)
        SID_TRY(expect(problems[i].queries && problems[i].source_count &&
                           problems[i].heads == problems[0].heads && problems[i].head_size == problems[0].head_size,
                       "attention"));
    return exec->backend->attention(exec, problems, count);
}

int sid_combine(sid_exec *exec, sid_tensor *dst, float a, const sid_tensor *x, float b, const sid_tensor *y) {
    SID_TRY(expect(sid_rows(dst) == sid_rows(x) && dst->c == x->c && (!y || (sid_rows(y) == sid_rows(x) && y->c == x->c)),
                   "combine"));
    return exec->backend->combine(exec, dst, a, x, b, y);
}

int sid_blend_rows(sid_exec *exec, sid_tensor *dst, const float *a, const sid_tensor *x, const sid_tensor *y) {
    SID_TRY(expect(same_shape(dst, x) && same_shape(dst, y), "blend_rows"));
    return exec->backend->blend_rows(exec, dst, a, x, y);
}

int sid_from_planes(sid_exec *exec, sid_tensor *dst, const float *planes, float factor) {
    return exec->backend->from_planes(exec, dst, planes, factor);
}

int sid_to_planes(sid_exec *exec, float *planes, const sid_tensor *src, float factor) {
    return exec->backend->to_planes(exec, planes, src, factor);
}
