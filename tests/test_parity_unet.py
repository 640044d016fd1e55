"""One evaluation of the UNet against diffusers."""

import copy
import ctypes
from functools import cache

import numpy as np
import oracle
import pytest
import torch
from oracle import BFLOAT16_TOLERANCE, EVALUATION_TOLERANCE, Networks, noise, relative_error

pytestmark = pytest.mark.torch

CONFIGURATIONS = {
    "sd1": dict(channels=(32, 64, 96, 96), heads=4, attention=(1, 1, 1, 0)),
    "sd2": dict(channels=(32, 64, 128, 128), heads=(1, 2, 4, 4), attention=(1, 1, 1, 0), linear=True, context=1024),
    "one level, ResNets": dict(channels=(16,), heads=2, attention=(0,), layers=1),
    "one level, transformers": dict(channels=(16,), heads=2, attention=(1,), layers=1),
    "one level, linear": dict(channels=(16,), heads=2, attention=(1,), layers=1, linear=True),
    "head size 8": dict(channels=(24, 56, 72), heads=(3, 7, 9), attention=(1, 1, 1), groups=4, latent=8, context=20),
    "head size 20, the lower level attends": dict(
        channels=(20, 60), heads=(1, 3), attention=(0, 1), layers=1, groups=10, linear=True
    ),
    "head size 40, the highest level attends": dict(
        channels=(40, 80, 80), heads=(1, 2, 2), attention=(1, 0, 0), groups=5
    ),
    "head sizes 80 and 160": dict(channels=(80, 160), heads=1, attention=(1, 1), layers=1, groups=16),
    "one channel a group": dict(channels=(32, 32), heads=4, attention=(0, 1), groups=32, layers=1),
    "large maps": dict(channels=(64, 80), heads=2, attention=(0, 0), layers=1, groups=16, sample_size=64),
    "widths that fall": dict(
        channels=(48, 32, 64), heads=(2, 4, 2), attention=(1, 0, 1), layers=3, latent=3, context=1
    ),
}


@cache
def networks(name):
    latent = CONFIGURATIONS[name].get("latent", 4)
    return Networks(oracle.unet(**CONFIGURATIONS[name]), oracle.vae((8,), layers=1, latent=latent))


@cache
def engine(name, **options):
    return networks(name).engine(**options)


def inputs(name, n=1, height=16, width=16, tokens=7, contexts=1):
    unet = networks(name).unet.config
    return noise(n, unet.in_channels, height, width), noise(contexts, tokens, unet.cross_attention_dim, seed=1)


def expected(name, latents, timestep, context):
    context = torch.from_numpy(context).expand(len(latents), -1, -1)
    return networks(name).unet(torch.from_numpy(latents), timestep, context).sample.numpy()


def check(name, timestep=481, **sizes):
    latents, context = inputs(name, **sizes)
    actual = engine(name).predict_noise(latents, timestep, context)
    assert actual.dtype == np.float32
    assert relative_error(actual, expected(name, latents, timestep, context)) <= EVALUATION_TOLERANCE


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations(name):
    check(name)


@pytest.mark.parametrize("timestep", [0, 1, 500, 981, 999])
def test_timesteps(timestep):
    check("sd1", timestep)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
@pytest.mark.parametrize("height, width", [(40, 56), (8, 8), (8, 40), (24, 16)])
def test_sizes(name, height, width):
    check(name, height=height, width=width)


@pytest.mark.parametrize("name, height, width", [("one level, transformers", 5, 7), ("one level, transformers", 1, 1),
                                                 ("head size 20, the lower level attends", 10, 6)])  # fmt: skip
def test_small_and_odd_sizes(name, height, width):
    check(name, height=height, width=width)


@pytest.mark.parametrize("height, width, n", [(64, 64, 1), (30, 46, 2), (2, 6, 3)])
def test_large_maps_and_others_of_the_same_model(height, width, n):
    """Convolutions are computed in another way where a model's own maps are large."""
    check("large maps", height=height, width=width, n=n)


