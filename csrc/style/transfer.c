#include "style/transfer.h"

#include <stdlib.h>
#include <string.h>

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

static int decode(sid_model *model, uint8_t *picture, const sid_planes *z, int truncate) {
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
    if (status == SID_OK) sid_image_from_planes(picture, host, 1, images.h, images.w, images.c, truncate);
    free(host);
    return status;
}

/* host: planes of the same shape on the host, to be freed. */
static int read_planes(sid_exec *outside, sid_planes *host, const sid_planes *planes) {
    size_t count = sid_planes_count(planes);
    *host = *planes;
    SID_TRY(allocate(&host->data, count));
    return sid_read(outside, host->data, planes->data, count * sizeof *host->data);
}

/* sum += share * the AdaIN of content to a style; all but the style on the host. */
static int add_adain(sid_exec *outside, sid_planes *sum, const sid_planes *content, const sid_planes *style, float share,
                     float epsilon) {
    sid_planes host = {0}, one = *content;
    one.data = NULL;
    int status = read_planes(outside, &host, style);
    if (status == SID_OK) status = allocate(&one.data, sid_planes_count(content));
    if (status == SID_OK) {
        sid_adain(&one, content, &host, epsilon);
        for (size_t i = 0; i < sid_planes_count(content); i++) sum->data[i] += share * one.data[i];
    }
    free(host.data);
    free(one.data);
    return status;
}

/* The mean of the AdaINs to each style: the AdaIN to the weighted means of their statistics. */
static int adain_to_all(sid_exec *outside, sid_planes *z, const sid_latents *latents, const sid_injection *injection,
                        float epsilon) {
    const size_t count = sid_planes_count(z);
    sid_planes content = {0}, sum = *z;
    double total = 0;
    for (size_t i = 0; i < injection->style_count; i++) total += injection->weights[i];
    sum.data = calloc(count, sizeof *sum.data);
    int status = sum.data ? read_planes(outside, &content, latents->content) : sid_fail(SID_EMEMORY, "out of memory");
    for (size_t i = 0; i < injection->style_count && status == SID_OK; i++)
        status = add_adain(outside, &sum, &content, &latents->styles[i], (float)(injection->weights[i] / total), epsilon);
    if (status == SID_OK) status = sid_write(outside, z->data, sum.data, count * sizeof *sum.data);
    free(sum.data);
    free(content.data);
    return status;
}

int sid_inject_styles(sid_model *model, uint8_t *picture, sid_planes *z, const sid_latents *latents,
                      const sid_sampling *how) {
    sid_exec outside = {.backend = sid_model_backend(model)};
    sid_sampling sampling = *how;
    if (latents->adain)
        SID_TRY(adain_to_all(&outside, z, latents, how->injection, how->schedule->adain_epsilon));
    else SID_TRY(sid_copy(&outside, z->data, latents->content->data, sid_planes_count(z) * sizeof(float)));
    if (!how->injection->content) sampling.injection = NULL;
    SID_TRY(sid_denoise(model, z, &sampling));
    return decode(model, picture, z, how->schedule->truncate);
}

/* ---- an image on its way through the inversion ---- */

typedef struct {
    const sid_image *image;
    sid_planes z;
    sid_bank bank;
} subject;

