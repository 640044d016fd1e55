/* Sends planes through a network, in one run or in one for each of some overlapping tiles. */
#ifndef SID_MODEL_TILES_H
#define SID_MODEL_TILES_H

#include "core/run.h"

/* A network from planes to planes, of which one are latents and the others a whole number of times larger. */
typedef struct {
    int (*run)(sid_exec *exec, const void *network, sid_planes *dst, const sid_planes *src);
    const void *network;
} sid_map;

/* dst = the network's output for src. tiled: where the latents are larger than a tile, the sum of what it makes of each
 * tile times the tile's share. */
int sid_map_planes(sid_runner *runner, const sid_map *map, sid_planes *dst, const sid_planes *src, int tiled);
/* The scratch bytes that this takes; of dst and src only the shapes are read. */
int sid_map_scratch(sid_runner *runner, const sid_map *map, size_t *bytes, const sid_planes *dst, const sid_planes *src,
                    int tiled);

#endif
