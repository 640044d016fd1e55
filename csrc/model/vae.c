#include "model/vae.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "model/autoencoder.h"

#define TILE 80    /* latent pixels a side, at most */
#define OVERLAP 16 /* of neighbouring tiles, at least */
#define MARGIN 4   /* of a tile, at an end where another goes on: not used, because it knows nothing of what follows */

struct sid_vae {
    sid_vae_config config;
    const sid_autoencoder *kind;
    void *network;
};

int sid_vae_open(sid_builder *builder, sid_vae **vae, const sid_vae_config *config) {
    sid_vae *v = *vae = calloc(1, sizeof *v);
    if (!v) return sid_fail(SID_EMEMORY, "out of memory");
    v->config = *config;
    v->kind = config->kind == SID_VAE_TINY ? &sid_taesd : &sid_kl;
    return v->kind->open(builder, &v->network, config);
}

void sid_vae_close(sid_backend *backend, sid_vae **vae) {
    if (!*vae) return;
    if ((*vae)->network) (*vae)->kind->close(backend, (*vae)->network);
    free(*vae);
    *vae = NULL;
}

/* ---- tiles ---- */

/* An axis of latent pixels, cut into `count` overlapping tiles of one size, the first and the last at its ends. */
typedef struct {
    size_t length, size, count;
} cut;

static cut cut_axis(size_t length) {
    if (length <= TILE) return (cut){length, length, 1};
    size_t step = TILE - OVERLAP, count = (length - OVERLAP + step - 1) / step;
    return (cut){length, (length + (count - 1) * OVERLAP + count - 1) / count, count};
}

static size_t start_of(const cut *c, size_t tile) {
    return c->count == 1 ? 0 : tile * (c->length - c->size) / (c->count - 1);
}

/* A tile's weight at its pixel q, of `scale` to a latent one: d - MARGIN for a distance d to the nearest end at which
 * another tile goes on, but 0 below, and no more than where the two tiles share the overlap. */
static float weight_at(const cut *c, size_t tile, size_t scale, size_t q) {
    float before = tile ? (float)q + 0.5f : INFINITY;
    float after = tile + 1 < c->count ? (float)(c->size * scale - q) - 0.5f : INFINITY;
    float rise = fminf(before, after) - (float)(MARGIN * scale);
    return fminf(fmaxf(rise, 0), (float)((OVERLAP - 2 * MARGIN) * scale));
}

/* shares [size * scale]: a tile's weight at each of its pixels over the sum of all tiles'. */
static void fill_shares(float *shares, const cut *c, size_t tile, size_t scale) {
    for (size_t q = 0; q < c->size * scale; q++) {
        size_t pixel = start_of(c, tile) * scale + q;
        float total = 0;
        for (size_t other = 0; other < c->count; other++) {
            size_t at = pixel - start_of(c, other) * scale; /* wraps around to huge before its start */
            if (at < c->size * scale) total += weight_at(c, other, scale, at);
        }
        shares[q] = weight_at(c, tile, scale, q) / total;
    }
}

/* Planes on one side of a network: channels, and pixels to a latent one. */
typedef struct {
    size_t channels, scale;
} side;

typedef int (*network_run)(sid_exec *exec, const void *network, float *dst, const float *src, size_t n, size_t h,
                           size_t w);

/* One run in tiles: latents of n x h x w on one of its sides. */
typedef struct {
    network_run run;
    const void *network;
    side in, out;
    size_t n;
    cut rows, columns;
} tiling;

static void copy_tile(float *tile, const tiling *t, const float *src, size_t row, size_t column) {
    size_t scale = t->in.scale, height = t->rows.size * scale, width = t->columns.size * scale;
    size_t full_width = t->columns.length * scale, area = t->rows.length * scale * full_width;
    src += start_of(&t->rows, row) * scale * full_width + start_of(&t->columns, column) * scale;
    for (size_t plane = 0; plane < t->n * t->in.channels; plane++, src += area)
        for (size_t y = 0; y < height; y++, tile += width) memcpy(tile, src + y * full_width, width * sizeof *tile);
}

