"""One random model, written in every format: all loaders give the same weights, and the same numbers."""

import json
from pathlib import Path

import formats
import numpy as np
import pytest
import tiny
import torch
import transformers
from conftest import told
from formats import FAMILIES
from safetensors.numpy import save_file

import styleid
from styleid import ModelError
from styleid.files.tensors import Tensor
from styleid.models.ldm import convert

pytestmark = pytest.mark.torch

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


def with_means(original):
    """The file of a training that kept running means: of the UNet alone, by names without dots."""
    prefix = "model.diffusion_model."
    means = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): array + np.float32(0.5)
        for name, array in original.items()
        if name.startswith(prefix)
    }
    return original | means, {
        name: array + np.float32(0.5) if name.startswith(prefix) else array for name, array in original.items()
    }


def test_running_means(family, original, expected, tmp_path):
    """With ema=True the model is that of a file in which the means are the weights; else they count for nothing."""
    both, means_alone = with_means(original)
    save_file(both, tmp_path / "both.safetensors")
    save_file(means_alone, tmp_path / "means.safetensors")
    options = {"prediction": PREDICTION[family]}
    assert_same(load(tmp_path / "both.safetensors", **options), expected[family])
    chosen, wanted = (
        load(tmp_path / f"{name}.safetensors", ema=name == "both", **options) for name in ("both", "means")
    )
    assert chosen.fingerprint == wanted.fingerprint != expected[family].fingerprint
    assert_same(chosen, wanted)


def test_running_means_that_are_not_there(original, folders, tmp_path):
    original = {name: array for name, array in original.items() if not name.startswith("model_ema.")}
    save_file(original, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match=r"m\.safetensors: ema: it has no running mean of 'model\.diffusion_model\."):
        load(tmp_path / "m.safetensors", ema=True, prediction="epsilon")
    with pytest.raises(ModelError, match="ema: only single files"):
        load(folders["1.x"], ema=True)


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
PUBLISHED = ("cond_stage_model.model.text_projection", "cond_stage_model.model.logit_scale")


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("layers", [23, 24])
def test_layers_of_the_text_encoder_of_2x(tmp_path, layers, published):
    """24 are published, of which the last is unused; 23 are left by a conversion from diffusers' layout, and all in use."""
    config = formats.configuration("2.x")
    config["text"] |= {"layers": 23}
    original = formats.ldm(config, "2.x")
    if layers == 23:
        original = {name: array for name, array in original.items() if ".resblocks.23." not in name}
    if not published:
        original = {name: array for name, array in original.items() if name not in PUBLISHED}
    save_file(original, tmp_path / "m.safetensors")
    model = load(tmp_path / "m.safetensors", prediction="epsilon")
    folder = load(formats.write_diffusers(tmp_path / "folder", config))
    assert model.config["text"]["layers"] == 23
    np.testing.assert_array_equal(model.empty_context, folder.empty_context)


def test_layers_of_other_text_encoders(expected, tmp_path):
    """What else was published with them tells whether the last one is in use."""
    original = formats.ldm(formats.configuration("2.x"), "2.x")
    converted = {n: a for n, a in original.items() if ".resblocks.2." not in n and n not in PUBLISHED}
    for name, tensors in ("published", original), ("converted", converted):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        model = load(tmp_path / f"{name}.safetensors", prediction="epsilon")
        assert model.config["text"]["layers"] == 2
        np.testing.assert_array_equal(model.empty_context, expected["2.x"].empty_context)


def test_a_file_without_a_vae(family, original, folders, expected, tmp_path):
    """With another VAE, of whatever form, it is whole."""
    save_file({n: a for n, a in original.items() if not n.startswith(VAE)}, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="no tensors first_stage_model"):
        load(tmp_path / "m.safetensors", prediction="epsilon")
    save_file({n: a for n, a in original.items() if n.startswith(VAE)}, tmp_path / "vae.safetensors")
    torch.save(as_torch({n: a for n, a in original.items() if not n.startswith(VAE)}), tmp_path / "m.ckpt")
    for name in "m.safetensors", "m.ckpt":
        for vae in folders[family] / "vae", folders[family], tmp_path / "vae.safetensors":
            model = load(tmp_path / name, prediction="epsilon", vae=vae)
            assert model.fingerprint == expected[family].fingerprint
    assert_same(model, expected[family])


