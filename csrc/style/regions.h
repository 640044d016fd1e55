/* Lends regions, whose arrays are the host's, to the backend for the time of a sampling. */
#ifndef SID_STYLE_REGIONS_H
#define SID_STYLE_REGIONS_H

#include "core/backend.h"
#include "core/config.h"
#include "model/tap.h"

typedef struct sid_lent_regions sid_lent_regions;

/* *lent is NULL where the injection has no regions. h and w are those of the sampled latents. */
int sid_regions_lend(sid_lent_regions **lent, sid_backend *backend, const sid_unet_config *config,
                     const sid_injection *injection, size_t h, size_t w);
const sid_region *sid_regions_of(const sid_lent_regions *lent); /* NULL where there are none */
void sid_regions_return(sid_lent_regions **lent);

#endif
