/* What a layer has prepared for the shapes that it has seen: a short list, the most recent first. */
#ifndef SID_CUDA_PLANNED_H
#define SID_CUDA_PLANNED_H

#include "cuda/launch.h"

/* The first member of a prepared thing; its key follows directly. */
typedef struct sid_planned {
    struct sid_planned *next;
    uint64_t serial; /* unique within a backend */
} sid_planned;

typedef struct {
    size_t size, key_size; /* the sizes of the whole thing and of its key, which has no padding */
    int (*open)(sid_cuda *cuda, const void *layer, sid_planned *planned); /* the key is set, the rest is zero */
    void (*close)(sid_cuda *cuda, sid_planned *planned);                  /* closes one that could not be opened, too */
} sid_planned_kind;

/* Sets *found to what the list has for the key, or to a new one. It stays valid while the caller is in a run, or
 * measures. */
int sid_planned_find(sid_cuda *cuda, sid_planned **list, const sid_planned_kind *kind, const void *key,
                     const void *layer, sid_planned **found);
void sid_planned_close(sid_cuda *cuda, sid_planned **list, const sid_planned_kind *kind);

#endif
