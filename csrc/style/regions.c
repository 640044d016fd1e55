#include "style/regions.h"

#include <stdlib.h>

#include "core/err.h"
#include "core/loan.h"

struct sid_lent_regions {
    sid_exec outside;
    sid_region regions[SID_MAX_LAYERS];
    size_t count;
    sid_loan loans[]; /* at most style_count + 2 a layer */
};

static int lend(sid_lent_regions *l, const float **array, const float *host, size_t count) {
    sid_loan *loan = &l->loans[l->count];
    if (!host) return SID_OK;
    l->count++;
    SID_TRY(sid_loan_open(loan, &l->outside, host, count * sizeof *host, 1));
    *array = loan->block;
    return SID_OK;
}

static int lend_layer(sid_lent_regions *l, const sid_injection *in, size_t layer, size_t queries) {
    const sid_region *host = &in->regions[layer];
    sid_region *region = &l->regions[layer];
    SID_TRY(lend(l, &region->bias, host->bias, in->style_count * queries));
    SID_TRY(lend(l, &region->cover, host->cover, queries));
    for (size_t i = 0; i < in->style_count; i++)
        SID_TRY(lend(l, &region->key_bias[i], host->key_bias[i], in->styles[i]->layers[layer].tokens));
    return SID_OK;
}

int sid_regions_lend(sid_lent_regions **lent, sid_backend *backend, const sid_unet_config *config,
                     const sid_injection *in, size_t h, size_t w) {
    *lent = NULL;
    if (!in || !in->regions) return SID_OK;
    size_t layers = sid_layer_count(config), most = layers * (in->style_count + 2);
    sid_lent_regions *l = *lent = calloc(1, sizeof *l + most * sizeof *l->loans);
    if (!l) return sid_fail(SID_EMEMORY, "out of memory");
    l->outside.backend = backend;
    for (size_t layer = 0; layer < layers; layer++)
        SID_TRY(lend_layer(l, in, layer, sid_layer_tokens(config, layer, h, w)));
    return SID_OK;
}

const sid_region *sid_regions_of(const sid_lent_regions *lent) { return lent ? lent->regions : NULL; }

void sid_regions_return(sid_lent_regions **lent) {
    sid_lent_regions *l = *lent;
    if (!l) return;
    for (size_t i = 0; i < l->count; i++) sid_loan_close(&l->loans[i], &l->outside, 0);
    free(l);
    *lent = NULL;
}
