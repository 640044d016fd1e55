#include "style/transfer.h"

#include <stdlib.h>

#include "core/err.h"
#include "core/loan.h"
#include "core/ops.h"
#include "style/adain.h"

static sid_memory *memory_of(sid_model *model) { return &sid_model_backend(model)->memory; }

static int allocate(float **host, size_t count) {
    *host = malloc(count * sizeof **host);
    return *host ? SID_OK : sid_fail(SID_EMEMORY, "no memory for %zu bytes", count * sizeof **host);
}

/* ---- images and latents ---- */

static int encode(sid_model *model, sid_planes *z, const sid_image *image) {
    sid_exec outside = {.backend = sid_model_backend(model)};
    sid_planes images = {NULL, 1, image->channels, image->height, image->width};
    size_t count = sid_planes_count(&images);
    sid_loan loan;
    float *host;
    SID_TRY(allocate(&host, count));
    sid_image_to_planes(host, image);
    int status = sid_loan_open(&loan, &outside, host, count * sizeof *host, 1);
    images.data = loan.block;
    if (status == SID_OK) status = sid_model_encode(model, z, &images);
    sid_loan_close(&loan, &outside, 0);
    free(host);
    return status;
}

static int decode(sid_model *model, uint8_t *image, const sid_planes *z, int truncate) {
    const sid_vae_config *vae = &sid_model_config(model)->vae;
    const size_t factor = sid_vae_factor(vae);
    sid_exec outside = {.backend = sid_model_backend(model)};
    sid_planes images = {NULL, 1, vae->image_channels, z->h * factor, z->w * factor};
    size_t count = sid_planes_count(&images);
    sid_loan loan;
    float *host;
    SID_TRY(allocate(&host, count));
    int status = sid_loan_open(&loan, &outside, host, count * sizeof *host, 0);
    images.data = loan.block;
    if (status == SID_OK) status = sid_model_decode(model, &images, z);
    int closed = sid_loan_close(&loan, &outside, status == SID_OK);
    if (status == SID_OK) status = closed;
    if (status == SID_OK) sid_image_from_planes(image, host, 1, images.h, images.w, images.c, truncate);
    free(host);
    return status;
}

int sid_inject_styles(sid_model *model, uint8_t *image, sid_planes *z, const sid_sampling *how) {
    SID_TRY(sid_denoise(model, z, how));
    return decode(model, image, z, how->schedule->truncate);
}

/* ---- an image on its way through the inversion ---- */

typedef struct {
    const sid_image *image;
    sid_planes z;
    sid_bank bank;
} subject;

/* Only the features that the injection reads are kept: the content's queries, the style's keys and values. */
static int bank_open(sid_model *model, subject *s, const sid_transferring *how, int is_content) {
    sid_memory *memory = memory_of(model);
    sid_bank_fit(&s->bank, &sid_model_config(model)->unet, how->layers, how->layer_count, s->z.h, s->z.w);
    for (size_t i = 0; i < how->layer_count; i++) {
        sid_bank_layer *layer = &s->bank.layers[how->layers[i]];
        size_t size = sid_bank_size(&s->bank, layer);
        if (is_content) {
            SID_TRY(memory->take(memory, &layer->query, size, "features"));
        } else {
            SID_TRY(memory->take(memory, &layer->key, size, "features"));
            SID_TRY(memory->take(memory, &layer->value, size, "features"));
        }
    }
    return SID_OK;
}

static void bank_close(sid_memory *memory, sid_bank *bank) {
    for (size_t i = 0; i < SID_MAX_LAYERS; i++) {
        sid_memory_give(memory, bank->layers[i].query);
        sid_memory_give(memory, bank->layers[i].key);
        sid_memory_give(memory, bank->layers[i].value);
    }
}

/* ---- one progress over several runs ---- */

typedef struct {
    const sid_progress *whole;
    size_t before, weight, total; /* steps before this run; what one of its steps counts; steps in all */
} share;

static int report_share(void *self, size_t step, size_t steps) {
    const share *s = self;
    (void)steps;
    return s->whole->call(s->whole->self, s->before + step * s->weight, s->total);
}

/* ---- a transfer ---- */

typedef struct {
    sid_model *model;
    const sid_transferring *how;
    subject subjects[2];
    float *latents; /* both images' as a batch, then the one that is sampled, of the content's size */
    share part;
    sid_bank *banks[2];
} transfer;

