"""One random model, written in every format: all loaders give the same weights, and the same numbers."""

import formats
import numpy as np
import pytest
import tiny
from formats import FAMILIES
from safetensors.numpy import save_file

import styleid
from styleid import ModelError

PREDICTION = {"1.x": None, "2.x": "epsilon"}  # files of 2.x do not say


def load(path, **options):
    return styleid.load_model(path, dtype="float32", threads=1, **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        family: formats.write_diffusers(tmp_path_factory.mktemp("diffusers") / family, formats.configuration(family))
        for family in FAMILIES
    }


@pytest.fixture(scope="module")
def expected(folders):
    return {family: load(folder) for family, folder in folders.items()}


def assert_same(model, other, prompts=("",)):
    """Bit for bit. The fingerprint is of configuration and weights: only where those are all the same is it."""
    random = np.random.default_rng(0)
    latents = random.standard_normal((1, 4, 8, 8)).astype(np.float32)
    image = random.integers(0, 256, (16, 16, 3), np.uint8)
    for prompt in prompts:
        np.testing.assert_array_equal(model.encode_prompt(prompt), other.encode_prompt(prompt))
    np.testing.assert_array_equal(model.predict_noise(latents, 481), other.predict_noise(latents, 481))
    np.testing.assert_array_equal(model.encode(image), other.encode(image))
    np.testing.assert_array_equal(model.decode(latents), other.decode(latents))


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def original(family):
    """The arrays by their original names, to be changed and saved."""
    return formats.ldm(formats.configuration(family), family)


# ---- single files in the original naming ----


def test_single_file(family, original, expected, tmp_path):
    save_file(original, tmp_path / "model.safetensors")
    model = load(tmp_path / "model.safetensors", prediction=PREDICTION[family])
    assert model.config["unet"] == expected[family].config["unet"]
    assert model.fingerprint == expected[family].fingerprint
    assert_same(model, expected[family])


def test_the_clip_of_1x_without_its_level(expected, tmp_path):
    save_file(formats.ldm(formats.configuration("1.x"), "1.x", text_level=""), tmp_path / "m.safetensors")
    assert_same(load(tmp_path / "m.safetensors"), expected["1.x"])


def test_single_file_in_half_precision(family, original, expected, tmp_path):
    halves = {name: array.astype(np.float16) for name, array in original.items()}
    save_file(halves, tmp_path / "model.safetensors")
    model = load(tmp_path / "model.safetensors", prediction="epsilon")
    np.testing.assert_array_equal(model.config["alphas"], expected[family].config["alphas"])  # not the rounded ones
    assert_same(model, expected[family])


def test_prompts_of_a_single_file(family, original, expected, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(original, path)
    with pytest.raises(ValueError, match="prompt 'a cat': .*folder `tokenizer`"):
        load(path, prediction="epsilon").encode_prompt("a cat")
    text = formats.configuration(family)["text"]
    formats.write_tokenizer(tmp_path / "tokenizer", text["vocabulary"], family == "2.x")
    assert_same(load(path, prediction="epsilon"), expected[family], ("", "a cat"))


def test_prediction(tmp_path, expected):
    path = tmp_path / "model.safetensors"
    original = formats.ldm(formats.configuration("2.x"), "2.x")
    save_file(original, path)
    with pytest.warns(UserWarning, match="does not say what it predicts"):
        assert load(path).fingerprint == expected["2.x"].fingerprint
    unet = load(path, prediction="v_prediction").config["unet"]
    assert (unet["prediction"], unet["sample_size"]) == ("v_prediction", 96)
    path.unlink()
    save_file(original, path, {"modelspec.prediction_type": "v"})
    assert load(path).config["unet"]["prediction"] == "v_prediction"
    assert load(path, prediction="epsilon").config["unet"]["prediction"] == "epsilon"


def test_prediction_of_a_folder(folders):
    assert load(folders["1.x"], prediction="v_prediction").config["unet"]["prediction"] == "v_prediction"
    with pytest.raises(ValueError, match="^prediction: "):
        load(folders["1.x"], prediction="v")


def test_noise_levels_of_a_file(original, family, tmp_path):
    other = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000)).astype(np.float32)
    save_file(original | {"alphas_cumprod": other}, tmp_path / "m.safetensors")
    alphas = load(tmp_path / "m.safetensors", prediction="epsilon").config["alphas"]
    np.testing.assert_array_equal(alphas, other.astype(np.float64))
    assert not np.allclose(alphas, tiny.ALPHAS, rtol=0.01)


