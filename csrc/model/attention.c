#include "model/attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"
#include "core/loan.h"

/* The first half of the channels of kv are keys, the second half values. */
static sid_tensor keys_of(const sid_tensor *kv) { return sid_channels(kv, 0, kv->c / 2); }
static sid_tensor values_of(const sid_tensor *kv) { return sid_channels(kv, kv->c / 2, kv->c / 2); }

/* Tokens first .. first + count - 1 of a (1, 1, tokens, channels) matrix. */
static sid_tensor tokens_of(const sid_tensor *t, size_t first, size_t count) {
    sid_tensor part = *t;
    if (part.data) part.data = (char *)t->data + first * t->stride * sid_dtype_size(t->dtype);
    part.w = count;
    return part;
}

static size_t key_count(const sid_keys *sources, size_t count) {
    size_t tokens = 0;
    for (size_t i = 0; i < count; i++) tokens += sources[i].k.h * sources[i].k.w;
    return tokens;
}

static int attend(sid_exec *exec, sid_tensor *dst, const sid_tensor *q, const sid_keys *sources, size_t count,
                  size_t heads, float temperature) {
    size_t head_size = q->c / heads;
    float scale = temperature / sqrtf((float)head_size);
    return sid_attend(exec, dst, &(sid_attention){q, sources, count, heads, scale, 0});
}

/* ---- a hook's attention ---- */

typedef struct {
    const sid_transformer *t;
    sid_tensor *dst;
    sid_keys sources[SID_MAX_STYLES];
    size_t count;
    float temperature;
    sid_attention_inputs inputs;
} hooked;

/* host (rows of t, channels) = t. */
static int show_tensor(sid_exec *exec, float *host, const sid_tensor *t) {
    sid_loan loan;
    SID_TRY(sid_loan_open(&loan, exec, host, sid_rows(t) * t->c * sizeof *host, 0));
    sid_tensor dense = sid_dense(loan.block, SID_F32, t->n, t->h, t->w, t->c);
    int status = sid_combine(exec, &dense, 1, t, 0, NULL);
    int closed = sid_loan_close(&loan, exec, status == SID_OK);
    return status == SID_OK ? closed : status;
}

/* Copies Q, and K and V of all sources, for the hook. */
static int show(sid_exec *exec, hooked *h, const sid_tensor *q, float *copies) {
    sid_attention_inputs *in = &h->inputs;
    float *k = copies + in->queries * in->channels, *v = k + in->keys * in->channels;
    in->q = copies, in->k = k, in->v = v;
    SID_TRY(show_tensor(exec, copies, q));
    for (size_t i = 0; i < h->count; i++) {
        const sid_keys *s = &h->sources[i];
        SID_TRY(show_tensor(exec, k, &s->k));
        SID_TRY(show_tensor(exec, v, &s->v));
        k += sid_rows(&s->k) * in->channels, v += sid_rows(&s->v) * in->channels;
    }
    return SID_OK;
}

/* Converts a lent float32 matrix to the backend's dtype. */
static int take_back(sid_exec *exec, sid_tensor *t, const sid_loan *loan, size_t rows, size_t channels) {
    sid_tensor given = sid_dense(loan->block, SID_F32, 1, 1, rows, channels);
    SID_TRY(sid_new_like(exec, t, &given, channels));
    return sid_combine(exec, t, 1, &given, 0, NULL);
}

/* Where the hook leaves the number of keys, they keep their biases; otherwise all keys become one source without
 * biases. */
static int attend_to_inputs(sid_exec *exec, hooked *h, const sid_loan loans[3]) {
    const sid_attention_inputs *in = &h->inputs;
    sid_tensor q, k, v;
    SID_TRY(take_back(exec, &q, &loans[0], in->queries, in->channels));
    SID_TRY(take_back(exec, &k, &loans[1], in->keys, in->channels));
    SID_TRY(take_back(exec, &v, &loans[2], in->keys, in->channels));
    q.h = h->dst->h, q.w = h->dst->w;
    if (in->keys != key_count(h->sources, h->count)) {
        h->sources[0] = (sid_keys){.k = k, .v = v};
        h->count = 1;
    }
    for (size_t i = 0, first = 0; i < h->count; i++) {
        size_t tokens = sid_rows(&h->sources[i].k);
        h->sources[i].k = tokens_of(&k, first, tokens);
        h->sources[i].v = tokens_of(&v, first, tokens);
        first += tokens;
    }
    return attend(exec, h->dst, &q, h->sources, h->count, h->t->heads, h->temperature);
}

