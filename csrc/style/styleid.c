#include "style/styleid.h"

#include <stdlib.h>
#include <string.h>

#include "core/err.h"

static int report(const sid_progress *progress, size_t step, size_t steps, float *z) {
    if (!progress || !progress->call) return SID_OK;
    return progress->call(progress->self, step, steps, z) ? sid_fail(SID_ECANCELLED, "cancelled at step %zu", step)
                                                          : SID_OK;
}

/* One evaluation and its DDIM move. */
static int move_latents(sid_model *model, float *z, float *noise, size_t n, size_t h, size_t w, const float *context,
                        size_t context_tokens, const sid_tap *tap, const sid_move *move) {
    const sid_config *config = sid_model_config(model);
    SID_TRY(sid_model_predict(model, noise, z, n, h, w, move->timestep, context, 1, context_tokens, tap));
    sid_ddim_move(z, noise, n * config->unet.in_channels * h * w, config->unet.prediction,
                  config->alphas[move->timestep], move);
    return SID_OK;
}

int sid_invert(sid_model *model, const sid_schedule *schedule, float *z, size_t n, size_t h, size_t w,
               const float *context, size_t context_tokens, sid_bank *const *banks, float *trajectory,
               const sid_progress *progress) {
    size_t count = n * sid_model_config(model)->unet.in_channels * h * w;
    float *noise = malloc(count * sizeof *noise);
    int status = noise ? SID_OK : sid_fail(SID_EMEMORY, "out of memory");
    for (size_t i = 0; i < schedule->steps && status == SID_OK; i++) {
        const sid_move *move = &schedule->inversion[i];
        sid_tap tap = {.mode = SID_TAP_SAVE, .step = move->slot, .saved = banks};
        status = report(progress, i, schedule->steps, z);
        if (status != SID_OK) break;
        if (trajectory) memcpy(trajectory + i * count, z, count * sizeof *z);
        status = move_latents(model, z, noise, n, h, w, context, context_tokens, &tap, move);
    }
    if (status == SID_OK) status = report(progress, schedule->steps, schedule->steps, z);
    if (status == SID_OK && trajectory) memcpy(trajectory + schedule->steps * count, z, count * sizeof *z);
    free(noise);
    return status;
}

int sid_denoise(sid_model *model, const sid_schedule *schedule, float *z, size_t h, size_t w, const float *context,
                size_t context_tokens, const sid_injection *injection, const sid_progress *progress) {
    const sid_unet_config *unet = &sid_model_config(model)->unet;
    size_t count = unet->in_channels * h * w, layers = sid_layer_count(unet);
    float *noise = malloc(count * sizeof *noise);
    int status = noise ? SID_OK : sid_fail(SID_EMEMORY, "out of memory");
    for (size_t i = 0; i < schedule->sampling_steps && status == SID_OK; i++) {
        const sid_move *move = &schedule->sampling[i];
        sid_tap tap = {.mode = SID_TAP_INJECT, .step = move->slot};
        if (injection) {
            tap.content = injection->content;
            tap.styles = injection->styles;
            tap.weights = injection->weights;
            tap.style_count = injection->style_count;
            tap.gamma = injection->gamma + move->slot * layers;
            tap.temperature = injection->temperature + move->slot * layers;
        }
        status = report(progress, i, schedule->sampling_steps, z);
        if (status == SID_OK)
            status = move_latents(model, z, noise, 1, h, w, context, context_tokens, injection ? &tap : NULL, move);
    }
    if (status == SID_OK) status = report(progress, schedule->sampling_steps, schedule->sampling_steps, z);
    free(noise);
    return status;
}
