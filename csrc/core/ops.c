#include "core/ops.h"

#include "core/err.h"

/* Models are built from checked configurations, so a mismatch here is a mistake in this library, not the user's. */
static int expect(int fits, const char *op) {
    return fits ? SID_OK : sid_fail(SID_EINTERNAL, "%s: shapes do not fit", op);
}

static const sid_curve identity = {.factor = 1};

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
    SID_TRY(expect(src->c == linear->shape.in && dst->c == linear->shape.out && sid_rows(dst) == sid_rows(src) &&
                       post_fits(dst, post) && !post->relu &&
                       !(post->activation == SID_SILU && (post->factor || post->residual)),
                   "linear"));
    return exec->backend->linear(exec, dst, src, linear, post);
}

int sid_group_normalize(sid_exec *exec, sid_tensor *dst, const sid_group_norm *norm) {
    const sid_tensor *a = norm->a, *b = norm->b, *add = norm->add;
    size_t channels = a->c + (b ? b->c : 0);
    SID_TRY(expect(dst->n == a->n && dst->h == a->h && dst->w == a->w && dst->c == channels &&
                       (!b || (b->n == a->n && b->h == a->h && b->w == a->w)) && channels % norm->groups == 0 &&
                       dst->stride == dst->c &&
                       (!add || (add->dtype == SID_F32 && add->c == channels && sid_rows(add) == add->n &&
                                 (add->n == 1 || add->n == a->n))),
                   "group_norm"));
    return exec->backend->group_norm(exec, dst, norm);
}

int sid_layer_normalize(sid_exec *exec, sid_tensor *dst, const sid_tensor *src, const float *scale, const float *shift,
                        float eps) {
    SID_TRY(expect(same_shape(dst, src), "layer_norm"));
    return exec->backend->layer_norm(exec, dst, src, scale, shift, eps);
}

static int source_fits(const sid_attention *attention, const sid_keys *source) {
    const sid_tensor *q = attention->q, *k = &source->k, *v = &source->v;
    return k->c == q->c && v->c == q->c && k->n == v->n && k->h * k->w == v->h * v->w && sid_rows(k) &&
           (k->n == 1 || k->n == q->n) && k->dtype == q->dtype && v->dtype == q->dtype;
}

int sid_attend(sid_exec *exec, sid_tensor *dst, const sid_attention *attention) {
    const sid_tensor *q = attention->q;
    int fits = same_shape(dst, q) && sid_rows(q) && attention->source_count && q->c % attention->heads == 0;
    for (size_t i = 0; i < attention->source_count; i++) fits = fits && source_fits(attention, &attention->sources[i]);
    if (attention->causal)
        fits = fits && attention->source_count == 1 && attention->sources->k.h * attention->sources->k.w == q->h * q->w;
    SID_TRY(expect(fits, "attention"));
    return exec->backend->attention(exec, dst, attention);
}

int sid_combine(sid_exec *exec, sid_tensor *dst, float a, const sid_tensor *x, float b, const sid_tensor *y) {
    SID_TRY(expect(sid_rows(dst) == sid_rows(x) && dst->c == x->c &&
                       (!y || (sid_rows(y) == sid_rows(x) && y->c == x->c)),
                   "combine"));
    return exec->backend->combine(exec, dst, a, x, b, y);
}

int sid_blend_rows(sid_exec *exec, sid_tensor *dst, const float *a, const sid_tensor *x, const sid_tensor *y) {
    SID_TRY(expect(same_shape(dst, x) && same_shape(dst, y), "blend_rows"));
    return exec->backend->blend_rows(exec, dst, a, x, y);
}

static int planes_fit(const sid_planes *planes, const sid_tensor *t) {
    return planes->n == t->n && planes->c == t->c && planes->h == t->h && planes->w == t->w;
}

int sid_from_planes(sid_exec *exec, sid_tensor *dst, const sid_planes *planes, const sid_curve *curve) {
    SID_TRY(expect(planes_fit(planes, dst) && dst->stride == dst->c, "from_planes"));
    return exec->backend->from_planes(exec, dst, planes, curve ? curve : &identity);
}

int sid_to_planes(sid_exec *exec, sid_planes *planes, const sid_tensor *src, const sid_curve *curve) {
    SID_TRY(expect(planes_fit(planes, src), "to_planes"));
    return exec->backend->to_planes(exec, planes, src, curve ? curve : &identity);
}

int sid_mix(sid_exec *exec, float *z, const float *p, size_t count, double up, double down, double a, double b) {
    return exec->backend->mix(exec, z, p, count, up, down, a, b);
}

static int window_fits(const sid_window *w) {
    return w->top + w->rows <= w->height && w->left + w->columns <= w->width;
}

int sid_tile_take(sid_exec *exec, float *tile, const float *planes, const sid_window *window) {
    SID_TRY(expect(window_fits(window), "tile_take"));
    return exec->backend->tile_take(exec, tile, planes, window);
}

int sid_tile_add(sid_exec *exec, float *planes, const float *tile, const sid_window *window, const float *row_shares,
                 const float *column_shares) {
    SID_TRY(expect(window_fits(window), "tile_add"));
    return exec->backend->tile_add(exec, planes, tile, window, row_shares, column_shares);
}

int sid_write(sid_exec *exec, void *block, const void *host, size_t size) {
    return sid_measuring(&exec->arena) ? SID_OK : exec->backend->write(exec, block, host, size);
}

int sid_read(sid_exec *exec, void *host, const void *block, size_t size) {
    return sid_measuring(&exec->arena) ? SID_OK : exec->backend->read(exec, host, block, size);
}

int sid_copy(sid_exec *exec, void *block, const void *from, size_t size) {
    return sid_measuring(&exec->arena) ? SID_OK : exec->backend->copy(exec, block, from, size);
}

int sid_zero(sid_exec *exec, void *block, size_t size) {
    return sid_measuring(&exec->arena) ? SID_OK : exec->backend->zero(exec, block, size);
}