/* Attends in memory of its own, because the hook may give more than was measured. */
static int attend_apart(const sid_exec *exec, hooked *h, const sid_loan loans[3]) {
    sid_exec own = {.backend = exec->backend, .arena = {.measuring = 1}, .run = exec->run};
    SID_TRY(attend_to_inputs(&own, h, loans));
    SID_TRY(sid_arena_open(&own.arena, &exec->backend->memory, own.arena.peak));
    int status = attend_to_inputs(&own, h, loans);
    sid_arena_close(&own.arena);
    return status;
}

static int attend_lent(sid_exec *exec, hooked *h) {
    const sid_attention_inputs *in = &h->inputs;
    const float *const arrays[] = {in->q, in->k, in->v};
    const size_t rows[] = {in->queries, in->keys, in->keys};
    sid_loan loans[3] = {{0}};
    int status = SID_OK;
    for (size_t i = 0; i < 3 && status == SID_OK; i++)
        status = sid_loan_open(&loans[i], exec, arrays[i], rows[i] * in->channels * sizeof(float), 1);
    if (status == SID_OK) status = attend_apart(exec, h, loans);
    for (size_t i = 0; i < 3; i++) sid_loan_close(&loans[i], exec, 0);
    return status;
}

static int attend_hooked(sid_exec *exec, const sid_tap *tap, hooked *h, const sid_tensor *q) {
    sid_attention_inputs *in = &h->inputs;
    if (sid_measuring(&exec->arena)) return SID_OK;
    *in = (sid_attention_inputs){
        .queries = sid_rows(q), .keys = key_count(h->sources, h->count), .channels = h->t->channels};
    float *copies = malloc((in->queries + 2 * in->keys) * in->channels * sizeof *copies);
    if (!copies) return sid_fail(SID_EMEMORY, "out of memory");
    int status = show(exec, h, q, copies);
    if (status == SID_OK && tap->hook->call(tap->hook->self, tap->step, (size_t)h->t->layer, in))
        status = sid_fail(SID_ECANCELLED, "cancelled at layer %d", h->t->layer);
    if (status == SID_OK) status = attend_lent(exec, h);
    free(copies);
    return status;
}

static int is_hooked(const sid_tap *tap, int layer) { return tap && tap->hook && tap->hook->layers[layer]; }

/* One sample's attention in a layer with a tap, whose hook may see it. */
static int attend_tapped(sid_exec *exec, const sid_transformer *t, const sid_tap *tap, sid_tensor *dst,
                         const sid_tensor *q, const sid_keys *sources, size_t count, float temperature) {
    if (!is_hooked(tap, t->layer)) return attend(exec, dst, q, sources, count, t->heads, temperature);
    hooked h = {.t = t, .dst = dst, .count = count, .temperature = temperature};
    memcpy(h.sources, sources, count * sizeof *sources);
    return attend_hooked(exec, tap, &h, q);
}

/* ---- kept features ---- */

static int is_elsewhere(const sid_exec *exec, const sid_bank *bank) {
    return bank->on_host && !exec->backend->memory.is_host;
}

static int keep(sid_exec *exec, const sid_bank *bank, sid_tensor *slot, const sid_tensor *features) {
    if (!is_elsewhere(exec, bank)) return sid_combine(exec, slot, 1, features, 0, NULL);
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor copy;
    SID_TRY(sid_arena_tensor(&exec->arena, &copy, bank->dtype, 1, 1, slot->w, slot->c));
    SID_TRY(sid_combine(exec, &copy, 1, features, 0, NULL));
    SID_TRY(sid_read(exec, slot->data, copy.data, slot->w * slot->c * sid_dtype_size(bank->dtype)));
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}

