#include "model/attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"

/* Rows of t: the first half of the channels are keys, the second values. */
static sid_tensor keys_of(const sid_tensor *kv) { return sid_channels(kv, 0, kv->c / 2); }
static sid_tensor values_of(const sid_tensor *kv) { return sid_channels(kv, kv->c / 2, kv->c / 2); }

static sid_keys source_of(const sid_tensor *key, const sid_tensor *value) {
    return (sid_keys){
        .k = key->data, .v = value->data, .tokens = sid_rows(key), .k_stride = key->stride, .v_stride = value->stride};
}

static size_t key_count(const sid_keys *sources, size_t count) {
    size_t tokens = 0;
    for (size_t i = 0; i < count; i++) tokens += sources[i].tokens;
    return tokens;
}

/* All of one sample's queries against `sources`. logits: NULL, or what is added to. */
static int attend(sid_exec *exec, sid_tensor *dst, const sid_tensor *q, const sid_keys *sources, size_t count,
                  size_t heads, float temperature, sid_logits *logits) {
    size_t head_size = q->c / heads;
    sid_attention problem = {
        .dst = dst->data,
        .q = q->data,
        .queries = sid_rows(q),
        .dst_stride = dst->stride,
        .q_stride = q->stride,
        .sources = sources,
        .source_count = count,
        .heads = heads,
        .head_size = head_size,
        .scale = temperature / sqrtf((float)head_size),
        .moments = logits ? &logits->moments : NULL,
    };
    if (logits && !sid_measuring(&exec->arena))
        logits->count += (double)problem.queries * (double)key_count(sources, count) * (double)heads;
    return sid_attend(exec, &problem, 1);
}

/* ---- a hook's attention ---- */

typedef struct {
    const sid_transformer *t;
    sid_tensor *dst;
    sid_keys sources[SID_MAX_STYLES];
    size_t count;
    float temperature;
    sid_logits *logits;
    sid_attention_inputs inputs;
} hooked;

/* Q, and K and V of all sources, as the hook sees them. */
static int show(sid_exec *exec, hooked *h, const sid_tensor *q, float *copies) {
    sid_attention_inputs *in = &h->inputs;
    float *k = copies + in->queries * in->channels, *v = k + in->keys * in->channels;
    sid_dtype dtype = exec->backend->dtype;
    in->q = copies, in->k = k, in->v = v;
    sid_tensor query = sid_dense(copies, SID_F32, 1, 1, in->queries, in->channels);
    SID_TRY(sid_combine(exec, &query, 1, q, 0, NULL));
    for (size_t i = 0; i < h->count; i++) {
        const sid_keys *s = &h->sources[i];
        sid_tensor from[] = {{(void *)s->k, dtype, 1, 1, s->tokens, in->channels, s->k_stride},
                             {(void *)s->v, dtype, 1, 1, s->tokens, in->channels, s->v_stride}};
        sid_tensor key = sid_dense(k, SID_F32, 1, 1, s->tokens, in->channels);
        sid_tensor value = sid_dense(v, SID_F32, 1, 1, s->tokens, in->channels);
        SID_TRY(sid_combine(exec, &key, 1, &from[0], 0, NULL));
        SID_TRY(sid_combine(exec, &value, 1, &from[1], 0, NULL));
        k += s->tokens * in->channels, v += s->tokens * in->channels;
    }
    return SID_OK;
}

/* A matrix of float32 in the backend's dtype. */
static int take_back(sid_exec *exec, sid_tensor *t, const float *data, size_t rows, size_t channels) {
    sid_tensor given = sid_dense((void *)data, SID_F32, 1, 1, rows, channels);
    SID_TRY(sid_new_like(exec, t, &given, channels));
    return sid_combine(exec, t, 1, &given, 0, NULL);
}

/* The biases stay with their keys where the hook has left their number; other keys are one source without any. */
static int attend_to_inputs(sid_exec *exec, hooked *h) {
    const sid_attention_inputs *in = &h->inputs;
    sid_tensor q, k, v;
    SID_TRY(take_back(exec, &q, in->q, in->queries, in->channels));
    SID_TRY(take_back(exec, &k, in->k, in->keys, in->channels));
    SID_TRY(take_back(exec, &v, in->v, in->keys, in->channels));
    if (in->keys != key_count(h->sources, h->count)) {
        h->sources[0] = source_of(&k, &v);
        h->count = 1;
    }
    size_t size = sid_dtype_size(k.dtype), first = 0;
    for (size_t i = 0; i < h->count; i++) {
        sid_keys *s = &h->sources[i];
        s->k = k.data ? (char *)k.data + first : NULL;
        s->v = v.data ? (char *)v.data + first : NULL;
        s->k_stride = s->v_stride = in->channels;
        first += s->tokens * in->channels * size;
    }
    return attend(exec, h->dst, &q, h->sources, h->count, h->t->heads, h->temperature, h->logits);
}

