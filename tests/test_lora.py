"""LoRA files in all their namings: the merged model is the one whose weights NumPy changed."""

import formats
import numpy as np
import pytest
import torch
from conftest import configuration, random_image
from safetensors.numpy import save_file

import styleid
from styleid import ModelError
from styleid.cli.main import main
from styleid.models.weights import engine_weights, read_component

pytestmark = pytest.mark.torch

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0"
FEED = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
PROJECTION = "down_blocks.0.attentions.0.proj_in"  # a 1x1 convolution in 1.x
CONVOLUTION = "down_blocks.1.resnets.0.conv1"
TEXT = "encoder.layers.1.self_attn.v_proj"
RANK, ALPHA = 3, 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return formats.write_diffusers(tmp_path_factory.mktemp("lora") / "model", formats.configuration("1.x"))


@pytest.fixture(scope="module")
def stored(folder):
    """{engine's name: array}"""
    return formats.arrays(formats.configuration("1.x"))


def pair(weight, seed):
    """Random (down, up) for a layer of this weight."""
    random = np.random.default_rng(seed)
    outputs, *inputs = weight.shape
    ones = [1] * (weight.ndim - 2)
    return random.standard_normal((RANK, *inputs), np.float32), random.standard_normal(
        (outputs, RANK, *ones), np.float32
    )


def changed(weight, down, up, scale):
    """Each output's change is a sum over the rank, as two layers one after the other compute it."""
    return weight + scale * np.einsum("or,ri...->oi...", up.reshape(len(up), RANK), down)


def check(folder, stored, loras, expected, tmp_path):
    """The merged model computes what a folder with the expected weights does."""
    other = formats.write_diffusers(tmp_path / "expected", formats.configuration("1.x"))
    for part, stem in formats.STEMS.items():
        arrays = formats.component(stored | expected, part)
        (other / part / f"{stem}.safetensors").unlink()
        save_file(
            {name: array.astype(np.float32) for name, array in arrays.items()}, other / part / f"{stem}.safetensors"
        )
    merged, reference, plain = (
        styleid.load_model(path, dtype="float32", threads=1, loras=changes)
        for path, changes in ((folder, loras), (other, ()), (folder, ()))
    )
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    context = merged.encode_prompt("a cat")
    np.testing.assert_allclose(context, reference.encode_prompt("a cat"), rtol=1e-4, atol=1e-4)
    result = merged.predict_noise(latents, 300, context)
    np.testing.assert_allclose(result, reference.predict_noise(latents, 300, context), rtol=1e-3, atol=1e-3)
    assert not np.allclose(result, plain.predict_noise(latents, 300, plain.encode_prompt("a cat")), atol=0.01)
    assert merged.fingerprint != plain.fingerprint


def kohya(layer, down, up):
    prefix = "lora_te_text_model_" if layer.startswith("encoder.") else "lora_unet_"
    name = prefix + layer.replace(".", "_")
    return {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": np.array(ALPHA, np.float32),
    }


def peft(layer, down, up):
    prefix = "text_encoder.text_model." if layer.startswith("encoder.") else "unet."
    return {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}


def old_diffusers(layer, down, up):
    if layer.startswith("encoder."):
        name = f"text_encoder.text_model.{layer}.lora_linear_layer"
    elif ".to_" in layer:
        block, _, part = layer.removesuffix(".0").rpartition(".")
        name = f"{block}.processor.{part}_lora"  # without `unet.`, as the first files were
    else:
        name = f"unet.{layer}.lora"
    return {f"{name}.down.weight": down, f"{name}.up.weight": up}


@pytest.mark.parametrize("naming, scale", [(kohya, ALPHA / RANK), (peft, 1), (old_diffusers, 1)])
def test_namings(folder, stored, tmp_path, naming, scale):
    file, expected = {}, {}
    for seed, layer in enumerate([LINEAR, OUT, FEED, PROJECTION, CONVOLUTION, TEXT]):
        name = f"{'text' if layer == TEXT else 'unet'}.{layer}.weight"
        down, up = pair(stored[name], seed)
        file |= naming(layer, down, up)
        expected[name] = changed(stored[name], down, up, 0.5 * scale)
    save_file(file, tmp_path / "lora.safetensors")
    check(folder, stored, [(tmp_path / "lora.safetensors", 0.5)], expected, tmp_path)


def test_several_and_in_a_checkpoint(folder, stored, tmp_path):
    name = f"unet.{LINEAR}.weight"
    (down, up), (down2, up2) = pair(stored[name], 1), pair(stored[name], 2)
    save_file(peft(LINEAR, down, up), tmp_path / "a.safetensors")
    torch.save({k: torch.from_numpy(v) for k, v in peft(LINEAR, down2, up2).items()}, tmp_path / "b.bin")
    expected = {name: changed(changed(stored[name], down, up, 0.7), down2, up2, -0.2)}
    loras = [(str(tmp_path / "a.safetensors"), 0.7), (tmp_path / "b.bin", -0.2)]
    check(folder, stored, loras, expected, tmp_path)