static int save_features(sid_exec *exec, const sid_tap *tap, int number, const sid_tensor *q, const sid_tensor *kv) {
    for (size_t i = 0; i < q->n; i++) {
        const sid_bank *bank = tap->saved[i];
        const sid_bank_layer *layer = &bank->layers[number];
        sid_tensor query = sid_sample(q, i), both = sid_sample(kv, i);
        sid_tensor features[] = {query, keys_of(&both), values_of(&both)};
        void *kept[] = {layer->query, layer->key, layer->value};
        for (size_t f = 0; f < 3; f++) {
            if (!kept[f]) continue;
            sid_tensor slot = sid_bank_slot(bank, layer, kept[f], tap->step);
            SID_TRY(keep(exec, bank, &slot, &features[f]));
        }
    }
    return SID_OK;
}

/* Fetches a step's features in the bank's dtype. */
static int fetch(sid_exec *exec, sid_tensor *features, const sid_bank *bank, const sid_bank_layer *layer, void *kept,
                 size_t step) {
    sid_tensor slot = *features = sid_bank_slot(bank, layer, kept, step);
    if (!is_elsewhere(exec, bank)) return SID_OK;
    SID_TRY(sid_arena_tensor(&exec->arena, features, bank->dtype, 1, 1, slot.w, slot.c));
    return sid_write(exec, features->data, slot.data, slot.w * slot.c * sid_dtype_size(bank->dtype));
}

/* Fetches them in the backend's dtype. */
static int fetch_converted(sid_exec *exec, sid_tensor *features, const sid_bank *bank, const sid_bank_layer *layer,
                           void *kept, size_t step) {
    sid_tensor converted;
    SID_TRY(fetch(exec, features, bank, layer, kept, step));
    if (bank->dtype == exec->backend->dtype) return SID_OK;
    SID_TRY(sid_new_like(exec, &converted, features, features->c));
    SID_TRY(sid_combine(exec, &converted, 1, features, 0, NULL));
    *features = converted;
    return SID_OK;
}

/* ---- plain and injected attention ---- */

int sid_attend_samples(sid_exec *exec, sid_tensor *dst, const sid_tensor *q, const sid_tensor *kv, size_t heads) {
    return attend(exec, dst, q, &(sid_keys){.k = keys_of(kv), .v = values_of(kv)}, 1, heads, 1);
}

/* kv = the layer's own keys and values of x, stacked. */
static int own_keys(sid_exec *exec, const sid_transformer *t, sid_tensor *kv, const sid_tensor *x) {
    SID_TRY(sid_new_like(exec, kv, x, 2 * t->channels));
    return sid_linear_map(exec, kv, x, t->attention1.keys, NULL);
}

static const sid_bank_layer *style_layer(const sid_injection *in, size_t style, int layer) {
    return &in->styles[style]->layers[layer];
}
static int has_own_keys(const sid_injection *in, int layer) {
    return !in->style_count || !style_layer(in, 0, layer)->key || !style_layer(in, 0, layer)->value;
}
static int injects_keys(const sid_injection *in, int layer) {
    return in->style_count && (style_layer(in, 0, layer)->key || style_layer(in, 0, layer)->value);
}
static int injects_query(const sid_injection *in, int layer) { return in->content && in->content->layers[layer].query; }

/* The keys and values of one style: those that its bank has, and otherwise the layer's own. */
static int style_source(sid_exec *exec, sid_keys *source, const sid_tap *tap, size_t style, int number,
                        const sid_tensor *own) {
    const sid_injection *in = tap->injection;
    const sid_bank_layer *layer = style_layer(in, style, number);
    *source = (sid_keys){.bias = logf(in->weights[style])};
    if (layer->key) SID_TRY(fetch_converted(exec, &source->k, in->styles[style], layer, layer->key, tap->step));
    else source->k = keys_of(own);
    if (layer->value) SID_TRY(fetch_converted(exec, &source->v, in->styles[style], layer, layer->value, tap->step));
    else source->v = values_of(own);
    size_t keys = sid_rows(&source->k), values = sid_rows(&source->v);
    return keys == values ? SID_OK : sid_fail(SID_EVALUE, "layer %d: %zu keys, but %zu values", number, keys, values);
}

