#include "model/vae.h"

#include "core/err.h"
#include "model/tiles.h"

int sid_vae_open(sid_builder *builder, sid_vae *v, const sid_vae_config *config) {
    *v = (sid_vae){.config = *config, .kind = config->kind == SID_VAE_TINY ? &sid_taesd : &sid_kl};
    return v->kind->open(builder, &v->network, config);
}

void sid_vae_close(sid_backend *backend, sid_vae *v) {
    if (v->network) v->kind->close(backend, v->network);
    *v = (sid_vae){0};
}

int sid_vae_encode(sid_runner *runner, const sid_vae *v, sid_planes *latents, const sid_planes *images, int tiled) {
    return sid_map_planes(runner, &(sid_map){v->kind->encode, v->network}, latents, images, tiled);
}

int sid_vae_log_variance(sid_runner *runner, const sid_vae *v, sid_planes *planes, const sid_planes *images,
                         int tiled) {
    if (!v->kind->log_variance) return sid_fail(SID_EVALUE, "this model's VAE has no posterior to sample from");
    return sid_map_planes(runner, &(sid_map){v->kind->log_variance, v->network}, planes, images, tiled);
}

int sid_vae_decode(sid_runner *runner, const sid_vae *v, sid_planes *images, const sid_planes *latents, int tiled) {
    return sid_map_planes(runner, &(sid_map){v->kind->decode, v->network}, images, latents, tiled);
}

int sid_vae_scratch(sid_runner *runner, const sid_vae *v, size_t *bytes, size_t height, size_t width, int tiled) {
    const sid_vae_config *c = &v->config;
    size_t factor = sid_vae_factor(c), encode, decode;
    sid_planes images = {NULL, 1, c->image_channels, height, width};
    sid_planes latents = {NULL, 1, c->latent_channels, height / factor, width / factor};
    SID_TRY(sid_map_scratch(runner, &(sid_map){v->kind->encode, v->network}, &encode, &latents, &images, tiled));
    SID_TRY(sid_map_scratch(runner, &(sid_map){v->kind->decode, v->network}, &decode, &images, &latents, tiled));
    *bytes = encode > decode ? encode : decode;
    return SID_OK;
}
