"""What the published programs get wrong, one test each."""

import os
import pickle
import subprocess
import sys

import numpy as np
import oracle
import pytest
from conftest import told
from oracle import Networks, noise, smooth_image
from PIL import Image

import styleid

pytestmark = pytest.mark.torch

CHANNELS = 16, 24, 32
RATES = dict(steps=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    networks = Networks(
        oracle.unet(CHANNELS, (2, 3, 2), (1, 1, 0), context=20), oracle.vae((8, 16), layers=1)
    )  # nine decoder layers: 3 to 8 attend
    return networks.save(tmp_path_factory.mktemp("model"), noise(1, 7, 20))


@pytest.fixture(scope="module")
def model(folder):
    return styleid.load_model(folder, dtype="float32", threads=1)


@pytest.fixture(scope="module")
def images():
    return [smooth_image(32, 32, seed) for seed in range(3)]


def test_pair_after_pair_without_injection(folder, model, images):
    """The ablation switch dies on the second pair."""
    results = [styleid.transfer(images[0], style, model, **told(inject=False, **RATES)) for style in images]
    fresh = styleid.load_model(folder, dtype="float32", threads=1)
    for style, result in zip(images, results):
        assert np.array_equal(result, styleid.transfer(images[0], style, fresh, **told(inject=False, **RATES)))
    assert not np.array_equal(results[1], results[2])


def test_saved_features_do_not_collide(model, images, tmp_path):
    """The feature cache goes by the file name up to its first dot: other images and settings are taken silently."""
    for i, image in enumerate(images):
        styleid.invert(image, model, steps=5 + i).save(tmp_path / f"image.{i}.png")
    assert len(list(tmp_path.iterdir())) == 3
    for i, image in enumerate(images):
        loaded = styleid.Inversion.load(tmp_path / f"image.{i}.png")
        assert np.array_equal(loaded.latents, styleid.invert(image, model, steps=5 + i).latents)
    other_steps = [styleid.Inversion.load(tmp_path / f"image.{i}.png") for i in (0, 1)]
    with pytest.raises(ValueError, match="steps"):
        styleid.inject_styles(*other_steps, model)
    other_schedule = styleid.invert(images[1], model, steps=5, schedule="diffusers")
    with pytest.raises(ValueError, match="schedule"):
        styleid.inject_styles(other_steps[0], other_schedule, model)


def test_saved_features_are_not_pickled(model, images, tmp_path):
    """The feature cache is a pickle, which runs what is in it."""
    path = tmp_path / "inversion"
    styleid.invert(images[0], model, **told(**RATES)).save(path)
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(path.read_bytes())

    class Trap:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError):
        styleid.Inversion.load(path)
    assert not (tmp_path / "ran").exists()


def test_gamma_and_temperature_are_no_integers(folder, model, images, tmp_path):
    """The second program's command line takes no fractions."""
    for name, image in zip(("content.png", "style.png"), images):
        Image.fromarray(image).save(tmp_path / name)
    results = []
    for gamma, temperature in ((0.75, 1.5), (0.3, 1.5), (0.75, 1.25), (1.0, 1.0)):
        command = [
            "-m",
            "styleid",
            "transfer",
            "content.png",
            "style.png",
            "-o",
            "out.png",
            "--model",
            folder,
            "--steps",
            "5",
        ]
        command += ["--dtype", "float32", "--threads", "1", "--size", "32"]
        command += ["--gamma", str(gamma), "--temperature", str(temperature)]
        subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, capture_output=True)
        results.append(np.asarray(Image.open(tmp_path / "out.png")))
        expected = styleid.transfer(*images[:2], model, **told(gamma=gamma, temperature=temperature, **RATES))
        assert np.array_equal(results[-1], expected)
    assert len({result.tobytes() for result in results}) == len(results)


def test_runs_without_cuda_and_without_pytorch(folder):
    """Nothing runs without CUDA."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, styleid\n"
        f"model = styleid.load_model({str(folder)!r})\n"
        "random = np.random.default_rng(0)\n"
        "content, style = random.integers(256, size=(2, 32, 32, 3), dtype=np.uint8)\n"
        "assert styleid.transfer(content, style, model, steps=2).shape == (32, 32, 3)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})


def feature_bytes(inversion):
    others = ("latents", "predicted", "context", "timesteps")
    return inversion.nbytes - sum(getattr(inversion, name).nbytes for name in others)


def test_features_take_no_more_than_they_must(model, images):
    """3.5 GB an image: Q, K and V of both images, where the content's Q and the style's K and V do."""
    layers = 4, 7
    numbers = 5 * sum(tokens * channels for tokens, channels in ((8 * 8, CHANNELS[1]), (16 * 16, CHANNELS[0])))
    parts = {
        keep: styleid.invert(images[0], model, **told(layers=layers, keep=keep, **RATES))
        for keep in ("query", "keys", "both")
    }
    size = {keep: feature_bytes(inversion) for keep, inversion in parts.items()}
    width = size["query"] // numbers
    assert width in (2, 4)
    assert size == {"query": width * numbers, "keys": 2 * width * numbers, "both": 3 * width * numbers}
    enough = styleid.inject_styles(parts["query"], parts["keys"], model, layers=layers)
    assert np.array_equal(enough, styleid.inject_styles(parts["both"], parts["both"], model, layers=layers))


@pytest.mark.bfloat16
def test_features_in_16_bits_where_the_model_computes_in_16_bits(folder, images):
    """1.18 GB of a style's K and V and 0.59 GB of a content's Q at SD 1.x's size and 50 steps."""
    half = styleid.load_model(folder, dtype="bfloat16", threads=1)
    inversion = styleid.invert(images[0], half, **told(layers=(8,), keep="query", **RATES))
    assert feature_bytes(inversion) == 5 * 16 * 16 * CHANNELS[0] * 2


@pytest.mark.parametrize("size", [(36, 32), (32, 33), (7, 32)])
@pytest.mark.parametrize("place", ["content", "style"])
def test_images_of_any_size(model, images, place, size):
    """An image of the wrong size gives a wrong result without a word: here the rule is that it is mirrored to the next
    usable size, and that the result is cut to the content's."""
    pair = {"content": images[0], "style": images[1], place: smooth_image(*size, seed=3)}
    result = styleid.transfer(model=model, **told(**pair, **RATES))
    assert result.shape == pair["content"].shape
    height, width = (-side % model.image_multiple for side in size)
    pair[place] = np.pad(pair[place], ((0, height), (0, width), (0, 0)), mode="reflect")
    whole = styleid.transfer(model=model, **told(**pair, **RATES))
    assert np.array_equal(result, whole[: result.shape[0], : result.shape[1]])


def test_images_of_different_sizes(model):
    """The result has the content's size, and is what the inversions give one by one."""
    content, style = smooth_image(48, 32, seed=1), smooth_image(32, 64, seed=2)
    stylized = styleid.transfer(content, style, model, **told(**RATES))
    assert stylized.shape == content.shape
    inversions = (styleid.invert(image, model, **told(**RATES)) for image in (content, style))
    assert np.array_equal(stylized, styleid.inject_styles(*inversions, model=model))


def test_images_need_not_be_square(model):
    content, style = smooth_image(48, 32, seed=1), smooth_image(48, 32, seed=2)
    assert styleid.transfer(content, style, model, **told(**RATES)).shape == (48, 32, 3)