@pytest.mark.parametrize("name", ["sd1", "sd2", "head size 8"])
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("own_contexts", [False, True])
def test_batches(name, n, own_contexts):
    check(name, n=n, contexts=n if own_contexts else 1)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
@pytest.mark.parametrize("tokens", [1, 77])
def test_context_lengths(name, tokens):
    check(name, tokens=tokens)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_stored_in_16_bits(dtype):
    stored = copy.deepcopy(networks("sd1").unet).to(dtype)
    model = Networks(stored).engine()
    latents, context = inputs("sd1")
    wanted = stored.float()(torch.from_numpy(latents), 481, torch.from_numpy(context)).sample
    assert relative_error(model.predict_noise(latents, 481, context), wanted) <= EVALUATION_TOLERANCE


def check_bfloat16(name, timestep=481, **sizes):
    latents, context = inputs(name, **sizes)
    exact = expected(name, latents, timestep, context)
    half = copy.deepcopy(networks(name).unet).bfloat16()
    contexts = torch.from_numpy(context).bfloat16().expand(len(latents), -1, -1)
    theirs = half(torch.from_numpy(latents).bfloat16(), timestep, contexts).sample.float()
    ours = engine(name, dtype="bfloat16").predict_noise(latents, timestep, context)
    assert relative_error(ours, exact) <= BFLOAT16_TOLERANCE * relative_error(theirs, exact)


@pytest.mark.bfloat16
@pytest.mark.parametrize("name", ["sd1", "sd2", "head size 8", "head sizes 80 and 160", "large maps"])
@pytest.mark.parametrize("timestep", [1, 981])
def test_bfloat16_loses_no_more_than_pytorchs(name, timestep):
    check_bfloat16(name, timestep, n=2)


@pytest.mark.bfloat16
@pytest.mark.parametrize("height, width, n", [(64, 64, 1), (30, 46, 2), (2, 6, 3)])
def test_large_maps_in_bfloat16(height, width, n):
    check_bfloat16("large maps", height=height, width=width, n=n)


@pytest.mark.parametrize("name", ["sd1", "sd2", "large maps"])
def test_a_batch_is_its_samples(name):
    latents, context = inputs(name, n=2, contexts=2)
    batch = engine(name).predict_noise(latents, 481, context)
    singles = [engine(name).predict_noise(latents[i : i + 1], 481, context[i : i + 1]) for i in range(2)]
    assert relative_error(batch, np.concatenate(singles)) <= EVALUATION_TOLERANCE / 10


@pytest.mark.parametrize("name", ["sd1", "sd2", "large maps"])
def test_same_bytes_every_time_on_any_number_of_threads(name):
    latents, context = inputs(name, n=2, height=24, width=16)
    first = engine(name).predict_noise(latents, 481, context).tobytes()
    assert engine(name).predict_noise(latents, 481, context).tobytes() == first
    assert engine(name, threads=2).predict_noise(latents, 481, context).tobytes() == first


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_no_size_is_left_to_reference_code(name, capfd, request):
    """oneDNN computes any convolution, but weights in the layout of another size perhaps a hundred times slower."""
    if request.config.getoption("--device") != "cpu":
        pytest.skip("only the CPU's backend computes with oneDNN")
    onednn = ctypes.CDLL("libdnnl.so.3")  # the one that the engine has loaded
    latents, context = inputs(name, height=40, width=56)
    engine(name)  # packs for the native size
    capfd.readouterr()
    onednn.dnnl_set_verbose(1)
    engine(name).predict_noise(latents, 481, context)
    onednn.dnnl_set_verbose(0)
    lines = [line for line in capfd.readouterr().out.splitlines() if ",exec,cpu,convolution," in line]
    assert lines
    assert not [line for line in lines if ",convolution,ref" in line]
