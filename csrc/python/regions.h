/* Where in the images styles are injected: the masks, by layer, as Python made them. */
#ifndef SID_PYTHON_REGIONS_H
#define SID_PYTHON_REGIONS_H

#include "python/inversion.h"

typedef struct {
    size_t style_count;
    sid_array bias[SID_MAX_LAYERS], cover[SID_MAX_LAYERS];
    sid_array *key_bias;               /* [style][SID_MAX_LAYERS] */
    sid_region layers[SID_MAX_LAYERS]; /* over their memory */
} sid_regions;

/* Reads the regions of these layers. The inversions, the content's and then the styles', have been read. NULL with an
 * exception. */
sid_regions *sid_regions_read(PyObject *object, const sid_inversion *inversions, size_t style_count,
                              const sid_layers *layers);
void sid_regions_close(sid_regions *regions);

#endif