def test_a_folder_without_a_vae(expected, folders, tmp_path):
    folder = formats.write_diffusers(tmp_path / "model", formats.configuration("1.x"))
    (folder / "vae").rename(tmp_path / "vae")
    with pytest.raises(ModelError, match="vae/config.json: no such file"):
        load(folder)
    assert load(folder, vae=tmp_path / "vae").fingerprint == expected["1.x"].fingerprint
    (folder / "vae").mkdir()
    (folder / "vae/config.json").write_text("broken")  # is not looked at
    assert_same(load(folder, vae=folders["1.x"]), expected["1.x"])


def test_a_folder_without_a_tokenizer(family, expected, tmp_path):
    folder = formats.write_diffusers(tmp_path / "model", formats.configuration(family))
    (folder / "tokenizer").rename(tmp_path / "elsewhere")
    model = load(folder)
    assert_same(model, expected[family])
    with pytest.raises(ValueError, match="prompt 'a cat': .*folder `tokenizer`"):
        model.encode_prompt("a cat")


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


# ---- PyTorch checkpoints ----


def as_torch(arrays):
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def lightning(arrays):
    """As training programs leave it: the weights are one entry of many."""
    return {
        "epoch": 3,
        "global_step": 10**10,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": as_torch(arrays),
        "callbacks": {"x": {"best_model_score": torch.tensor(1.5), "best_model_path": ""}},
        "optimizer_states": [
            {"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": [{"betas": (0.9, 1)}]}
        ],
        "lr_schedulers": [None, True, 1.5, -70000],
    }


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])  # the content decides
@pytest.mark.parametrize("wrap", [as_torch, lightning])
def test_checkpoint(family, original, expected, tmp_path, wrap, name):
    torch.save(wrap(original), tmp_path / name)
    model = load(tmp_path / name, prediction="epsilon")
    assert model.fingerprint == expected[family].fingerprint
    assert_same(model, expected[family])


def test_safetensors_named_checkpoint(family, original, expected, tmp_path):
    save_file(original, tmp_path / "model.ckpt")
    assert load(tmp_path / "model.ckpt", prediction="epsilon").fingerprint == expected[family].fingerprint


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(original, family, expected, tmp_path, protocol):
    torch.save(as_torch(original), tmp_path / "model.ckpt", pickle_protocol=protocol)
    assert load(tmp_path / "model.ckpt", prediction="epsilon").fingerprint == expected[family].fingerprint


def test_views_and_transposed_tensors(original, family, expected, tmp_path):
    """Tensors that share a storage, lie in another order, or are parameters of a module."""
    state = as_torch(original)
    names = [name for name in state if name.startswith("model.diffusion_model.input_blocks")]
    together = torch.cat([state[name].flatten() for name in names])
    begin = 0
    for name in names:
        size, shape = state[name].numel(), state[name].shape
        state[name] = together[begin : begin + size].view(shape)
        begin += size
    for name in "model.diffusion_model.middle_block.0.in_layers.2.weight", "first_stage_model.decoder.conv_in.weight":
        state[name] = state[name].contiguous(memory_format=torch.channels_last)
    name = "model.diffusion_model.time_embed.0.weight"
    state[name] = torch.nn.Parameter(state[name].T.contiguous().T)
    torch.save(state, tmp_path / "model.ckpt")
    assert load(tmp_path / "model.ckpt", prediction="epsilon").fingerprint == expected[family].fingerprint


# ---- folders ----


def rewrite(folder, part, change):
    """Replaces a part's safetensors file by what `change(path without suffix, arrays, the file's stem)` writes."""
    stem = formats.STEMS[part]
    arrays = formats.component(formats.arrays(formats.configuration("1.x")), part)
    (folder / part / f"{stem}.safetensors").unlink()
    change(folder / part, arrays, stem)


