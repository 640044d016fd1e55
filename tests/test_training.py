"""The training program, on a handful of made-up pictures: a smoke run of every stage, and what each rests on."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the training program needs PyTorch")
pytest.importorskip("diffusers", reason="the training program needs diffusers")

from training import checkpoint, gaussian, linear, method, networks, pictures, recolour, rollout, scores, triples, unet

ROOT = Path(__file__).resolve().parents[1]


def painted(seed: int, height: int = 130, width: int = 150) -> np.ndarray:
    """Smooth random colours with some grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC)).astype(int)
    return np.clip(smooth + random.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    for seed in range(4):
        Image.fromarray(painted(seed)).save(path / f"{seed}.png")
    Image.fromarray(painted(9)).convert("L").save(path / "grey.png")
    Image.fromarray(painted(9, 40, 50)).save(path / "tiny.png")
    Image.fromarray(np.full((200, 200, 3), 70, np.uint8)).save(path / "flat.png")
    (path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (path / "notes.txt").write_text("not a picture")
    return path


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    path = tmp_path_factory.mktemp("held-out")
    for seed in (11, 12):
        Image.fromarray(painted(seed)).save(path / f"{seed}.png")
    return path


def run(stage: str, folder: Path, held_out: Path, out: Path, steps: int) -> str:
    command = [sys.executable, "-m", "training", stage, "--pictures", folder, "--held-out", held_out, "--out", out]
    command += ["--steps", steps, "--workers", 2]
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(folder, held_out, tmp_path_factory):
    """A model folder after a few steps of every stage, and what the stages said."""
    out = tmp_path_factory.mktemp("model")
    stages = {"linear": 30, "decoder": 2, "unet": 2}
    said = {stage: run(stage, folder, held_out, out, steps) for stage, steps in stages.items()}
    return out, said


def test_unusable_pictures_are_skipped_with_a_message(folder, capsys):
    assert sorted(pictures.read_folder(folder)) == ["0.png", "1.png", "2.png", "3.png", "grey.png"]
    said = capsys.readouterr().out
    assert "skipped broken.jpg: cannot be read" in said
    assert "skipped tiny.png: is 50x40, smaller than 96 pixels" in said
    assert "skipped flat.png: is a single flat colour" in said
    assert "notes.txt" not in said


def test_a_truncated_picture_is_skipped(tmp_path):
    Image.fromarray(painted(1)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    assert list(pictures.read_folder(tmp_path)) == ["whole.jpg"]


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(SystemExit, match=str(tmp_path)):
        pictures.read_folder(tmp_path)


def test_every_stage_runs_and_diffusers_loads_the_result(trained):
    out, said = trained
    assert "skipped broken.jpg" in said["linear"]
    vae, unet = networks.load_vae(out), networks.load_unet(out)
    assert networks.load_context(out).shape == (1, 1, networks.CONTEXT_WIDTH)
    assert vae.config.latent_channels == unet.config.in_channels == networks.LATENT_CHANNELS
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and "work" not in path.parts)
    assert size < 40e6
    assert not list(out.rglob("*.part"))
    for stage in ("decoder", "unet"):
        with (out / "work" / f"{stage}.csv").open() as file:
            assert [int(row["step"]) for row in csv.DictReader(file)] == [2]
        assert (out / "work" / f"{stage}.png").exists()


def test_an_interrupted_stage_goes_on(trained, folder, held_out):
    out, _ = trained
    assert "resumed unet.ckpt at step 2" in run("unet", folder, held_out, out, 3)
    assert torch.load(out / "work" / "unet.ckpt", weights_only=True)["step"] == 3


def test_the_deep_autoencoder_starts_as_the_linear_coder():
    torch.manual_seed(0)
    coder = linear.LinearCoder(networks.LATENT_CHANNELS)
    image = pictures.to_tensor(painted(3, 64, 64))[None]
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
        tap.mode, tap.content, tap.style = "share", kept[0][1], {}
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

        def forward(self, latent, time):
            return 0.3 * latent

    latent = torch.randn(1, 4, 8, 8)
    inverted = method.invert(Shrink(), latent, method.timesteps(50))
    back = method.sample(Shrink(), inverted.latent, 50)
    assert torch.nn.functional.cosine_similarity(latent.flatten(), back.flatten(), dim=0) > 0.999


def test_a_rollout_that_meets_every_target_ends_at_its_result():
    clean = torch.randn(6, networks.LATENT_CHANNELS, 8, 8)
    model = method.Denoiser(networks.new_unet(), torch.randn(1, 1, networks.CONTEXT_WIDTH))
    content, style, result = clean.chunk(3)
    under_way = rollout.Rollout(model, content, style, result, np.random.default_rng(0))

    def perfect(batch, times):
        level = model.alpha[times].view(-1, 1, 1, 1)
        return (level.sqrt() * batch - result.repeat(3, 1, 1, 1)) / (1 - level).sqrt()

    model.velocity = perfect
    for left in reversed(range(rollout.STEPS)):
        noisy, times = torch.randn_like(content), torch.tensor([501, 3])
        plain, error, drawn = under_way.step(model, noisy, times)
        torch.testing.assert_close(plain, perfect(torch.cat([noisy] * 3), times.repeat(3))[:2])
        torch.testing.assert_close(error, torch.zeros_like(error), rtol=0, atol=1e-4)
        torch.testing.assert_close(drawn, result, rtol=0, atol=1e-4)
        assert under_way.done == (left == 0)
    level = model.alpha[0]
    assert (under_way.latent - level.sqrt() * result).abs().max() < 5 * (1 - level).sqrt()


def test_the_distance_of_colours_knows_no_places_but_sees_grey():
    latents = torch.randn(2, networks.LATENT_CHANNELS, 6, 8)
    assert unet.colour_distance(latents, latents.flip(2, 3)) < 1e-10
    assert 0.1 < unet.colour_distance(latents, 0 * latents) < 0.5  # means of four have a quarter of the variance
    moved = latents + torch.arange(networks.LATENT_CHANNELS).view(1, -1, 1, 1)
    assert unet.colour_distance(latents, moved) > 1


def test_a_picture_redrawn_from_itself_is_itself_and_one_of_another_has_its_colours_only():
    image = torch.rand(3, 32, 32) * 2 - 1
    torch.testing.assert_close(triples.redrawn(image, image), image)
    grey = torch.full((3, 32, 32), 0.25)
    torch.testing.assert_close(triples.redrawn(image, grey), grey)


def test_moving_a_palette_brings_it_closer_and_keeps_the_layout():
    content, style = painted(1), painted(2)
    moved = pictures.to_pixels(recolour.palette_moved(pictures.to_tensor(content), pictures.to_tensor(style)))
    assert scores.palette(content, style, moved) < 0.8
    assert scores.structure(content, moved) > 0.5


def test_scores_of_equal_and_of_disjoint_pictures():
    one, other = painted(1), painted(2)
    assert scores.palette(one, other, one) == pytest.approx(1)
    assert scores.palette(one, other, other) == pytest.approx(0)
    assert scores.structure(one, one) == pytest.approx(1)
    image = pictures.to_tensor(one)[None] / 2 + 0.5
    assert scores.ssim(image, image).item() == pytest.approx(1)
    assert scores.psnr(image, image + 0.1).item() == pytest.approx(20, abs=1e-3)


def test_structure_ignores_a_change_of_brightness():
    dark = (painted(1) // 2).astype(np.uint8)
    assert scores.structure(dark, dark + 60) == pytest.approx(1)


def test_gaussian_loss_is_what_the_best_linear_estimate_leaves():
    torch.manual_seed(0)
    latents = 1.7 * torch.randn(4, 3, 64, 64) + 0.4
    alpha = torch.tensor(0.3)
    noise = torch.randn_like(latents)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    mean, variance = gaussian.fitted(latents)
    estimate = (1 - alpha).sqrt() * (noisy - alpha.sqrt() * mean) / (alpha * variance + 1 - alpha)
    assert gaussian.loss(latents, alpha) == pytest.approx((estimate - noise).square().mean().item(), rel=0.02)


def test_the_learning_rate_rises_stays_and_falls():
    rates = [checkpoint.rate_at(step, 1000, 1.0, warmup=100) for step in (0, 99, 500, 800, 999)]
    assert rates[0] == pytest.approx(0.01) and rates[1] == rates[2] == pytest.approx(1)
    assert rates[2] > rates[3] > rates[4] > 0
