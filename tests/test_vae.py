"""VAEs that take the place of a model's own, and the VAE in tiles."""

import json
import re
import shutil
from functools import cache

import formats
import numpy as np
import oracle
import pytest
import torch
from oracle import Networks, noise, relative_error, smooth_image
from safetensors.numpy import load_file, save_file

import styleid
from styleid import ModelError, _core
from styleid.cli.main import main
from styleid.models.hub import needed_of_vae

pytestmark = pytest.mark.torch

FAMILY = "1.x"


def load(path, **options):
    return styleid.load_model(path, dtype="float32", threads=1, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return formats.write_diffusers(tmp_path_factory.mktemp("model") / "model", formats.configuration(FAMILY))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """TAESD as diffusers writes it."""
    path = tmp_path_factory.mktemp("tiny") / "taesd"
    oracle.tiny_vae(8, encoder=(1, 2, 3, 1), decoder=(3, 1, 2, 1)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def expected(folder, tiny):
    return load(folder, vae=tiny)


def assert_same(model, other):
    assert model.fingerprint == other.fingerprint
    image = smooth_image(32, 32, seed=1)
    np.testing.assert_array_equal(model.encode(image), other.encode(image))
    np.testing.assert_array_equal(model.decode(noise(1, 4, 4, 4)), other.decode(noise(1, 4, 4, 4)))


# ---- AutoencoderTiny ----


def test_against_diffusers(expected):
    vae, image = oracle.tiny_vae(8, encoder=(1, 2, 3, 1), decoder=(3, 1, 2, 1)), smooth_image(32, 48, seed=1)
    planes = torch.from_numpy(image).float().permute(2, 0, 1)[None] / 127.5 - 1
    assert relative_error(expected.encode(image), vae.encode(planes).latents) <= oracle.EVALUATION_TOLERANCE
    z = noise(1, 4, 4, 6)
    levels = 255 * ((vae.decode(torch.from_numpy(z)).sample[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
    assert np.abs(expected.decode(z) - levels).max() <= 0.51


def test_as_the_models_own(folder, tiny, expected, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model/vae")
    shutil.copytree(tiny, tmp_path / "model/vae")
    assert_same(load(tmp_path / "model"), expected)
    assert_same(load(folder, vae=tmp_path / "model"), expected)  # whose folder vae/ it is
    assert expected.vae_factor == 8 and expected.image_size == 512


def write_taesd(tensors, folder, suffix):
    """As its author publishes it: one file a half, by the places in a list that begins, in the decoder, with a bound."""
    folder.mkdir(exist_ok=True)
    for half in "encoder", "decoder":
        found = {}
        for name, array in tensors.items():
            if match := re.fullmatch(rf"{half}\.layers\.(\d+)\.(.+)", name):
                found[f"{int(match[1]) + (half == 'decoder')}.{match[2]}"] = array
        if suffix == "pth":
            torch.save({name: torch.from_numpy(array) for name, array in found.items()}, folder / f"taesd_{half}.pth")
        else:
            save_file(found, folder / f"taesd_{half}.safetensors")
    return folder


@pytest.fixture
def tensors(tiny):
    return load_file(tiny / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_taesds_own_files(folder, tensors, expected, tmp_path, suffix):
    for path in (write_taesd(tensors, tmp_path / "a", suffix), *(tmp_path / "a").iterdir()):
        assert_same(load(folder, vae=path), expected)


def test_a_single_file_by_diffusers_names(folder, tiny, expected):
    assert_same(load(folder, vae=tiny / "diffusion_pytorch_model.safetensors"), expected)


def test_half_of_a_taesd(folder, tensors, tmp_path):
    write_taesd(tensors, tmp_path, "safetensors")
    (tmp_path / "taesd_encoder.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"taesd_decoder\.safetensors: .* needs its encoder .* taesd_encoder\.safetensors"
    ):
        load(folder, vae=tmp_path / "taesd_decoder.safetensors")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"act_fn": "silu"}, "act_fn is silu; expected 'relu'"),
        ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor is 4"),
        ({"decoder_block_out_channels": [8, 8, 8, 4]}, "decoder_block_out_channels is .* one width"),
        ({"num_encoder_blocks": [1, 2]}, "num_encoder_blocks is .* 4 items"),
        ({"num_encoder_blocks": [1, 2, 3, 99]}, "encoder_blocks is 99, expected 1 to 8"),
        ({"num_encoder_blocks": [1, 2, 2, 1]}, "weight vae.encoder.layers"),
        ({"latent_channels": 16}, "the VAE's latents have 16 channels, but the UNet takes 4"),
    ],
)
def test_other_configurations(folder, tiny, tmp_path, changes, message):
    shutil.copytree(tiny, tmp_path / "vae")
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "vae/config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=message) as error:
        load(folder, vae=tmp_path / "vae")
    assert str(tmp_path) in str(error.value)


def test_other_numbers_of_levels(folder, tensors, tmp_path):
    for place, levels in ((1, "4 and 0"), (10, "4 and 2")):
        short = {n: a for n, a in tensors.items() if n[:7] == "encoder" or int(n.split(".")[2]) < place}
        save_file(short, tmp_path / "vae.safetensors")
        with pytest.raises(ModelError, match=rf"vae\.safetensors: a TAESD with {levels} levels"):
            load(folder, vae=tmp_path / "vae.safetensors")


def test_command_line(folder, tiny, expected, tmp_path, capsys):
    for seed in (1, 2):
        styleid.save_image(tmp_path / f"{seed}.png", smooth_image(32, 32, seed))
    paths = [str(tmp_path / name) for name in ("1.png", "2.png", "out.png")]
    run = ["transfer", *paths[:2], "-o", paths[2], "--model", str(folder), "--threads", "1", "--dtype", "float32"]
    run += ["--steps", "2", "--size", "32", "--quiet", "--vae", str(tiny), "--tiling", "off"]
    assert main(run) == 0
    wanted = styleid.transfer(smooth_image(32, 32, 1), smooth_image(32, 32, 2), expected, steps=2)
    np.testing.assert_array_equal(styleid.load_image(paths[2], None), wanted)
    assert main([*run, "--ema"]) == 2
    assert "ema: only single files" in capsys.readouterr().err


# ---- AutoencoderKL ----


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The VAE of another model, by its original names, and what a model with it computes."""
    config = formats.configuration(FAMILY)
    config["vae"] |= {"channels": [32, 64, 64]}
    root = formats.write_diffusers(tmp_path_factory.mktemp("other") / "model", config)
    return root, formats.ldm(config, FAMILY)


@pytest.fixture(scope="module")
def replaced(folder, other):
    model = load(folder, vae=other[0])
    assert_same(model, load(folder, vae=other[0] / "vae"))
    assert not np.array_equal(model.decode(noise(1, 4, 4, 4))[:8, :8], load(folder).decode(noise(1, 4, 4, 4))[:8, :8])
    assert model.vae_factor == 4
    return model


def test_the_models_own_put_back(folder):
    assert_same(load(folder, vae=folder / "vae"), load(folder))


@pytest.mark.parametrize("form", ["alone", "with its prefix", "whole model"])
def test_original_names(folder, other, replaced, tmp_path, form):
    prefix = "first_stage_model."
    tensors = {name: array for name, array in other[1].items() if form == "whole model" or name.startswith(prefix)}
    if form == "alone":
        tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
        tensors |= {"loss.logvar": np.zeros(1, np.float32), "model_ema.decay": np.zeros(1, np.float32)}
    save_file(tensors, tmp_path / "vae.safetensors")
    assert_same(load(folder, vae=tmp_path / "vae.safetensors"), replaced)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: path.mkdir(), "neither config.json, nor vae/config.json, nor taesd_encoder"),
        (lambda path: save_file({"a": np.zeros(1, np.float32)}, path), "not a VAE in a known naming"),
        (lambda path: save_file({}, path), "not a VAE in a known naming"),
        (lambda path: save_file({"encoder.conv_in.weight": np.zeros(1, np.float32)}, path), "is missing"),
        (lambda path: save_file({"0.weight": np.zeros(1, np.float32)}, path), "the encoder of a TAESD"),
        (lambda path: save_file({"encoder.layers.0.weight": np.zeros(1, np.float32)}, path), "of a TAESD are missing"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "vae"),
        (lambda path: None, "no such file"),
    ],
)
def test_what_is_no_vae(folder, tmp_path, make, message):
    make(tmp_path / "vae")
    with pytest.raises(ModelError, match=message):
        load(folder, vae=tmp_path / "vae")


def test_diffusers_names_without_a_configuration(folder):
    with pytest.raises(ModelError, match="needs its config.json; give the folder"):
        load(folder, vae=folder / "vae/diffusion_pytorch_model.safetensors")


def test_bad_arguments(folder):
    with pytest.raises(TypeError, match="^vae: expected None or a path, got int"):
        load(folder, vae=3)
    with pytest.raises(ValueError, match="^tiling: expected 'auto', True or False, got 'on'"):
        load(folder, tiling="on")


def test_what_is_needed_of_the_hub():
    files = ["README.md", "config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors", "a.ckpt"]
    assert list(needed_of_vae(files)) == ["config.json", "diffusion_pytorch_model.safetensors"]
    with pytest.raises(ValueError, match="there is no config.json"):
        list(needed_of_vae(["unet/config.json"]))


# ---- tiles ----

CUTS = {90: (53, [0, 37]), 100: (58, [0, 42]), 200: (78, [0, 61, 122])}  # length: size and starts, latent pixels


@cache
def engines(kind):
    """The same VAE of random weights in tiles and whole."""
    vae = oracle.tiny_vae(8, encoder=(1, 1), decoder=(1, 1)) if kind == "tiny" else oracle.vae((8, 8), layers=1)
    networks = Networks(oracle.unet((16,), 2, (0,), layers=1), vae)
    return [networks.engine(tiling=tiling) for tiling in ("on", "off")]


def shares(length, scale):
    """(tiles, length * scale): w_i(p) / sum of all w(p), with w = d - 4 between 0 and 8, d to an end that is no border."""
    size, starts = CUTS.get(length, (length, [0]))
    pixel = (np.arange(length * scale) + 0.5) / scale
    weights = []
    for start in starts:
        inside = (pixel > start) & (pixel < start + size)
        before = pixel - start if start else np.inf
        after = start + size - pixel if start + size < length else np.inf
        weights.append(inside * np.clip(np.minimum(before, after) - 4, 0, 8))
    return np.array(weights) / np.sum(weights, 0)


def blended(run, x, height, width, scale_in, scale_out):
    """The equation on the results of a network that knows nothing of tiles."""
    total = 0
    for i, row in enumerate(shares(height, scale_out)):
        for j, column in enumerate(shares(width, scale_out)):
            (h, tops), (w, lefts) = (CUTS.get(length, (length, [0])) for length in (height, width))
            at = [slice(start * scale_in, (start + size) * scale_in) for start, size in ((tops[i], h), (lefts[j], w))]
            tile = run(np.ascontiguousarray(x[(..., *at)]))
            whole = np.zeros((*tile.shape[:2], height * scale_out, width * scale_out))
            whole[..., tops[i] * scale_out :, lefts[j] * scale_out :][..., : tile.shape[2], : tile.shape[3]] = tile
            total = total + row[:, None] * column * whole
    return total


@pytest.mark.parametrize("height, width", [(90, 100), (20, 200), (100, 80)])
def test_tiles_by_the_equation(height, width):
    tiled, whole = engines("kl")
    z = noise(2, 4, height, width)
    expected = blended(whole.decode_float, z, height, width, 1, 2)
    assert relative_error(tiled.decode_float(z), expected) <= oracle.EVALUATION_TOLERANCE
    image = smooth_image(2 * height, 2 * width, seed=1)
    expected = blended(
        lambda x: whole.encode(x.transpose(0, 2, 3, 1)), image.transpose(2, 0, 1)[None], height, width, 2, 1
    )
    assert relative_error(tiled.encode(image[None]), expected) <= oracle.EVALUATION_TOLERANCE


@pytest.mark.parametrize("height, width", [(90, 100), (20, 200)])
def test_tiles_of_a_network_without_norms(height, width):
    """Its pixels depend on near ones, which tiles have: nothing but the zeros around a tile is left, almost unused."""
    tiled, whole = (engine.decode_float(noise(1, 4, height, width)) for engine in engines("tiny"))
    assert relative_error(tiled, whole) <= 1e-3


def test_small_images_are_whole():
    tiled, whole = (engine.decode_float(noise(1, 4, 80, 80)) for engine in engines("kl"))
    np.testing.assert_array_equal(tiled, whole)


def test_no_seams_in_the_default_models_images():
    """Where tiles meet, what they change does not jump; and it is a few levels of 255 everywhere."""
    tiled, whole = (styleid.load_model(threads=1, dtype="float32", tiling=tiling) for tiling in (True, False))
    y, x = np.mgrid[0:128, 0:384] / 384
    image = np.uint8(255 * np.stack([x, 0.5 + 0.3 * np.sin(3 * x + 2 * y), 1 - x], -1))
    latent = whole.encode(image)
    ours, expected = (model.decode(latent).astype(int) for model in (tiled, whole))
    assert not np.array_equal(ours, expected)
    assert np.abs(ours - expected).mean() <= 2 and np.abs(ours - expected).max() <= 16
    by_column = (ours - expected).mean((0, 2))[150:234]  # the tiles share 160 to 223
    assert np.ptp(by_column) > 1 and np.abs(np.diff(by_column)).max() <= 0.5
    assert relative_error(tiled.encode(image), latent) <= 0.05


def test_scratch_is_bounded():
    tiled, whole = engines("kl")
    assert tiled.vae_scratch(1024, 2048) < 1.1 * whole.vae_scratch(160, 160)
    assert whole.vae_scratch(1024, 2048) > 7 * whole.vae_scratch(512, 512)


def test_auto_is_exact_up_to_a_size():
    auto = Networks(oracle.unet((16,), 2, (0,), layers=1), oracle.vae((8, 8), layers=1)).engine()
    tiled, whole = engines("kl")
    for side, expected in ((768, whole), (770, tiled)):
        assert auto.vae_scratch(side, side) == expected.vae_scratch(side, side)


def test_models_pass_it_on(folder, tmp_path):
    image, caches = smooth_image(176, 16, seed=1), set()
    models = {tiling: load(folder, tiling=tiling) for tiling in (True, False, "auto")}
    assert [model.tiling for model in models.values()] == ["on", "off", "auto"]
    np.testing.assert_array_equal(models["auto"].encode(image), models[False].encode(image))
    assert not np.array_equal(models[True].encode(image), models[False].encode(image))
    for model in models.values():  # a cache does not mix them up
        styleid.invert(
            smooth_image(32, 32, seed=1), model, steps=2, keep="none", options=styleid.Storage(cache=tmp_path)
        )
        caches |= set(tmp_path.iterdir())
    assert len(caches) == 3


# ---- alone, and previews ----


def test_a_vae_alone_is_the_models(folder, tiny, expected):
    image, z = smooth_image(32, 32, seed=1), noise(1, 4, 4, 4)
    for source, model in ((tiny, expected), (folder, load(folder)), (folder / "vae", load(folder))):
        vae = styleid.load_vae(source, dtype="float32", threads=1)
        assert not isinstance(vae, styleid.Model) and isinstance(model, styleid.VAE)
        assert vae.vae_factor == model.vae_factor and vae.memory < model.memory
        np.testing.assert_array_equal(vae.encode(image), model.encode(image))
        np.testing.assert_array_equal(vae.decode(z), model.decode(z))


def test_a_vae_alone_is_no_model(tiny, folder):
    vae = styleid.load_vae(tiny, threads=1)
    content = styleid.invert(smooth_image(32, 32, seed=1), load(folder), steps=2)
    latent, context = content.latent, content.context
    for call in (
        lambda: vae.engine.predict_noise(latent, 1, context),
        lambda: vae.engine.scratch(1, 8, 8),
        lambda: _core.schedule(vae.engine, "paper", 5),
    ):
        with pytest.raises(ValueError, match="^model: expected one with a UNet, got a VAE alone"):
            call()
    with pytest.raises(TypeError, match="^model: expected what styleid.load_model returns, got VAE"):
        styleid.transfer(smooth_image(32, 32, seed=1), smooth_image(32, 32, seed=2), vae)
    with pytest.raises(ModelError, match="nowhere"):
        styleid.load_vae("nowhere")
    with pytest.raises(TypeError, match="^source: expected a path, got int"):
        styleid.load_vae(1)


@pytest.mark.parametrize("strength", [1, 0.5])
@pytest.mark.parametrize("schedule", ["paper", "diffusers", "corrected"])
def test_previews_are_what_each_evaluation_predicts(folder, schedule, strength):
    """x0 = (z - sqrt(1 - a) e) / sqrt(a), with e from the network itself."""
    model, steps = load(folder), 4
    content = styleid.invert(smooth_image(20, 32, seed=1), model, steps=steps, schedule=schedule)
    seen, shown, slots = [], [], _core.schedule(model.engine, schedule, steps)["sampling"]
    preview = styleid.Preview(lambda *call: shown.append(call), content)

    def look(step, steps, latents):
        seen.append(latents.copy())
        preview(step, steps, latents)

    plain = styleid.inject_styles(content, content, inject=False, options=styleid.Start(strength=strength))
    watched = styleid.inject_styles(
        content, content, inject=False, options=[styleid.Start(strength=strength), styleid.Hooks(on_step=look)]
    )
    np.testing.assert_array_equal(watched, plain)
    slots = slots[len(slots) - len(shown) :]
    assert 0 < len(shown) <= steps * strength
    assert [(step, of) for step, of, _ in shown] == [(i + 1, len(slots)) for i in range(len(slots))]
    for z, slot, (_, _, image) in zip(seen, slots, shown, strict=False):
        t = content.timesteps[slot]
        e = model.predict_noise(z, t, content.context)
        x0 = (z - (1 - oracle.ALPHAS[t]) ** 0.5 * e) / oracle.ALPHAS[t] ** 0.5
        assert image.shape == (20, 32, 3)
        assert np.abs(image.astype(int) - model.decode(x0)[:20]).max() <= 1


def test_previews_now_and_then_by_another_vae(folder, tiny):
    model, steps = load(folder), 6
    content, shown = styleid.invert(smooth_image(32, 32, seed=1), model, steps=steps, schedule="corrected"), []
    vae = styleid.load_vae(tiny, dtype="float32", threads=1)
    preview = styleid.Preview(lambda step, steps, image: shown.append((step, image)), content, vae=vae, every=4)
    styleid.inject_styles(content, content, options=styleid.Hooks(on_step=preview))
    assert [step for step, _ in shown] == [4, 6]


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"show": None}, TypeError, "show: expected a function"),
        ({"content": 1}, TypeError, "content: expected an Inversion, got int"),
        ({"every": 0}, ValueError, "every: expected a whole number from 1 on, got 0"),
    ],
)
def test_bad_previews(folder, change, error, message):
    content = styleid.invert(smooth_image(32, 32, seed=1), load(folder), steps=2, keep="none")
    with pytest.raises(error, match=f"^{message}"):
        styleid.Preview(**({"show": print, "content": content} | change))
