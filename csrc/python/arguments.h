/* Readers for the functions' arguments. Each returns 0, or -1 with an exception that names the argument. */
#ifndef SID_PYTHON_ARGUMENTS_H
#define SID_PYTHON_ARGUMENTS_H

#include "python/ndarray.h"
#include "style/image.h"

typedef struct {
    size_t numbers[SID_MAX_LAYERS], count;
} sid_layers;

/* A borrowed reference; NULL where there is no such entry, or, with an exception, no memory to look for it. */
PyObject *sid_entry(PyObject *dict, const char *key);
/* A new reference to the array where the engine succeeded, else NULL with the status's exception. */
PyObject *sid_finish(const sid_state *state, const sid_array *array, int status);
int sid_read_size(size_t *value, PyObject *object, const char *name, size_t least, size_t most);
int sid_read_number(double *value, PyObject *object, const char *name);
/* *choice becomes the index in the list, which ends with NULL. */
int sid_read_choice(int *choice, PyObject *object, const char *name, const char *const *choices);
/* A number of evaluations that a schedule may have. */
int sid_read_steps(size_t *steps, PyObject *object);
/* One of sid_dtype_names(). */
int sid_read_dtype(sid_dtype *dtype, PyObject *object, const char *name);
/* Makes a tuple, which no code that runs meanwhile can change, of any iterable but a string; NULL with an exception.
 * `of` names the items in the error text. */
PyObject *sid_read_sequence(PyObject *object, const char *name, const char *of);
/* Reads decoder layers that have self-attention, each at most once. */
int sid_read_layers(sid_layers *layers, PyObject *object, const char *name, const sid_unet_config *config);
/* Reads count positive finite numbers; the caller frees *shares by PyMem_Free(). */
int sid_read_shares(float **shares, PyObject *object, const char *name, size_t count);
/* ValueError where the model has no UNet, but is a VAE alone. */
int sid_check_unet(const sid_config *config);
/* None becomes NULL. */
int sid_read_callable(PyObject **callable, PyObject *object, const char *name);

/* Appends the item, whose reference it takes; *list becomes NULL where that, or the making of the item, has failed. */
void sid_append(PyObject **list, PyObject *item);
/* The first `most` names, which end with NULL, as a list. */
PyObject *sid_name_list(const char *const *names, size_t most);
/* The decoder layers from `first` on that have self-attention, as a tuple. */
PyObject *sid_attention_layers(const sid_unet_config *config, size_t first);

/* Finite latents (n, C, h, w); n is 0 where any number will do. */
int sid_read_latents(sid_array *array, PyObject *object, const char *name, size_t n, const sid_unet_config *config);
/* A finite context (1 or n, tokens, context_size). */
int sid_read_context(sid_array *array, PyObject *object, const char *name, size_t n, const sid_unet_config *config);
/* Pixels (N, H, W, channels), or (H, W, channels) where rank is 3; sides are multiples of `multiple`. */
int sid_read_images(sid_array *array, PyObject *object, const char *name, size_t rank, const sid_vae_config *config,
                    size_t multiple);

/* What sid_read_images() read, as the engine takes it. */
sid_image sid_image_of(const sid_array *pixels);

/* Checks that every number of a float32 array lies between least and most, which a NaN does not; `expected` says so in
 * words. */
int sid_check_values(const sid_array *array, const char *name, float least, float most, const char *expected);
int sid_check_finite(const sid_array *array, const char *name);

#endif
