/* Computes once what the runs of a UNet have in common: timesteps' embeddings, and contexts' keys and values. */
#ifndef SID_MODEL_CACHE_H
#define SID_MODEL_CACHE_H

#include "core/run.h"
#include "model/model.h"
#include "model/unet.h"

typedef struct sid_cache sid_cache;

int sid_cache_open(sid_cache **cache, sid_runner *runner, const sid_unet *unet);
void sid_cache_close(sid_cache **cache);

/* Sets *time to the cache's own row of sid_unet_time_size() numbers, which is computed when it is first needed. */
int sid_cache_time(sid_cache *cache, const float **time, int timestep);

/* A context and what all cross-attentions make of it. The cache keeps the last ones; each exists at least from
 * sid_cache_context() to sid_cache_release(). */
typedef struct sid_prepared sid_prepared;
int sid_cache_context(sid_cache *cache, sid_prepared **prepared, const sid_context *context);
const sid_tensor *sid_prepared_keys(const sid_prepared *prepared); /* by transformer */
void sid_cache_release(sid_cache *cache, sid_prepared *prepared);

#endif
