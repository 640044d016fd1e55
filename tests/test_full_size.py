"""The networks of SD 1.x at their full size, with random weights, once each."""

import gc

import numpy as np
import oracle
import pytest
import torch
from oracle import EVALUATION_TOLERANCE, Networks, noise, relative_error, smooth_image

pytestmark = [pytest.mark.slow, pytest.mark.torch]


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
    gc.collect()


def test_unet():
    """860 million parameters. PyTorch's network is gone before the engine computes: both at once are 7 GB."""
    unet = oracle.unet((320, 640, 1280, 1280), 8, (1, 1, 1, 0), context=768, groups=32, sample_size=64)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    latents, context = noise(1, 4, 64, 64), noise(1, 77, 768, seed=1)
    expected = unet(torch.from_numpy(latents), 481, torch.from_numpy(context)).sample
    networks = Networks(unet)
    del unet
    model = networks.engine(threads=2)
    del networks
    gc.collect()
    assert relative_error(model.predict_noise(latents, 481, context), expected) <= EVALUATION_TOLERANCE


def test_vae():
    networks = Networks(vae=oracle.vae((128, 256, 512, 512), groups=32))
    assert sum(p.numel() for p in networks.vae.parameters()) == 83_653_863
    model, method = networks.engine(threads=2), oracle.StyleID(networks)
    image, latents = smooth_image(256, 256, seed=1), noise(1, 4, 32, 32)
    assert relative_error(model.encode(image[None]), method.encode(image)) <= EVALUATION_TOLERANCE
    expected = networks.vae.decode(torch.from_numpy(latents) / 0.18215).sample
    assert relative_error(model.decode_float(latents), expected) <= EVALUATION_TOLERANCE


def test_text_encoder():
    """CLIP ViT-L/14."""
    text = oracle.text_encoder(768, 12, layers=12, vocabulary=49408)
    assert sum(p.numel() for p in text.parameters()) == 123_060_480
    networks = Networks(oracle.unet((16,), 2, (0,), layers=1, context=768), text=text)
    ids = np.random.default_rng(0).integers(49408, size=(1, 77), dtype=np.int32)
    expected = text(torch.from_numpy(ids).long()).last_hidden_state
    assert relative_error(networks.engine(threads=2).encode_tokens(ids), expected) <= EVALUATION_TOLERANCE