def write_shards(folder, arrays, stem):
    weight_map = {}
    for i in range(2):
        shard = f"{stem}-{i + 1:05}-of-00002.safetensors"
        part = {name: arrays[name] for name in sorted(arrays)[i::2]}
        save_file(part, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_half(folder, arrays, stem):
    save_file({name: array.astype(np.float16) for name, array in arrays.items()}, folder / f"{stem}.fp16.safetensors")


def write_bin(folder, arrays, stem):
    torch.save(as_torch(arrays), folder / f"{'pytorch_model' if stem == 'model' else stem}.bin")


def write_bin_shards(folder, arrays, stem):
    stem = "pytorch_model" if stem == "model" else stem
    for i in range(2):
        torch.save(as_torch({name: arrays[name] for name in sorted(arrays)[i::2]}), folder / f"{stem}-{i}.bin")
    weight_map = {name: f"{stem}-{i % 2}.bin" for i, name in enumerate(sorted(arrays))}
    (folder / f"{stem}.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("write", [write_shards, write_half, write_bin, write_bin_shards])
def test_folders(expected, tmp_path, write):
    folder = formats.write_diffusers(tmp_path / "model", formats.configuration("1.x"))
    for part in formats.STEMS:
        rewrite(folder, part, write)
    model = load(folder)
    assert_same(model, expected["1.x"], ("", "a cat"))
    assert (model.fingerprint == expected["1.x"].fingerprint) == (write is not write_half)


# ---- prompts ----


def test_prompts_of_the_method(expected):
    model, steps = expected["1.x"], 2
    content, style = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), np.uint8)
    options = {"steps": steps, "schedule": "diffusers", "layers": (3, 4)}
    result = styleid.transfer(content, style, model, **told(prompt="a cat", **options))
    inverted = [styleid.invert(one, model, **told(prompt="a cat", **options)) for one in (content, style)]
    np.testing.assert_array_equal(result, styleid.inject_styles(*inverted))
    np.testing.assert_array_equal(result, styleid.inject_styles(*inverted, options=styleid.Text("a cat")))
    assert not np.array_equal(result, styleid.transfer(content, style, model, **told(**options)))
    assert not np.array_equal(result, styleid.inject_styles(*inverted, options=styleid.Text("")))
    np.testing.assert_array_equal(inverted[0].context, model.encode_prompt("a cat"))
    several = styleid.transfer(content, [style, style], model, **told(prompt="a cat", **options))
    assert not np.array_equal(several, styleid.transfer(content, [style, style], model, **told(**options)))


# ---- the names themselves, against diffusers ----


def test_names_are_those_of_diffusers(family):
    """Their program for the same conversion; four levels, the lowest without attention, as the real models have."""
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    config = formats.configuration(family)
    config["unet"] |= {"channels": [64] * 4, "heads": [1] * 4, "attention": [True, True, True, False]}
    config["vae"] |= {"channels": [32] * 4}
    config["text"] |= {"channels": 64, "layers": 23}  # the one that theirs drops has the number 23
    original = formats.ldm(config, family)
    theirs = as_torch(original)
    layers = {"layers_per_block": 2, "down_block_types": ["any"] * 4, "up_block_types": ["any"] * 4}
    parts = {
        "unet": single_file.convert_ldm_unet_checkpoint(dict(theirs), layers),
        "vae": single_file.convert_ldm_vae_checkpoint(dict(theirs), layers),
    }
    if family == "1.x":
        parts["text"] = single_file.convert_ldm_clip_checkpoint(dict(theirs))
    else:
        encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(hidden_size=64, num_attention_heads=1))
        parts["text"] = single_file.convert_open_clip_checkpoint(encoder, dict(theirs))
    stored = {name: Tensor("F32", array.shape, memoryview(array.tobytes())) for name, array in original.items()}
    found = convert(Path("file"), stored, {}, "epsilon")
    for part, tensors in parts.items():
        expected = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
        expected = {
            name: t for name, t in expected.items() if "position_ids" not in name and "projection.w" not in name
        }
        ours = getattr(found, part)
        assert ours.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_array_equal(ours[name].float32().squeeze(), tensor.numpy().squeeze(), err_msg=name)
