"""The autoencoder against diffusers."""

import copy
from functools import cache

import numpy as np
import oracle
import pytest
import torch
from oracle import BFLOAT16_TOLERANCE, EVALUATION_TOLERANCE, Networks, noise, relative_error, smooth_image

pytestmark = pytest.mark.torch

CONFIGURATIONS = {
    "sd": dict(channels=(16, 32, 64, 64)),
    "8 latent channels": dict(channels=(16, 24, 32), layers=1, latent=8, scaling=0.62),
    "3 ResNets a level": dict(channels=(8, 24), layers=3, groups=4, latent=3),
    "one level": dict(channels=(16,), layers=1),
    "no attention": dict(channels=(16, 32), attention=False),
    "no quant convolutions": dict(channels=(16, 32), layers=1, quant=False, post_quant=False),
    "quant convolution only": dict(channels=(16, 32), layers=1, post_quant=False),
    "post-quant convolution only": dict(channels=(16, 32), layers=1, quant=False),
    "odd widths": dict(channels=(20, 30, 50), layers=1, groups=10),
}


@cache
def networks(name):
    vae = oracle.vae(**CONFIGURATIONS[name])
    return Networks(oracle.unet((16,), 2, (0,), layers=1, latent=vae.config.latent_channels), vae)


@cache
def engine(name, **options):
    return networks(name).engine(**options)


def planes(images):
    return 2 * torch.from_numpy(images).float().div(255).permute(0, 3, 1, 2) - 1


def encoded(vae, images):
    return vae.encode(planes(images).to(vae.dtype)).latent_dist.mode().float() * vae.config.scaling_factor


def decoded(vae, latents):
    return vae.decode(torch.from_numpy(latents).to(vae.dtype) / vae.config.scaling_factor).sample.float()


def latents(name, n=1, height=5, width=9):
    return noise(n, networks(name).vae.config.latent_channels, height, width)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_log_variance(name):
    images = smooth_image(40, 72, seed=1)[None]
    vae = networks(name).vae
    moments = vae._encode(planes(images))
    actual = engine(name).log_variance(images)
    assert relative_error(actual, moments[:, moments.shape[1] // 2 :]) <= EVALUATION_TOLERANCE


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("height, width", [(40, 72), (64, 64)])
def test_encode(name, height, width):
    images = smooth_image(height, width, seed=1)[None]
    actual = engine(name).encode(images)
    assert actual.dtype == np.float32
    assert relative_error(actual, encoded(networks(name).vae, images)) <= EVALUATION_TOLERANCE


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("height, width", [(5, 9), (8, 8), (1, 1)])
def test_decode(name, height, width):
    z = latents(name, height=height, width=width)
    actual = engine(name).decode_float(z)
    assert actual.dtype == np.float32
    assert relative_error(actual, decoded(networks(name).vae, z)) <= EVALUATION_TOLERANCE


def test_batches():
    images = np.stack([smooth_image(48, 32, seed) for seed in range(3)])
    assert relative_error(engine("sd").encode(images), encoded(networks("sd").vae, images)) <= EVALUATION_TOLERANCE
    z = latents("sd", n=3)
    assert relative_error(engine("sd").decode_float(z), decoded(networks("sd").vae, z)) <= EVALUATION_TOLERANCE


def test_float_images():
    images = smooth_image(32, 32, seed=1)[None]
    floats = engine("sd").encode(images.astype(np.float32) / 255)
    assert relative_error(floats, engine("sd").encode(images)) <= EVALUATION_TOLERANCE


@pytest.mark.parametrize("truncate", [False, True])
def test_bytes(truncate):
    """From the decoder's own output: truncated, or rounded half to even."""
    z = latents("sd", n=2) / 2
    levels = 255 * ((engine("sd").decode_float(z) + 1) / 2).clip(0, 1).transpose(0, 2, 3, 1)
    pixels = engine("sd").decode(z, truncate=truncate)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.trunc(levels) if truncate else np.rint(levels))
    assert 0 < np.mean((pixels == 0) | (pixels == 255)) < 1


@pytest.mark.bfloat16
@pytest.mark.parametrize("name", ["sd", "8 latent channels"])
def test_bfloat16_loses_no_more_than_pytorchs(name):
    vae = networks(name).vae
    half, model = copy.deepcopy(vae).bfloat16(), engine(name, dtype="bfloat16")
    images, z = smooth_image(64, 48, seed=1)[None], latents(name, height=8, width=6)
    exact = encoded(vae, images)
    assert relative_error(model.encode(images), exact) <= BFLOAT16_TOLERANCE * relative_error(
        encoded(half, images), exact
    )
    exact = decoded(vae, z)
    assert relative_error(model.decode_float(z), exact) <= BFLOAT16_TOLERANCE * relative_error(decoded(half, z), exact)


def test_same_bytes_on_any_number_of_threads():
    images, z = smooth_image(64, 48, seed=1)[None], latents("sd")
    one, two = engine("sd"), engine("sd", threads=2)
    assert one.encode(images).tobytes() == one.encode(images).tobytes() == two.encode(images).tobytes()
    assert one.decode_float(z).tobytes() == two.decode_float(z).tobytes()
