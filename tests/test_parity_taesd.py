"""AutoencoderTiny (TAESD) against diffusers."""

import copy
from functools import cache

import numpy as np
import oracle
import pytest
import torch
from oracle import BFLOAT16_TOLERANCE, EVALUATION_TOLERANCE, Networks, noise, relative_error, smooth_image

pytestmark = pytest.mark.torch

CONFIGURATIONS = {
    "taesd": {"width": 64},
    "other counts of blocks": {"width": 20, "encoder": (2, 1, 3), "decoder": (1, 4, 2)},
    "one level": {"width": 16, "encoder": (2,), "decoder": (1,)},
    "16 latent channels": {"width": 8, "latent": 16, "scaling": 0.7},
}


@cache
def networks(name):
    vae = oracle.tiny_vae(**CONFIGURATIONS[name])
    return Networks(oracle.unet((16,), 2, (0,), layers=1, latent=vae.config.latent_channels), vae)


@cache
def engine(name, **options):
    return networks(name).engine(**options)


def encoded(vae, images):
    planes = 2 * torch.from_numpy(images).float().div(255).permute(0, 3, 1, 2) - 1
    return vae.encode(planes.to(vae.dtype)).latents.float() * vae.config.scaling_factor


def decoded(vae, latents):
    return vae.decode(torch.from_numpy(latents).to(vae.dtype) / vae.config.scaling_factor).sample.float()


def latents(name, n=1, height=5, width=9):
    """Beyond what the decoder bounds."""
    return 2 * noise(n, networks(name).vae.config.latent_channels, height, width)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("n, height, width", [(1, 40, 72), (2, 64, 64)])
def test_encode(name, n, height, width):
    images = np.stack([smooth_image(height, width, seed) for seed in range(n)])
    assert relative_error(engine(name).encode(images), encoded(networks(name).vae, images)) <= EVALUATION_TOLERANCE


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("n, height, width", [(1, 5, 9), (2, 8, 8), (1, 1, 1)])
def test_decode(name, n, height, width):
    z = latents(name, n, height, width)
    assert relative_error(engine(name).decode_float(z), decoded(networks(name).vae, z)) <= EVALUATION_TOLERANCE


@pytest.mark.bfloat16
def test_bfloat16_loses_no_more_than_pytorchs():
    vae = networks("taesd").vae
    half, model = copy.deepcopy(vae).bfloat16(), engine("taesd", dtype="bfloat16")
    images, z = smooth_image(64, 48, seed=1)[None], latents("taesd", height=8, width=6)
    exact = encoded(vae, images)
    assert relative_error(model.encode(images), exact) <= BFLOAT16_TOLERANCE * relative_error(
        encoded(half, images), exact
    )
    exact = decoded(vae, z)
    assert relative_error(model.decode_float(z), exact) <= BFLOAT16_TOLERANCE * relative_error(decoded(half, z), exact)


def test_same_bytes_on_any_number_of_threads():
    images, z = smooth_image(64, 48, seed=1)[None], latents("taesd")
    one, two = engine("taesd"), engine("taesd", threads=2)
    assert one.encode(images).tobytes() == two.encode(images).tobytes()
    assert one.decode_float(z).tobytes() == two.decode_float(z).tobytes()


def test_there_is_no_posterior():
    with pytest.raises(ValueError, match="no posterior to sample from"):
        engine("taesd").log_variance(smooth_image(64, 48, seed=1)[None])
