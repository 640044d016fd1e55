#include "core/config.h"

#include "core/err.h"

#define MAX_CHANNELS 16384

static int check_range(const char *name, size_t value, size_t least, size_t most) {
    if (value < least || value > most)
        return sid_fail(SID_EMODEL, "configuration: %s is %zu, expected %zu to %zu", name, value, least, most);
    return SID_OK;
}

/* The group norms' channels must be multiples of the groups. */
static int check_channels(const char *name, size_t channels, size_t groups) {
    SID_TRY(check_range(name, channels, 1, MAX_CHANNELS));
    if (channels % groups)
        return sid_fail(SID_EMODEL, "configuration: %s has %zu channels, which %zu groups do not divide", name,
                        channels, groups);
    return SID_OK;
}

static int check_unet(const sid_unet_config *c) {
    SID_TRY(check_range("unet in_channels", c->in_channels, 1, 128));
    if (c->out_channels != c->in_channels)
        return sid_fail(SID_EMODEL, "configuration: unet out_channels is %zu, expected in_channels, %zu",
                        c->out_channels, c->in_channels);
    SID_TRY(check_range("unet number of levels", c->levels, 1, SID_MAX_LEVELS));
    SID_TRY(check_range("unet layers_per_block", c->layers_per_block, 1, 7));
    SID_TRY(check_range("unet groups", c->groups, 1, 1024));
    SID_TRY(check_range("unet context_size", c->context_size, 1, MAX_CHANNELS));
    SID_TRY(check_range("unet sample_size", c->sample_size, 1, 1024));
    for (size_t i = 0; i < c->levels; i++) {
        SID_TRY(check_channels("a unet level", c->channels[i], c->groups));
        SID_TRY(check_range("unet number of heads", c->heads[i], 1, c->channels[i]));
        if (c->channels[i] % c->heads[i])
            return sid_fail(SID_EMODEL, "configuration: %zu unet heads do not divide %zu channels", c->heads[i],
                            c->channels[i]);
    }
    if (c->channels[0] % 2)
        return sid_fail(SID_EMODEL, "configuration: the unet's first width is %zu, expected an even number",
                        c->channels[0]);
    if (!(c->eps > 0 && c->eps < 1))
        return sid_fail(SID_EMODEL, "configuration: unet eps is %g, expected 0 to 1", c->eps);
    return SID_OK;
}

static int check_kl(const sid_vae_config *c) {
    SID_TRY(check_range("vae layers_per_block", c->layers_per_block, 1, 7));
    SID_TRY(check_range("vae groups", c->groups, 1, 1024));
    for (size_t i = 0; i < c->levels; i++) SID_TRY(check_channels("a vae level", c->channels[i], c->groups));
    return SID_OK;
}

static int check_tiny(const sid_vae_config *c) {
    for (size_t i = 0; i < c->levels; i++) {
        SID_TRY(check_channels("a vae level", c->channels[i], 1));
        if (c->channels[i] != c->channels[0])
            return sid_fail(SID_EMODEL,
                            "configuration: a tiny vae's levels have %zu and %zu channels, expected one width",
                            c->channels[0], c->channels[i]);
        SID_TRY(check_range("vae encoder_blocks", c->encoder_blocks[i], 1, SID_MAX_TINY_BLOCKS));
        SID_TRY(check_range("vae decoder_blocks", c->decoder_blocks[i], 1, SID_MAX_TINY_BLOCKS));
    }
    return SID_OK;
}

static int check_vae(const sid_vae_config *c) {
    SID_TRY(check_range("vae image_channels", c->image_channels, 3, 3));
    SID_TRY(check_range("vae latent_channels", c->latent_channels, 1, 128));
    SID_TRY(check_range("vae number of levels", c->levels, 1, SID_MAX_LEVELS));
    SID_TRY(c->kind == SID_VAE_TINY ? check_tiny(c) : check_kl(c));
    if (!(c->scaling_factor > 1e-6f && c->scaling_factor < 1e6f))
        return sid_fail(SID_EMODEL, "configuration: vae scaling_factor is %g, expected 1e-6 to 1e6", c->scaling_factor);
    return SID_OK;
}

static int check_text(const sid_text_config *c) {
    SID_TRY(check_range("text vocabulary", c->vocabulary, 2, 1 << 20));
    SID_TRY(check_range("text positions", c->positions, 1, 4096));
    SID_TRY(check_range("text channels", c->channels, 1, MAX_CHANNELS));
    SID_TRY(check_range("text hidden", c->hidden, 1, 4 * MAX_CHANNELS));
    SID_TRY(check_range("text layers", c->layers, 1, 256));
    SID_TRY(check_range("text heads", c->heads, 1, c->channels));
    if (c->channels % c->heads)
        return sid_fail(SID_EMODEL, "configuration: %zu text heads do not divide %zu channels", c->heads, c->channels);
    return SID_OK;
}

int sid_config_check(const sid_config *c) {
    SID_TRY(check_vae(&c->vae));
    if (!c->unet.levels)
        return c->text.layers ? sid_fail(SID_EMODEL, "configuration: a text encoder without a unet") : SID_OK;
    SID_TRY(check_unet(&c->unet));
    if (c->vae.latent_channels != c->unet.in_channels)
        return sid_fail(SID_EMODEL, "configuration: the vae has %zu latent channels, the unet %zu",
                        c->vae.latent_channels, c->unet.in_channels);
    if (c->text.layers) {
        SID_TRY(check_text(&c->text));
        if (c->text.channels != c->unet.context_size)
            return sid_fail(SID_EMODEL, "configuration: the text encoder has %zu channels, the unet's context %zu",
                            c->text.channels, c->unet.context_size);
    }
    for (size_t t = 0; t < SID_TRAIN_STEPS; t++)
        if (!(c->alphas[t] > 0 && c->alphas[t] < (t ? c->alphas[t - 1] : 1)))
            return sid_fail(SID_EMODEL, "configuration: alphas[%zu] is %g, expected a fall from below 1 to above 0", t,
                            c->alphas[t]);
    return SID_OK;
}
