#include "cuda/planned.h"

#include <stdlib.h>
#include <string.h>

#include "core/err.h"

#define KEPT 16

/* Drops the end of a list that is too long, except while another thread runs, which may be using it. */
static void shorten(sid_cuda *cuda, sid_planned *first, const sid_planned_kind *kind) {
    if (pthread_mutex_trylock(&cuda->lock) != 0) return;
    sid_planned *last = first;
    for (size_t i = 1; i < KEPT && last; i++) last = last->next;
    if (last) sid_planned_close(cuda, &last->next, kind);
    pthread_mutex_unlock(&cuda->lock);
}

static int find(sid_cuda *cuda, sid_planned **list, const sid_planned_kind *kind, const void *key, const void *layer) {
    sid_planned **place = list;
    while (*place && memcmp(*place + 1, key, kind->key_size) != 0) place = &(*place)->next;
    sid_planned *p = *place;
    if (p) {
        *place = p->next;
    } else {
        p = calloc(1, kind->size);
        if (!p) return sid_fail(SID_EMEMORY, "out of memory");
        memcpy(p + 1, key, kind->key_size);
        p->serial = ++cuda->serials;
        int status = kind->open(cuda, layer, p);
        if (status != SID_OK) {
            sid_planned_close(cuda, &p, kind);
            return status;
        }
    }
    p->next = *list;
    *list = p;
    shorten(cuda, p, kind);
    return SID_OK;
}

int sid_planned_find(sid_cuda *cuda, sid_planned **list, const sid_planned_kind *kind, const void *key,
                     const void *layer, sid_planned **found) {
    pthread_mutex_lock(&cuda->tables);
    sid_cuda_enter(cuda);
    int status = find(cuda, list, kind, key, layer);
    *found = status == SID_OK ? *list : NULL;
    sid_cuda_leave(cuda);
    pthread_mutex_unlock(&cuda->tables);
    return status;
}

void sid_planned_close(sid_cuda *cuda, sid_planned **list, const sid_planned_kind *kind) {
    while (*list) {
        sid_planned *p = *list;
        *list = p->next;
        kind->close(cuda, p);
        free(p);
    }
}