/* In memory of its own, because what the hook gives may be larger than what was measured. */
static int attend_hooked(sid_exec *exec, const sid_tap *tap, hooked *h, const sid_tensor *q) {
    sid_attention_inputs *in = &h->inputs;
    sid_exec own = {.backend = exec->backend};
    if (sid_measuring(&exec->arena)) return SID_OK;
    *in = (sid_attention_inputs){
        .queries = sid_rows(q), .keys = key_count(h->sources, h->count), .channels = h->t->channels};
    float *copies = malloc((in->queries + 2 * in->keys) * in->channels * sizeof *copies);
    if (!copies) return sid_fail(SID_EMEMORY, "out of memory");
    int status = show(exec, h, q, copies);
    if (status == SID_OK && tap->hook->call(tap->hook->self, tap->step, (size_t)h->t->layer, in))
        status = sid_fail(SID_ECANCELLED, "cancelled at layer %d", h->t->layer);
    if (status == SID_OK) status = attend_to_inputs(&own, h);
    if (status == SID_OK) status = sid_arena_open(&own.arena);
    if (status == SID_OK) status = attend_to_inputs(&own, h);
    sid_arena_close(&own.arena);
    free(copies);
    return status;
}

/* One sample's attention in a layer with a tap. */
static int attend_tapped(sid_exec *exec, const sid_transformer *t, const sid_tap *tap, sid_tensor *dst,
                         const sid_tensor *q, const sid_keys *sources, size_t count, float temperature) {
    sid_logits *logits = tap->logits ? &tap->logits[t->layer] : NULL;
    if (!tap->hook || !tap->hook->layers[t->layer])
        return attend(exec, dst, q, sources, count, t->heads, temperature, logits);
    hooked h = {.t = t, .dst = dst, .count = count, .temperature = temperature, .logits = logits};
    memcpy(h.sources, sources, count * sizeof *sources);
    return attend_hooked(exec, tap, &h, q);
}

/* ---- plain, kept and injected attention ---- */

int sid_attend_samples(sid_exec *exec, sid_tensor *dst, const sid_tensor *q, const sid_tensor *kv, size_t heads,
                       float temperature) {
    for (size_t i = 0; i < q->n; i++) {
        sid_tensor d = sid_sample(dst, i), query = sid_sample(q, i), own = sid_sample(kv, kv->n == 1 ? 0 : i);
        sid_tensor key = keys_of(&own), value = values_of(&own);
        sid_keys source = source_of(&key, &value);
        SID_TRY(attend(exec, &d, &query, &source, 1, heads, temperature, NULL));
    }
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
            SID_TRY(sid_combine(exec, &slot, 1, &features[f], 0, NULL));
        }
    }
    return SID_OK;
}

/* One style's features in the backend's dtype; a bank of another is converted into the arena. */
static int style_features(sid_exec *exec, sid_tensor *features, const sid_bank *bank, const sid_bank_layer *layer,
                          void *kept, size_t step) {
    *features = sid_bank_slot(bank, layer, kept, step);
    if (bank->dtype == exec->backend->dtype) return SID_OK;
    sid_tensor converted;
    SID_TRY(sid_new_like(exec, &converted, features, features->c));
    SID_TRY(sid_combine(exec, &converted, 1, features, 0, NULL));
    *features = converted;
    return SID_OK;
}

/* The layer's own keys and values of x, stacked. */
static int own_keys(sid_exec *exec, const sid_transformer *t, sid_tensor *kv, const sid_tensor *x) {
    SID_TRY(sid_new_like(exec, kv, x, 2 * t->channels));
    return sid_linear_map(exec, kv, x, t->keys1, NULL);
}

static const sid_bank_layer *style_layer(const sid_tap *tap, size_t style, int layer) {
    return &tap->styles[style]->layers[layer];
}
static int has_own_keys(const sid_tap *tap, int layer) {
    return !tap->style_count || !style_layer(tap, 0, layer)->key || !style_layer(tap, 0, layer)->value;
}
static int injects_keys(const sid_tap *tap, int layer) {
    return tap->style_count && (style_layer(tap, 0, layer)->key || style_layer(tap, 0, layer)->value);
}
static int injects_query(const sid_tap *tap, int layer) { return tap->content && tap->content->layers[layer].query; }

