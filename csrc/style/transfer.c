#include "style/transfer.h"

#include <stdlib.h>
#include <string.h>

#include "core/err.h"

static int allocate(void **memory, size_t size) {
    *memory = malloc(size);
    return *memory ? SID_OK : sid_fail(SID_EMEMORY, "no memory for %zu bytes", size);
}

/* ---- a picture on its way through the inversion ---- */

typedef struct {
    const sid_image *image;
    size_t h, w, count; /* of the latent: its sides; all its numbers */
    float *z;
    sid_bank bank;
} subject;

/* Only the features that the injection reads are kept: the content's queries, the style's keys and values. */
static int bank_open(sid_bank *bank, const sid_unet_config *config, const size_t *layers, size_t layer_count, size_t h,
                     size_t w, int is_content) {
    for (size_t i = 0; i < layer_count; i++) {
        sid_bank_layer *layer = &bank->layers[layers[i]];
        layer->tokens = sid_layer_tokens(config, layers[i], h, w);
        layer->channels = sid_layer_channels(config, layers[i]);
        size_t size = bank->steps * layer->tokens * layer->channels * sid_dtype_size(bank->dtype);
        if (is_content) {
            SID_TRY(allocate(&layer->query, size));
        } else {
            SID_TRY(allocate(&layer->key, size));
            SID_TRY(allocate(&layer->value, size));
        }
    }
    return SID_OK;
}

static void bank_close(sid_bank *bank) {
    for (size_t i = 0; i < SID_MAX_LAYERS; i++) {
        free(bank->layers[i].query);
        free(bank->layers[i].key);
        free(bank->layers[i].value);
    }
}

static int encode(sid_model *model, float *z, const sid_image *image) {
    void *planes;
    SID_TRY(allocate(&planes, image->channels * image->height * image->width * sizeof(float)));
    sid_image_to_planes(planes, image);
    int status = sid_model_encode(model, z, planes, 1, image->height, image->width);
    free(planes);
    return status;
}

static int decode(sid_model *model, uint8_t *picture, const float *z, size_t h, size_t w, int truncate) {
    const sid_vae_config *vae = &sid_model_config(model)->vae;
    size_t height = h * sid_vae_factor(vae), width = w * sid_vae_factor(vae);
    void *planes;
    SID_TRY(allocate(&planes, vae->image_channels * height * width * sizeof(float)));
    int status = sid_model_decode(model, planes, z, 1, h, w);
    if (status == SID_OK) sid_image_from_planes(picture, planes, 1, height, width, vae->image_channels, truncate);
    free(planes);
    return status;
}

/* ---- one progress over several runs ---- */

typedef struct {
    const sid_progress *whole;
    size_t before, weight, total; /* steps before this run; what one of its steps counts; steps in all */
} share;

static int report_share(void *self, size_t step, size_t steps, float *z) {
    const share *s = self;
    (void)steps, (void)z;
    return s->whole->call(s->whole->self, s->before + step * s->weight, s->total, NULL);
}

/* ---- the two entries ---- */

/* The mean of the AdaINs to each style: the AdaIN to the weighted means of their statistics. */
static int adain_to_all(float *z, const sid_latent *content, const sid_latent *styles, const sid_injection *injection,
                        size_t channels, float epsilon) {
    size_t pixels = content->h * content->w;
    double total = 0;
    for (size_t i = 0; i < injection->style_count; i++) total += injection->weights[i];
    void *one;
    SID_TRY(allocate(&one, channels * pixels * sizeof(float)));
    memset(z, 0, channels * pixels * sizeof(float));
    for (size_t i = 0; i < injection->style_count; i++) {
        float share_of_style = (float)(injection->weights[i] / total);
        sid_adain(one, content->z, pixels, styles[i].z, styles[i].h * styles[i].w, channels, epsilon);
        for (size_t j = 0; j < channels * pixels; j++) z[j] += share_of_style * ((float *)one)[j];
    }
    free(one);
    return SID_OK;
}

int sid_inject_styles(sid_model *model, const sid_schedule *schedule, uint8_t *picture, float *z,
                      const sid_latent *content, const sid_latent *styles, int adain, const sid_prompt *prompt,
                      const sid_injection *injection, const sid_progress *progress) {
    size_t channels = sid_model_config(model)->unet.in_channels;
    if (adain) SID_TRY(adain_to_all(z, content, styles, injection, channels, schedule->adain_epsilon));
    else memcpy(z, content->z, channels * content->h * content->w * sizeof(float));
    SID_TRY(sid_denoise(model, schedule, z, content->h, content->w, prompt, 0, injection->content ? injection : NULL,
                        NULL, NULL, progress));
    return decode(model, picture, z, content->h, content->w, schedule->truncate);
}

/* Both pictures, as one batch where their sizes agree. trajectory: NULL, or room for the latents of all steps; then
 * `replays`, 1 or 2, can fill the banks from them. */
