#include "model/tiles.h"

#include <math.h>
#include <stdlib.h>

#include "core/err.h"
#include "core/ops.h"

#define TILE 80    /* latent pixels a side, at most */
#define OVERLAP 16 /* latent pixels that neighbouring tiles share, at least */
#define MARGIN \
    4 /* latent pixels at a tile's inner edges that are not used, because they have not seen what lies beyond */

/* ---- how an axis is cut ---- */

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

/* A tile's weight at its pixel q, `scale` pixels to a latent one: d - MARGIN at a distance d to the nearest inner edge,
 * but not below 0, and not above OVERLAP - 2 MARGIN, so that a tile counts in full outside of its overlaps. */
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
            size_t at = pixel - start_of(c, other) * scale; /* huge before its start, by wrapping around */
            if (at < c->size * scale) total += weight_at(c, other, scale, at);
        }
        shares[q] = weight_at(c, tile, scale, q) / total;
    }
}

/* ---- runs ---- */

typedef struct {
    const sid_map *map;
    sid_planes *dst;
    const sid_planes *src;
    cut rows, columns;
    size_t row, column; /* the tile's number */
    float *shares;      /* on the host: of the tile's rows, then of its columns */
} task;

static task task_of(const sid_map *map, sid_planes *dst, const sid_planes *src) {
    size_t h = dst->h < src->h ? dst->h : src->h, w = dst->w < src->w ? dst->w : src->w;
    return (task){.map = map, .dst = dst, .src = src, .rows = cut_axis(h), .columns = cut_axis(w)};
}

/* Pixels of the planes for one of the latents, in each direction. */
static size_t scale_of(const task *t, const sid_planes *planes) { return planes->h / t->rows.length; }

static sid_planes tile_of(const task *t, const sid_planes *planes) {
    size_t scale = scale_of(t, planes);
    return (sid_planes){NULL, planes->n, planes->c, t->rows.size * scale, t->columns.size * scale};
}

static sid_window window_of(const task *t, const sid_planes *planes) {
    size_t scale = scale_of(t, planes);
    return (sid_window){.planes = planes->n * planes->c,
                        .height = planes->h,
                        .width = planes->w,
                        .top = start_of(&t->rows, t->row) * scale,
                        .left = start_of(&t->columns, t->column) * scale,
                        .rows = t->rows.size * scale,
                        .columns = t->columns.size * scale};
}

static int run_whole(sid_exec *exec, const void *arguments) {
    const task *t = arguments;
    return t->map->run(exec, t->map->network, t->dst, t->src);
}

static int run_tile(sid_exec *exec, const void *arguments) {
    const task *t = arguments;
    size_t mark = sid_arena_mark(&exec->arena);
    sid_planes from = tile_of(t, t->src), to = tile_of(t, t->dst);
    sid_window in = window_of(t, t->src), out = window_of(t, t->dst);
    float *shares;
    SID_TRY(sid_arena_planes(&exec->arena, &from));
    SID_TRY(sid_arena_planes(&exec->arena, &to));
    SID_TRY(sid_arena_floats(&exec->arena, &shares, out.rows + out.columns));
    SID_TRY(sid_tile_take(exec, from.data, t->src->data, &in));
    SID_TRY(t->map->run(exec, t->map->network, &to, &from));
    SID_TRY(sid_write(exec, shares, t->shares, (out.rows + out.columns) * sizeof *shares));
    const float *column_shares = shares ? shares + out.rows : NULL;
    SID_TRY(sid_tile_add(exec, t->dst->data, to.data, &out, shares, column_shares));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

static int run_tiles(sid_runner *runner, task *t) {
    sid_exec outside = {.backend = runner->backend};
    size_t scale = scale_of(t, t->dst);
    SID_TRY(sid_zero(&outside, t->dst->data, sid_planes_count(t->dst) * sizeof(float)));
    for (t->row = 0; t->row < t->rows.count; t->row++)
        for (t->column = 0; t->column < t->columns.count; t->column++) {
            fill_shares(t->shares, &t->rows, t->row, scale);
            fill_shares(t->shares + t->rows.size * scale, &t->columns, t->column, scale);
            SID_TRY(sid_run(runner, 0, run_tile, t));
        }
    return SID_OK;
}

static int is_cut(const task *t, int tiled) { return tiled && (t->rows.count > 1 || t->columns.count > 1); }

int sid_map_planes(sid_runner *runner, const sid_map *map, sid_planes *dst, const sid_planes *src, int tiled) {
    task t = task_of(map, dst, src);
    if (!is_cut(&t, tiled)) return sid_run(runner, 0, run_whole, &t);
    t.shares = malloc((t.rows.size + t.columns.size) * scale_of(&t, dst) * sizeof *t.shares);
    int status = t.shares ? run_tiles(runner, &t) : sid_fail(SID_EMEMORY, "out of memory");
    free(t.shares);
    return status;
}

int sid_map_scratch(sid_runner *runner, const sid_map *map, size_t *bytes, const sid_planes *dst, const sid_planes *src,
                    int tiled) {
    sid_planes unused = *dst;
    task t = task_of(map, &unused, src);
    return sid_run_scratch(runner, bytes, is_cut(&t, tiled) ? run_tile : run_whole, &t);
}
