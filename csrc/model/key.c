#include "model/key.h"

#include "core/run.h"

#define EVALUATION 1 /* stands for the function */

static int crosses(const sid_bank *bank, const sid_backend *backend) {
    return bank && bank->on_host && !backend->memory.is_host;
}

static int is_plain(const sid_tap *tap, const sid_backend *backend, size_t samples) {
    const sid_injection *injection = tap->injection;
    if (tap->hook) return 0;
    for (size_t i = 0; tap->saved && i < samples; i++)
        if (crosses(tap->saved[i], backend)) return 0;
    if (injection && crosses(injection->content, backend)) return 0;
    for (size_t i = 0; injection && i < injection->style_count; i++)
        if (crosses(injection->styles[i], backend)) return 0;
    return 1;
}

/* Adds which features the bank has, of how many tokens, in which type. */
static uint64_t add_bank(uint64_t key, const sid_bank *bank) {
    if (!bank) return sid_run_key(key, "", 1);
    key = sid_run_key(key, &bank->dtype, sizeof bank->dtype);
    for (size_t i = 0; i < SID_MAX_LAYERS; i++) {
        const sid_bank_layer *layer = &bank->layers[i];
        const size_t facts[] = {layer->query != NULL, layer->key != NULL, layer->value != NULL, layer->tokens};
        key = sid_run_key(key, facts, sizeof facts);
    }
    return key;
}

static uint64_t add_injection(uint64_t key, const sid_injection *injection, size_t step) {
    key = add_bank(key, injection->content);
    for (size_t i = 0; i < injection->style_count; i++) key = add_bank(key, injection->styles[i]);
    if (injection->where) key = sid_run_key(key, injection->where + step * injection->layers, injection->layers);
    for (size_t i = 0; injection->regions && i < injection->layers; i++) {
        const sid_region *region = &injection->regions[i];
        const int facts[] = {region->bias != NULL, region->cover != NULL};
        key = sid_run_key(key, facts, sizeof facts);
    }
    return key;
}

uint64_t sid_evaluation_key(const sid_evaluation *e, const sid_backend *backend) {
    const sid_planes *l = e->latents;
    const size_t facts[] = {l->n, l->h, l->w, (size_t)e->features_only, e->context_n, e->context_tokens};
    if (e->tap && !is_plain(e->tap, backend, l->n)) return 0;
    uint64_t key = sid_run_key(EVALUATION, facts, sizeof facts);
    for (size_t i = 0; e->tap && e->tap->saved && i < l->n; i++) key = add_bank(key, e->tap->saved[i]);
    if (e->tap && e->tap->injection) key = add_injection(key, e->tap->injection, e->tap->step);
    return key;
}