static void blend_tile(float *dst, const tiling *t, const float *tile, const float *row_shares,
                       const float *column_shares, size_t row, size_t column) {
    size_t scale = t->out.scale, height = t->rows.size * scale, width = t->columns.size * scale;
    size_t full_width = t->columns.length * scale, area = t->rows.length * scale * full_width;
    dst += start_of(&t->rows, row) * scale * full_width + start_of(&t->columns, column) * scale;
    for (size_t plane = 0; plane < t->n * t->out.channels; plane++, dst += area)
        for (size_t y = 0; y < height; y++, tile += width)
            for (size_t x = 0; x < width; x++) dst[y * full_width + x] += row_shares[y] * column_shares[x] * tile[x];
}

/* dst = the sum of what the network makes of each tile times the tile's share. */
static int run_tiles(sid_exec *exec, const tiling *t, float *dst, const float *src) {
    size_t mark = sid_arena_mark(&exec->arena), h = t->rows.size, w = t->columns.size;
    size_t area = t->n * h * w, in = t->in.scale, out = t->out.scale;
    float *from, *to, *row_shares, *column_shares;
    SID_TRY(sid_arena_floats(&exec->arena, &from, t->in.channels * area * in * in));
    SID_TRY(sid_arena_floats(&exec->arena, &to, t->out.channels * area * out * out));
    SID_TRY(sid_arena_floats(&exec->arena, &row_shares, h * out));
    SID_TRY(sid_arena_floats(&exec->arena, &column_shares, w * out));
    if (sid_measuring(&exec->arena)) {
        SID_TRY(t->run(exec, t->network, to, from, t->n, h * in, w * in)); /* all tiles are alike */
    } else {
        memset(dst, 0, t->n * t->out.channels * t->rows.length * t->columns.length * out * out * sizeof *dst);
        for (size_t row = 0; row < t->rows.count; row++)
            for (size_t column = 0; column < t->columns.count; column++) {
                copy_tile(from, t, src, row, column);
                SID_TRY(t->run(exec, t->network, to, from, t->n, h * in, w * in));
                fill_shares(row_shares, &t->rows, row, out);
                fill_shares(column_shares, &t->columns, column, out);
                blend_tile(dst, t, to, row_shares, column_shares, row, column);
            }
    }
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

/* ---- the two directions ---- */

static int run_encoder(sid_exec *exec, const sid_vae *vae, network_run run, float *planes, const float *images,
                       size_t n, size_t height, size_t width, int tiled) {
    const sid_vae_config *c = &vae->config;
    size_t factor = sid_vae_factor(c), h = height / factor, w = width / factor;
    if (!tiled || (h <= TILE && w <= TILE)) return run(exec, vae->network, planes, images, n, height, width);
    tiling t = {run, vae->network, {c->image_channels, factor}, {c->latent_channels, 1}, n, cut_axis(h), cut_axis(w)};
    return run_tiles(exec, &t, planes, images);
}

int sid_vae_encode(sid_exec *exec, const sid_vae *vae, float *latents, const float *images, size_t n, size_t height,
                   size_t width, int tiled) {
    return run_encoder(exec, vae, vae->kind->encode, latents, images, n, height, width, tiled);
}

int sid_vae_has_posterior(const sid_vae *vae) { return vae->kind->log_variance != NULL; }

int sid_vae_log_variance(sid_exec *exec, const sid_vae *vae, float *planes, const float *images, size_t n,
                         size_t height, size_t width, int tiled) {
    if (!sid_vae_has_posterior(vae)) return sid_fail(SID_EVALUE, "this model's VAE has no posterior to sample from");
    return run_encoder(exec, vae, vae->kind->log_variance, planes, images, n, height, width, tiled);
}

int sid_vae_decode(sid_exec *exec, const sid_vae *vae, float *images, const float *latents, size_t n, size_t h,
                   size_t w, int tiled) {
    const sid_vae_config *c = &vae->config;
    if (!tiled || (h <= TILE && w <= TILE)) return vae->kind->decode(exec, vae->network, images, latents, n, h, w);
    tiling t = {vae->kind->decode, vae->network, {c->latent_channels, 1}, {c->image_channels, sid_vae_factor(c)}, n,
                cut_axis(h),       cut_axis(w)};
    return run_tiles(exec, &t, images, latents);
}