/* Inverts both images, as one batch where their sizes agree. */
static int invert(transfer *t) {
    const subject *s = t->subjects;
    size_t n = s[0].z.h == s[1].z.h && s[0].z.w == s[1].z.w ? 2 : 1;
    sid_progress progress = {.call = report_share, .self = &t->part};
    t->part.weight = n;
    for (size_t i = 0; i < 2 / n; i++, t->part.before += t->how->schedule->steps) {
        sid_planes z = s[i].z;
        z.n = n;
        sid_inverting how = {
            .schedule = t->how->schedule, .prompt = t->how->prompt, .banks = &t->banks[i], .progress = &progress};
        SID_TRY(sid_invert(t->model, &z, &how));
    }
    return SID_OK;
}

/* z = the AdaIN of both zT, or the content's zT. The host computes the statistics. */
static int start(transfer *t, sid_planes *z) {
    const sid_planes *content = &t->subjects[0].z, *style = &t->subjects[1].z;
    const size_t counts[] = {sid_planes_count(content), sid_planes_count(style)};
    sid_exec outside = {.backend = sid_model_backend(t->model)};
    sid_planes from = *content, to = *style, mixed = *z;
    float *host;
    if (!t->how->adain) return sid_copy(&outside, z->data, content->data, counts[0] * sizeof *host);
    SID_TRY(allocate(&host, 2 * counts[0] + counts[1]));
    mixed.data = host;
    from.data = host + counts[0];
    to.data = from.data + counts[0];
    int status = sid_read(&outside, from.data, content->data, counts[0] * sizeof *host);
    if (status == SID_OK) status = sid_read(&outside, to.data, style->data, counts[1] * sizeof *host);
    if (status == SID_OK) {
        sid_adain(&mixed, &from, &to, t->how->schedule->adain_epsilon);
        status = sid_write(&outside, z->data, host, counts[0] * sizeof *host);
    }
    free(host);
    return status;
}

static int inject(transfer *t, uint8_t *image) {
    const sid_transferring *how = t->how;
    const sid_bank *style = t->banks[1];
    const float weight = 1;
    sid_planes z = t->subjects[0].z;
    z.data = t->subjects[1].z.data + sid_planes_count(&t->subjects[1].z);
    sid_progress progress = {.call = report_share, .self = &t->part};
    sid_injection injection = {.content = t->banks[0],
                               .styles = &style,
                               .weights = &weight,
                               .style_count = 1,
                               .layers = sid_layer_count(&sid_model_config(t->model)->unet),
                               .gamma = how->gamma,
                               .temperature = how->temperature};
    sid_sampling sampling = {.schedule = how->schedule,
                             .prompt = how->prompt,
                             .injection = how->layer_count ? &injection : NULL,
                             .progress = &progress};
    t->part.before = 2 * how->schedule->steps;
    t->part.weight = 1;
    SID_TRY(start(t, &z));
    return sid_inject_styles(t->model, image, &z, &sampling);
}

static int open(transfer *t) {
    const sid_config *config = sid_model_config(t->model);
    const size_t factor = sid_vae_factor(&config->vae);
    size_t counts[2];
    for (size_t i = 0; i < 2; i++) {
        subject *s = &t->subjects[i];
        s->z = (sid_planes){NULL, 1, config->unet.in_channels, s->image->height / factor, s->image->width / factor};
        s->bank.dtype = sid_model_backend(t->model)->dtype;
        s->bank.steps = t->how->schedule->steps;
        t->banks[i] = &s->bank;
        counts[i] = sid_planes_count(&s->z);
    }
    SID_TRY(sid_memory_floats(memory_of(t->model), &t->latents, 2 * counts[0] + counts[1], "latents"));
    t->subjects[0].z.data = t->latents;
    t->subjects[1].z.data = t->latents + counts[0];
    for (size_t i = 0; i < 2; i++) SID_TRY(bank_open(t->model, &t->subjects[i], t->how, i == 0));
    return SID_OK;
}

static int run(transfer *t, uint8_t *image) {
    SID_TRY(open(t));
    for (size_t i = 0; i < 2; i++) SID_TRY(encode(t->model, &t->subjects[i].z, t->subjects[i].image));
    SID_TRY(invert(t));
    return inject(t, image);
}

int sid_transfer(sid_model *model, uint8_t *image, const sid_image *content, const sid_image *style,
                 const sid_transferring *how) {
    transfer t = {.model = model, .how = how, .subjects = {{.image = content}, {.image = style}}};
    t.part = (share){how->progress, 0, 1, 2 * how->schedule->steps + how->schedule->sampling_steps};
    int status = run(&t, image);
    sid_memory_give(memory_of(model), t.latents);
    for (size_t i = 0; i < 2; i++) bank_close(memory_of(model), &t.subjects[i].bank);
    return status;
}