def test_matrices_for_a_1x1_convolution(folder, stored, tmp_path):
    name = f"unet.{PROJECTION}.weight"
    down, up = pair(stored[name][..., 0, 0], 1)
    save_file(peft(PROJECTION, down, up), tmp_path / "a.safetensors")
    expected = {name: changed(stored[name][..., 0, 0], down, up, 1)[..., None, None]}
    check(folder, stored, [(tmp_path / "a.safetensors", 1)], expected, tmp_path)


def test_half_precision(folder, stored, tmp_path):
    name = f"unet.{LINEAR}.weight"
    down, up = (array.astype(np.float16) for array in pair(stored[name], 1))
    save_file(peft(LINEAR, down, up), tmp_path / "a.safetensors")
    expected = {name: changed(stored[name], down.astype(np.float32), up.astype(np.float32), 1)}
    check(folder, stored, [(tmp_path / "a.safetensors", 1)], expected, tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: {}, "holds no tensors"),
        (lambda a: {"unet.x.hada_w1_a": a[0]}, "'unet.x.hada_w1_a' is no part of a LoRA, but of a LoHa"),
        (lambda a: {f"unet.{LINEAR}.dora_scale": a[0]} | peft(LINEAR, *a), "dora_scale"),
        (lambda a: peft("down_blocks.9.x", *a), "no layer 'unet.down_blocks.9.x'"),
        (lambda a: {f"unet.{LINEAR}.lora_A.weight": a[0]}, "up is missing"),
        (lambda a: {f"unet.{LINEAR}.alpha": a[0]}, "is missing"),
        (lambda a: peft(LINEAR, a[0].T.copy(), a[1]), "do not fit each other"),
        (lambda a: peft(LINEAR, a[0][:2], a[1]), "do not fit each other"),
        (lambda a: peft(LINEAR, a[0][:0], a[1][:, :0]), "do not fit each other"),
        (lambda a: peft(LINEAR, a[0], a[1][:0]), "do not fit each other"),
        (lambda a: peft(LINEAR, a[0][0], a[1]), "do not fit each other"),
        (lambda a: peft(LINEAR, np.float32(1), np.float32(1)), "do not fit each other"),
        (lambda a: peft(LINEAR, a[0][:, :5].copy(), a[1]), "its change has the shape"),
        (lambda a: peft(CONVOLUTION, *a), "its change has the shape"),
        (lambda a: peft(LINEAR, a[0] * np.inf, a[1]), "NaN or infinity"),
        (lambda a: peft(LINEAR, a[0].astype(np.int32), a[1]), "has the type I32"),
        (lambda a: peft(LINEAR, *a) | {f"unet.{LINEAR}.alpha": np.ones(2, np.float32)}, "expected one number"),
        (lambda a: peft(LINEAR, *a) | {f"unet.{LINEAR}.lora.down.weight": a[0]}, "two names"),
    ],
)
def test_unusable_files(folder, stored, tmp_path, change, message):
    with np.errstate(all="ignore"):
        file = change(pair(stored[f"unet.{LINEAR}.weight"], 0))
    save_file({name: np.ascontiguousarray(array) for name, array in file.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelError, match=f"lora.safetensors: .*{message}"):
        styleid.load_model(folder, loras=[(tmp_path / "lora.safetensors", 1)])


@pytest.mark.parametrize(
    "error, loras", [(TypeError, ["a"]), (TypeError, [("a",)]), (TypeError, [(1, 1)]), (TypeError, [("a", "1")]),
                     (ValueError, [("a", float("nan"))]), (TypeError, [("a", True)])]
)  # fmt: skip
def test_wrong_arguments(error, loras):
    with pytest.raises(error, match="^loras: "):
        styleid.load_model(loras=loras)


def test_no_file(folder, tmp_path):
    with pytest.raises(ModelError, match="nothing: no such file"):
        styleid.load_model(folder, loras=[(tmp_path / "nothing", 1)])


def test_text_encoders_changes_need_one(shared_folder, tmp_path):
    down, up = np.ones((1, 24), np.float32), np.ones((24, 1), np.float32)
    save_file(kohya(TEXT, down, up), tmp_path / "a.safetensors")
    assert configuration()["text"] is None
    with pytest.raises(ModelError, match="this model has no layer 'lora_te_text_model_encoder_layers_1"):
        styleid.load_model(shared_folder, loras=[(tmp_path / "a.safetensors", 1)])


def test_command_line(folder, stored, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(peft(LINEAR, *pair(stored[f"unet.{LINEAR}.weight"], 0)), "a:b.safetensors")
    styleid.save_image("p.png", random_image())
    command = ["invert", "p.png", "-o", "i", "--steps", "2", "--size", "16", "--threads", "1", "--model", str(folder)]
    prints = set()
    for loras in [], ["--lora", "a:b.safetensors"], ["--lora", "a:b.safetensors:0.5"]:
        assert main([*command, *loras]) == 0, capsys.readouterr()
        prints.add(styleid.Inversion.load("i").fingerprint)
    assert len(prints) == 3
    assert main([*command, "--lora", "nothing"]) == 2
    assert "nothing: no such file" in capsys.readouterr().err


def test_engine_names_are_those_of_the_folder(folder, stored):
    """What the other tests take for granted."""
    parts = [read_component(folder / part, stem) for part, stem in formats.STEMS.items()]
    assert engine_weights(*parts).keys() == stored.keys()
