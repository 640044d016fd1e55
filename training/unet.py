"""Trains the UNet on the frozen autoencoder's latents: to denoise, and to draw with injected keys and values.

Every step's batch is three parts of equal size, at the same timesteps:

content  a crop, often with its colours changed and its grain smoothed away,
style    another crop, of the same picture or of any other,
result   what style injection should make of the two.

Content and style are denoised as they are. The result takes the style's keys and values and a mix of its own and the
content's queries, as in the method. There are two kinds of results, drawn at random:

same picture   content is a recoloured, smoothed copy of the result, and style is another crop of the result's picture:
               palette and texture have to come from the style.
two pictures   the result is the content with the style's palette, made by moving the colour distribution: palette has
               to come from a style that shows something else.

The result's noisy latent leans towards the content's, more so at high noise, as it does in sampling, while its target
is the clean result: the model learns to take the content's palette off where the style has another.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from training import checkpoint, log, method, networks, pictures, recolour, scores, sheets, workers
from training.attention import DECODER_LAYERS

# Small copies show a crop the palette of nearly the whole picture, as the method does; large ones show strokes.
SIDES = (400, 256, 160, 104)
# Latent crop, triples a process takes at each step, and how often. Larger crops are for attention among more tokens.
SHAPES = ((24, 3, 0.7), (32, 2, 0.2), (48, 1, 0.1))
SAME_PICTURE = 0.4
# The weight of the errors' local means: they are few numbers among many, but they are the palette.
COARSE_WEIGHT, COARSE_PIXELS = 3.0, 8
SCORED_TIMES = (1, 101, 301, 501, 701, 901, 981)
SHEET_LAYERS = tuple(range(6, 12))


@dataclass
class Settings:
    training: list[np.ndarray]
    held_out: list[np.ndarray]
    out: Path
    init: Path | None
    steps: int
    seed: int
    rate: float = 6e-4
    score_every_steps: int = 400


class Triples:
    """Draws (content, style, result) crops."""

    def __init__(self, training: list[np.ndarray]) -> None:
        self.scales = [[pictures.resized(pixels, side) for pixels in training] for side in SIDES]

    def draw(self, crop: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Three (3, crop, crop) pictures in [-1, 1]."""
        scale = self.scales[random.integers(len(self.scales))]
        one, other = scale[random.integers(len(scale))], scale[random.integers(len(scale))]
        if random.random() < SAME_PICTURE:
            result, style = self._cut(one, crop, random), self._cut(one, crop, random)
            return self._disguised(result, random), style, result
        content, style = self._cut(one, crop, random), self._cut(other, crop, random)
        return content, style, recolour.palette_moved(content, style, rounds=5, seed=int(random.integers(1 << 30)))

    @staticmethod
    def _cut(pixels: np.ndarray, crop: int, random: np.random.Generator) -> torch.Tensor:
        pixels = pictures.at_least(pixels, crop)
        top = random.integers(pixels.shape[0] - crop + 1)
        left = random.integers(pixels.shape[1] - crop + 1)
        cut = pixels[top : top + crop, left : left + crop]
        return pictures.to_tensor(cut[:, ::-1] if random.random() < 0.5 else cut)

    @staticmethod
    def _disguised(image: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        changed = recolour.jittered(image[None], random)
        shrunk = random.choice((1, 2, 4), p=(0.4, 0.35, 0.25))
        small = F.avg_pool2d(changed, int(shrunk))
        return F.interpolate(small, size=image.shape[1:], mode="bilinear")[0]


def draw_times(count: int, random: np.random.Generator) -> torch.Tensor:
    """Half uniform, half leaning to high noise, where the palette is decided."""
    u = random.random(count)
    u = np.where(random.random(count) < 0.5, u, np.sqrt(u))
    return torch.from_numpy(np.minimum((u * 1000).astype(np.int64), 999))


@torch.no_grad()
def latents_of(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    with networks.quick_arithmetic():
        latent = vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mode()
    return latent.float() * vae.config.scaling_factor


def step_loss(
    model: method.Denoiser, vae: AutoencoderKL, triples: Triples, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted losses of the plain and of the injected thirds."""
    size, count, _ = SHAPES[random.choice(len(SHAPES), p=[share for _, _, share in SHAPES])]
    drawn = [triples.draw(4 * size, random) for _ in range(count)]
    clean = latents_of(vae, torch.cat([torch.stack(part) for part in zip(*drawn)]))
    content, _, result = clean.chunk(3)
    times = draw_times(count, random)
    level = model.alpha[times].view(-1, 1, 1, 1)
    noise = torch.randn_like(clean)
    # Content and result share their noise, as they share the inverted latent in the method.
    noise = torch.cat([noise[: 2 * count], noise[:count]])
    if random.random() < 0.5:
        content = method.adain(content, result)
    lean = torch.from_numpy(random.random((count, 1, 1, 1))).float() * (2 * (1 - level).sqrt()).clamp_max(1)
    leaning = result + lean * (content - result)
    noisy = level.sqrt().repeat(3, 1, 1, 1) * torch.cat([clean[: 2 * count], leaning])
    noisy = noisy + (1 - level).sqrt().repeat(3, 1, 1, 1) * noise
    # v of the clean result, given the leaning latent: what takes the content's palette off in one step.
    velocity = level.sqrt().repeat(3, 1, 1, 1) * noise - (1 - level).sqrt().repeat(3, 1, 1, 1) * clean
    correction = lean * level / (1 - level).sqrt() * (content - result)
    target = torch.cat([velocity[: 2 * count], velocity[2 * count :] + correction])
    tap = model.tap
    tap.mode, tap.layers = "share", DECODER_LAYERS[0 if random.random() < 0.3 else 3 :]
    tap.gamma, tap.temperature = random.uniform(0.2, 1.0), random.uniform(1.0, 1.7)
    with networks.quick_arithmetic():
        output = model.velocity(noisy.contiguous(memory_format=torch.channels_last), times.repeat(3))
    tap.mode = "none"
    error = output.float() - target
    coarse = F.avg_pool2d(error, COARSE_PIXELS)
    losses = error.square().mean((1, 2, 3)) + COARSE_WEIGHT * coarse.square().mean((1, 2, 3))
    return losses[: 2 * count].mean(), losses[2 * count :].mean()


@torch.no_grad()
def denoising_losses(model: method.Denoiser, latents: torch.Tensor) -> dict[int, float]:
    """Mean squared error of the predicted noise by timestep, with the same noise at every call."""
    alpha = networks.noise_levels()
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    losses = {}
    for moment in SCORED_TIMES:
        noisy = alpha[moment].sqrt() * latents + (1 - alpha[moment]).sqrt() * noise
        errors = [(model(x[None], torch.tensor(moment)) - e).square().mean() for x, e in zip(noisy, noise)]
        losses[moment] = torch.stack(errors).mean().item()
    return losses


def sheet(model: method.Denoiser, vae: AutoencoderKL, contents: list, styles: list, target: Path) -> dict[str, float]:
    """A few quick transfers at the published defaults, to look at; returns their mean scores."""
    latents = method.encode(vae, contents), method.encode(vae, styles)
    with networks.quick_arithmetic():
        content, style = (method.invert(model, x, 10, SHEET_LAYERS) for x in latents)
        results = method.decode(vae, method.transfer(model, content, style, 10, SHEET_LAYERS).float())
    sheets.save(sheets.grid([contents, styles, results]), target)
    pairs = list(zip(contents, styles, results))
    return {
        "palette": round(float(np.mean([scores.palette(c, s, r) for c, s, r in pairs])), 3),
        "structure": round(float(np.mean([scores.structure(c, r) for c, _, r in pairs])), 3),
    }


def start(settings: Settings) -> method.Denoiser:
    if settings.init:
        unet, context = networks.grown_unet(settings.init), networks.load_context(settings.init)
    else:
        unet, context = networks.new_unet(), 0.1 * torch.randn(1, 1, networks.CONTEXT_WIDTH)
    return method.Denoiser(unet, context).to(memory_format=torch.channels_last)


def save_model(model: method.Denoiser, out: Path) -> None:
    networks.save_network(model.unet, out / "unet")
    networks.save_frame(out, model.context)


def train(settings: Settings) -> None:
    """Trains, and leaves the averaged UNet and the context in the model folder. Runs in every worker process."""
    work = settings.out / "work"
    vae = networks.load_vae(settings.out).to(memory_format=torch.channels_last)
    triples = Triples(settings.training)
    held_out = [pictures.centre_square(pixels, 256) for pixels in settings.held_out]
    model = start(settings)
    run = checkpoint.Run(model, work / "unet.ckpt", settings.seed, settings.rate, decay=0.997)
    totals, began = np.zeros(2), time.monotonic() - run.seconds
    while run.step < settings.steps:
        random = run.begin_step(settings.steps, warmup=40)
        plain, injected = step_loss(model, vae, triples, random)
        run.finish_step(2 * plain + injected, clip=2.0)
        run.seconds = time.monotonic() - began
        totals += plain.item(), injected.item()
        if workers.rank() == 0 and (run.step % settings.score_every_steps == 0 or run.step == settings.steps):
            run.average.swap(model)
            report(run, model, vae, held_out, work, totals / settings.score_every_steps)
            # Every scored state is usable: the folder always holds the latest.
            save_model(model, settings.out)
            run.average.swap(model)
            totals[:] = 0
        run.save_now_and_then()
    if workers.rank() == 0:
        run.save()
    workers.wait()


def report(run: checkpoint.Run, model: method.Denoiser, vae: AutoencoderKL, held_out: list, work: Path, losses) -> None:
    """A row of losses and scores, the plot and the sample sheet."""
    half = len(held_out) // 2
    contents = held_out[:half][::4]
    styles = held_out[half:][::4][: len(contents)]
    row = {"step": run.step, "seconds": round(run.seconds)}
    row |= dict(zip(("plain", "injected"), losses.round(4).tolist()))
    with networks.quick_arithmetic():
        by_time = denoising_losses(model, method.encode(vae, held_out[::5]))
    row |= {f"t{moment}": round(value, 4) for moment, value in by_time.items()}
    row |= sheet(model, vae, contents, styles, work / f"unet-sheet-{run.step:05d}.jpg")
    print("unet", row, flush=True)
    log.append_row(work / "unet.csv", row)
    log.plot(work / "unet.csv", ["plain", "injected", "t501", "palette", "structure"], work / "unet.png")