UNET, VAE = "model.diffusion_model.", "first_stage_model."


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: {}, "no tensors model.diffusion_model"),
        (lambda t: {k: v for k, v in t.items() if not k.startswith(VAE)}, "no tensors first_stage_model"),
        (lambda t: {k: v for k, v in t.items() if not k.startswith("cond_stage")}, "no tensors cond_stage_model"),
        (lambda t: t | {"control_model.zero.weight": np.zeros(1)}, "unknown tensor 'control_model.zero.weight'"),
        (lambda t: t | {UNET + "label_emb.0.0.weight": np.zeros(1, np.float32)}, "unknown tensor 'label_emb"),
        (lambda t: t | {UNET + "nothing": np.zeros(1, np.float32)}, "unknown tensor 'nothing'"),
        (lambda t: t | {VAE + "loss.weight": np.zeros(1, np.float32)}, "unknown tensor 'loss.weight'"),
        (lambda t: t | {UNET + "out.2.extra.weight": np.zeros(1, np.float32)}, "conv_out.extra"),
        (lambda t: t | {UNET + "input_blocks.1.0.norm1.weight": np.zeros(32, np.float32)}, "two names"),
        (lambda t: t | {"cond_stage_model.other.weight": np.zeros(1, np.float32)}, "unknown tensor '.*other.weight'"),
        (lambda t: t | {UNET + "input_blocks.0.0.weight": np.zeros(4, np.float32)}, "expected 4 dimensions"),
        (
            lambda t: t | {UNET + "input_blocks.0.0.weight": np.zeros((32, 0, 3, 3), np.float32)},
            "expected 4 dimensions",
        ),
        (lambda t: t | {UNET + "input_blocks.0.0.weight": np.zeros((32, 9, 3, 3), np.float32)}, "in_channels"),
        (lambda t: {k: v for k, v in t.items() if "middle_block.1.proj_in.weight" not in k}, "middle_block.1.proj_in"),
        (lambda t: {k: v for k, v in t.items() if "quant_conv.weight" not in k}, "quant_conv"),
        (lambda t: {k: v for k, v in t.items() if "decoder.up.1.block.0" not in k}, r"vae.decoder.up_blocks.0"),
        (lambda t: t | {"alphas_cumprod": np.ones(3, np.float32)}, "alphas_cumprod"),
        (lambda t: t | {"alphas_cumprod": np.zeros(1000, np.float32)}, "alphas_cumprod"),
        (lambda t: t | {"alphas_cumprod": np.full(1000, np.nan, np.float32)}, "alphas_cumprod"),
    ],
)
def test_files_that_are_no_model(original, family, tmp_path, change, message):
    path = tmp_path / "model.safetensors"
    save_file({k: v.astype(np.float32) for k, v in change(original).items()}, path)
    with pytest.raises(ModelError, match=message) as caught:
        load(path, prediction="epsilon")
    assert str(path) in str(caught.value)


def test_fused_projections_of_a_wrong_height(tmp_path):
    original = formats.ldm(formats.configuration("2.x"), "2.x")
    name = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias"
    for array in np.zeros((64,), np.float32), np.zeros((0,), np.float32), np.zeros((), np.float32):
        path = tmp_path / f"{array.shape}.safetensors"
        save_file(original | {name: array}, path)
        with pytest.raises(ModelError, match="in_proj_bias"):
            load(path, prediction="epsilon")