static int invert(sid_model *model, const sid_schedule *schedule, const subject subjects[2], sid_bank *const banks[2],
                  const sid_prompt *prompt, float *trajectory, sid_replay replays[2], size_t *replay_count,
                  share *part) {
    sid_progress progress = {report_share, part};
    int together = subjects[0].h == subjects[1].h && subjects[0].w == subjects[1].w;
    size_t n = together ? 2 : 1;
    part->weight = n;
    for (size_t i = 0; i < 2 / n; i++, part->before += schedule->steps) {
        const subject *s = &subjects[i];
        sid_trajectory kept = {trajectory, NULL};
        SID_TRY(sid_invert(model, schedule, s->z, n, s->h, s->w, prompt, &banks[i], &kept, 0, NULL, &progress));
        if (!trajectory) continue;
        replays[(*replay_count)++] =
            (sid_replay){trajectory, n, s->h, s->w, prompt->context, prompt->tokens, &banks[i]};
        trajectory += (schedule->steps + 1) * n * s->count;
    }
    return SID_OK;
}

static int inject(sid_model *model, const sid_schedule *schedule, uint8_t *picture, float *z, const subject subjects[2],
                  int adain, const sid_prompt *prompt, const sid_injection *injection, share *part) {
    sid_latent content = {subjects[0].z, subjects[0].h, subjects[0].w};
    sid_latent style = {subjects[1].z, subjects[1].h, subjects[1].w};
    sid_progress progress = {report_share, part};
    part->before = 2 * schedule->steps;
    part->weight = 1;
    return sid_inject_styles(model, schedule, picture, z, &content, &style, adain, prompt, injection, &progress);
}

static int open_banks(subject subjects[2], const sid_unet_config *config, const size_t *layers, size_t layer_count) {
    for (size_t i = 0; i < 2; i++)
        SID_TRY(bank_open(&subjects[i].bank, config, layers, layer_count, subjects[i].h, subjects[i].w, i == 0));
    return SID_OK;
}

int sid_transfer(sid_model *model, const sid_schedule *schedule, uint8_t *picture, const sid_image *content,
                 const sid_image *style, const size_t *layers, size_t layer_count, int adain, int recompute,
                 const sid_prompt *prompt, const float *gamma, const float *temperature, const sid_progress *progress) {
    const sid_config *config = sid_model_config(model);
    size_t factor = sid_vae_factor(&config->vae);
    share part = {progress, 0, 1, 2 * schedule->steps + schedule->sampling_steps};
    subject subjects[2] = {{.image = content}, {.image = style}};
    sid_bank *const banks[2] = {&subjects[0].bank, &subjects[1].bank};
    const sid_bank *style_bank = banks[1];
    const float weight = 1;
    sid_replay replays[2];
    sid_injection injection = {.content = layer_count ? banks[0] : NULL,
                               .styles = &style_bank,
                               .weights = &weight,
                               .style_count = 1,
                               .gamma = gamma,
                               .temperature = temperature,
                               .replays = replays};
    void *latents = NULL; /* both pictures' as a batch, then the one that is sampled, of the content's size */
    void *trajectory = NULL;
    int status = SID_OK;

    for (size_t i = 0; i < 2; i++) {
        subject *s = &subjects[i];
        s->h = s->image->height / factor;
        s->w = s->image->width / factor;
        s->count = config->unet.in_channels * s->h * s->w;
        s->bank.dtype = sid_model_dtype(model);
        s->bank.steps = recompute ? 1 : schedule->steps;
    }
    size_t count = subjects[0].count + subjects[1].count;
    status = allocate(&latents, (count + subjects[0].count) * sizeof(float));
    if (status == SID_OK && recompute) status = allocate(&trajectory, (schedule->steps + 1) * count * sizeof(float));
    if (status == SID_OK && !recompute) status = open_banks(subjects, &config->unet, layers, layer_count);
    if (status != SID_OK) goto done;
    subjects[0].z = latents;
    subjects[1].z = subjects[0].z + subjects[0].count;
    for (size_t i = 0; i < 2; i++) {
        status = encode(model, subjects[i].z, subjects[i].image);
        if (status != SID_OK) goto done;
    }
    status = invert(model, schedule, subjects, banks, prompt, trajectory, replays, &injection.replay_count, &part);
    /* Only now: the inversion of a transfer that recomputes saves nothing. */
    if (status == SID_OK && recompute) status = open_banks(subjects, &config->unet, layers, layer_count);
    if (status != SID_OK) goto done;
    float *z = subjects[1].z + subjects[1].count;
    status = inject(model, schedule, picture, z, subjects, adain, prompt, &injection, &part);
done:
    free(latents);
    free(trajectory);
    bank_close(&subjects[0].bank);
    bank_close(&subjects[1].bank);
    return status;
}