/* The keys and values that queries attend to: of each style, those that its bank has; the layer's own for the rest. */
static int injected_sources(sid_exec *exec, const sid_transformer *t, const sid_tap *tap, sid_keys *sources,
                            const sid_tensor *own, const float *query_bias, size_t queries) {
    if (!injects_keys(tap, t->layer)) {
        sid_tensor key = keys_of(own), value = values_of(own);
        sources[0] = source_of(&key, &value);
        return SID_OK;
    }
    for (size_t i = 0; i < tap->style_count; i++) {
        const sid_bank_layer *layer = style_layer(tap, i, t->layer);
        sid_tensor key, value;
        if (layer->key) SID_TRY(style_features(exec, &key, tap->styles[i], layer, layer->key, tap->step));
        else key = keys_of(own);
        if (layer->value) SID_TRY(style_features(exec, &value, tap->styles[i], layer, layer->value, tap->step));
        else value = values_of(own);
        if (sid_rows(&key) != sid_rows(&value))
            return sid_fail(SID_EVALUE, "layer %d: %zu keys, but %zu values", t->layer, sid_rows(&key),
                            sid_rows(&value));
        sources[i] = source_of(&key, &value);
        sources[i].bias = logf(tap->weights[i]);
        sources[i].query_bias = query_bias ? query_bias + i * queries : NULL;
        sources[i].key_bias = layer->key_bias;
    }
    return SID_OK;
}

/* Q = gamma Q_content + (1 - gamma) Q; K, V = the styles'; softmax(temperature Q K^T / sqrt(d)) V. Where that does not
 * cover everything, the rest is the plain attention. */
static int inject(sid_exec *exec, const sid_transformer *t, const sid_tap *tap, sid_tensor *dst, sid_tensor *q,
                  const sid_tensor *x) {
    const sid_region everywhere = {NULL, NULL};
    const sid_region *region = tap->regions ? &tap->regions[t->layer] : &everywhere;
    sid_keys sources[SID_MAX_STYLES];
    sid_tensor own = {0}, plain;
    if (region->cover || has_own_keys(tap, t->layer)) SID_TRY(own_keys(exec, t, &own, x));
    if (region->cover) {
        SID_TRY(sid_new_like(exec, &plain, q, q->c));
        SID_TRY(sid_attend_samples(exec, &plain, q, &own, t->heads, 1));
    }
    if (injects_query(tap, t->layer)) {
        const sid_bank_layer *layer = &tap->content->layers[t->layer];
        sid_tensor content = sid_bank_slot(tap->content, layer, layer->query, tap->step);
        float gamma = tap->gamma[t->layer];
        SID_TRY(sid_combine(exec, q, gamma, &content, 1 - gamma, q));
    }
    SID_TRY(injected_sources(exec, t, tap, sources, &own, region->bias, sid_rows(q)));
    size_t count = injects_keys(tap, t->layer) ? tap->style_count : 1;
    SID_TRY(attend_tapped(exec, t, tap, dst, q, sources, count, tap->temperature[t->layer]));
    return region->cover ? sid_blend_rows(exec, dst, region->cover, dst, &plain) : SID_OK;
}

/* All samples' attention to their own keys. */
static int attend_own(sid_exec *exec, const sid_transformer *t, const sid_tap *tap, sid_tensor *dst,
                      const sid_tensor *q, const sid_tensor *kv) {
    if (!tap || (!tap->hook && !tap->logits)) return sid_attend_samples(exec, dst, q, kv, t->heads, 1);
    for (size_t i = 0; i < q->n; i++) {
        sid_tensor d = sid_sample(dst, i), query = sid_sample(q, i), own = sid_sample(kv, i);
        sid_tensor key = keys_of(&own), value = values_of(&own);
        sid_keys source = source_of(&key, &value);
        SID_TRY(attend_tapped(exec, t, tap, &d, &query, &source, 1, 1));
    }
    return SID_OK;
}

static int injects(const sid_tap *tap, int layer) {
    return (!tap->where || tap->where[layer]) && (injects_query(tap, layer) || injects_keys(tap, layer));
}

int sid_self_attention(sid_exec *exec, const sid_transformer *t, sid_tensor *dst, const sid_tensor *x,
                       const sid_tap *tap) {
    size_t mark = sid_arena_mark(&exec->arena);
    sid_tensor q, kv;
    if (t->layer < 0) tap = NULL;
    SID_TRY(sid_new_like(exec, &q, x, t->channels));
    SID_TRY(sid_linear_map(exec, &q, x, t->query1, NULL));
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