/* Only the features that the injection reads are kept: the content's queries, the style's keys and values. */
static int bank_open(sid_model *model, subject *s, const sid_transferring *how, int is_content) {
    const sid_unet_config *config = &sid_model_config(model)->unet;
    sid_memory *memory = memory_of(model);
    for (size_t i = 0; i < how->layer_count; i++) {
        sid_bank_layer *layer = &s->bank.layers[how->layers[i]];
        layer->tokens = sid_layer_tokens(config, how->layers[i], s->z.h, s->z.w);
        layer->channels = sid_layer_channels(config, how->layers[i]);
        size_t size = s->bank.steps * layer->tokens * layer->channels * sid_dtype_size(s->bank.dtype);
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
    float *latents;    /* both images' as a batch, then the one that is sampled, of the content's size */
    float *trajectory; /* of both, where features are recomputed */
    share part;
    sid_replay replays[2];
    size_t replay_count;
    sid_bank *banks[2];
} transfer;

/* Both images, as one batch where their sizes agree. Where features are recomputed, replays can fill the banks. */
static int invert(transfer *t) {
    const subject *s = t->subjects;
    const size_t steps = t->how->schedule->steps;
    size_t n = s[0].z.h == s[1].z.h && s[0].z.w == s[1].z.w ? 2 : 1;
    float *kept = t->trajectory;
    sid_progress progress = {.call = report_share, .self = &t->part};
    t->part.weight = n;
    for (size_t i = 0; i < 2 / n; i++, t->part.before += steps) {
        sid_planes z = s[i].z;
        z.n = n;
        sid_inverting how = {.schedule = t->how->schedule,
                             .prompt = t->how->prompt,
                             .banks = &t->banks[i],
                             .trajectory = {kept, NULL},
                             .progress = &progress};
        SID_TRY(sid_invert(t->model, &z, &how));
        if (!kept) continue;
        sid_replay *replay = &t->replays[t->replay_count++];
        *replay = (sid_replay){.latents = z, .context = t->how->prompt->context, .banks = &t->banks[i]};
        replay->latents.data = kept;
        kept += (steps + 1) * sid_planes_count(&z);
    }
    return SID_OK;
}

static int inject(transfer *t, uint8_t *picture) {
    const sid_transferring *how = t->how;
    const sid_bank *style = t->banks[1];
    const float weight = 1;
    sid_planes z = t->subjects[0].z;
    z.data = t->subjects[1].z.data + sid_planes_count(&t->subjects[1].z);
    sid_progress progress = {.call = report_share, .self = &t->part};
    sid_injection injection = {.content = how->layer_count ? t->banks[0] : NULL,
                               .styles = &style,
                               .weights = &weight,
                               .style_count = 1,
                               .layers = sid_layer_count(&sid_model_config(t->model)->unet),
                               .gamma = how->gamma,
                               .temperature = how->temperature};
    sid_sampling sampling = {.schedule = how->schedule,
                             .prompt = how->prompt,
                             .injection = &injection,
                             .replays = t->replays,
                             .replay_count = how->layer_count ? t->replay_count : 0,
                             .progress = &progress};
    sid_latents latents = {&t->subjects[0].z, &t->subjects[1].z, how->adain};
    t->part.before = 2 * how->schedule->steps;
    t->part.weight = 1;
    return sid_inject_styles(t->model, picture, &z, &latents, &sampling);
}

static int open_banks(transfer *t) {
    for (size_t i = 0; i < 2; i++) SID_TRY(bank_open(t->model, &t->subjects[i], t->how, i == 0));
    return SID_OK;
}

static int open(transfer *t) {
    const sid_config *config = sid_model_config(t->model);
    const size_t factor = sid_vae_factor(&config->vae), steps = t->how->schedule->steps;
    size_t counts[2];
    for (size_t i = 0; i < 2; i++) {
        subject *s = &t->subjects[i];
        s->z = (sid_planes){NULL, 1, config->unet.in_channels, s->image->height / factor, s->image->width / factor};
        s->bank.dtype = sid_model_backend(t->model)->dtype;
        s->bank.steps = t->how->recompute ? 1 : steps;
        t->banks[i] = &s->bank;
        counts[i] = sid_planes_count(&s->z);
    }
    SID_TRY(sid_memory_floats(memory_of(t->model), &t->latents, 2 * counts[0] + counts[1], "latents"));
    t->subjects[0].z.data = t->latents;
    t->subjects[1].z.data = t->latents + counts[0];
    if (!t->how->recompute) return open_banks(t);
    return sid_memory_floats(memory_of(t->model), &t->trajectory, (steps + 1) * (counts[0] + counts[1]), "latents");
}

static int run(transfer *t, uint8_t *picture) {
    SID_TRY(open(t));
    for (size_t i = 0; i < 2; i++) SID_TRY(encode(t->model, &t->subjects[i].z, t->subjects[i].image));
    SID_TRY(invert(t));
    /* Only now: the inversion of a transfer that recomputes saves nothing. */
    if (t->how->recompute) SID_TRY(open_banks(t));
    return inject(t, picture);
}

int sid_transfer(sid_model *model, uint8_t *picture, const sid_image *content, const sid_image *style,
                 const sid_transferring *how) {
    transfer t = {.model = model, .how = how, .subjects = {{.image = content}, {.image = style}}};
    t.part = (share){how->progress, 0, 1, 2 * how->schedule->steps + how->schedule->sampling_steps};
    int status = run(&t, picture);
    sid_memory_give(memory_of(model), t.latents);
    sid_memory_give(memory_of(model), t.trajectory);
    for (size_t i = 0; i < 2; i++) bank_close(memory_of(model), &t.subjects[i].bank);
    return status;
}