/* What queries attend to: all styles, or the layer's own keys and values where no style's are injected. */
static int injected_sources(sid_exec *exec, const sid_tap *tap, int number, sid_keys *sources, size_t *count,
                            const sid_tensor *own, size_t queries) {
    const sid_injection *in = tap->injection;
    const sid_region *region = in->regions ? &in->regions[number] : NULL;
    *count = 1;
    if (!injects_keys(in, number)) {
        sources[0] = (sid_keys){.k = keys_of(own), .v = values_of(own)};
        return SID_OK;
    }
    *count = in->style_count;
    for (size_t i = 0; i < in->style_count; i++) {
        SID_TRY(style_source(exec, &sources[i], tap, i, number, own));
        if (!region) continue;
        sources[i].query_bias = region->bias ? region->bias + i * queries : NULL;
        sources[i].key_bias = region->key_bias[i];
    }
    return SID_OK;
}

/* q = gamma Q_content + (1 - gamma) q */
static int inject_query(sid_exec *exec, const sid_tap *tap, int number, sid_tensor *q) {
    const sid_injection *in = tap->injection;
    const sid_bank_layer *layer = &in->content->layers[number];
    float gamma = in->gamma[tap->step * in->layers + (size_t)number];
    sid_tensor content;
    SID_TRY(fetch(exec, &content, in->content, layer, layer->query, tap->step));
    return sid_combine(exec, q, gamma, &content, 1 - gamma, q);
}

/* Q = gamma Q_content + (1 - gamma) Q; K, V = the styles'; softmax(temperature Q K^T / sqrt(d)) V. Where the injection
 * does not cover everything, the rest is the plain attention. */
static int inject(sid_exec *exec, const sid_transformer *t, const sid_tap *tap, sid_tensor *dst, sid_tensor *q,
                  const sid_tensor *x) {
    const sid_injection *in = tap->injection;
    const float *cover = in->regions ? in->regions[t->layer].cover : NULL;
    float temperature = in->temperature[tap->step * in->layers + (size_t)t->layer];
    sid_keys sources[SID_MAX_STYLES];
    sid_tensor own = {0}, plain;
    size_t count;
    if (cover || has_own_keys(in, t->layer)) SID_TRY(own_keys(exec, t, &own, x));
    if (cover) {
        SID_TRY(sid_new_like(exec, &plain, q, q->c));
        SID_TRY(sid_attend_samples(exec, &plain, q, &own, t->heads));
    }
    if (injects_query(in, t->layer)) SID_TRY(inject_query(exec, tap, t->layer, q));
    SID_TRY(injected_sources(exec, tap, t->layer, sources, &count, &own, sid_rows(q)));
    SID_TRY(attend_tapped(exec, t, tap, dst, q, sources, count, temperature));
    return cover ? sid_blend_rows(exec, dst, cover, dst, &plain) : SID_OK;
}

/* Every sample attends to its own keys. */
static int attend_own(sid_exec *exec, const sid_transformer *t, const sid_tap *tap, sid_tensor *dst,
                      const sid_tensor *q, const sid_tensor *kv) {
    if (!is_hooked(tap, t->layer)) return sid_attend_samples(exec, dst, q, kv, t->heads);
    for (size_t i = 0; i < q->n; i++) {
        sid_tensor d = sid_sample(dst, i), query = sid_sample(q, i), own = sid_sample(kv, i);
        sid_keys source = {.k = keys_of(&own), .v = values_of(&own)};
        SID_TRY(attend_tapped(exec, t, tap, &d, &query, &source, 1, 1));
    }
    return SID_OK;
}

static int injects(const sid_tap *tap, int layer) {
    const sid_injection *in = tap->injection;
    return in && (!in->where || in->where[tap->step * in->layers + (size_t)layer]) &&
           (injects_query(in, layer) || injects_keys(in, layer));
}

int sid_self_attention(sid_exec *exec, const sid_transformer *t, sid_tensor *dst, const sid_tensor *x,
                       const sid_tap *tap) {
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor q, kv;
    if (t->layer < 0) tap = NULL;
    SID_TRY(sid_new_like(exec, &q, x, t->channels));
    SID_TRY(sid_linear_map(exec, &q, x, t->attention1.query, NULL));
    if (tap && injects(tap, t->layer)) {
        SID_TRY(inject(exec, t, tap, dst, &q, x));
    } else {
        SID_TRY(own_keys(exec, t, &kv, x));
        if (tap && tap->saved) SID_TRY(save_features(exec, tap, t->layer, &q, &kv));
        SID_TRY(attend_own(exec, t, tap, dst, &q, &kv));
    }
    sid_arena_release(&exec->arena, mark);
    return SID_OK;
}
