"""Trains the UNet on the frozen autoencoder's latents: to denoise, and to draw with injected keys and values.

Every step's batch is three parts of equal size: crops with noise, to be denoised as they are; styles on the way of
their inversion; and results on their way from an inverted content to the picture that injection should make
(training/rollout.py). The results take the styles' keys and values and a mix of their own and the contents' queries.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from training import checkpoint, log, method, networks, pictures, rollout, scores, sheets, triples, workers

# Latent crop, triples a process takes at each step, and how often. Larger crops are for attention among more tokens.
SHAPES = ((24, 3, 0.5), (32, 2, 0.3), (48, 1, 0.2))
UNDER_WAY = 6
# The weight of the errors' local means: they are few numbers among many, but they are the palette.
COARSE_WEIGHT, COARSE_PIXELS = 12.0, 8
# The weight of the injected picture's colours as such. To the squares above, the mean of all that it might be is best: grey.
COLOURS_WEIGHT, DIRECTIONS = 10.0, 32
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


class Injection:
    """Transfers under way; at every step one of them, drawn at random, goes on."""

    def __init__(self, model: method.Denoiser, vae: AutoencoderKL, training: list[np.ndarray]) -> None:
        self.model, self.vae = model, vae
        self.triples = triples.Triples(training)
        self.rollouts: list[rollout.Rollout] = []

    def step_losses(self, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the plain part, of the injected one, and of the latter's colours."""
        if len(self.rollouts) < UNDER_WAY:
            self.rollouts.append(self._begun(random))
        chosen = self.rollouts[random.integers(len(self.rollouts))]
        count, _, size, _ = chosen.latent.shape
        clean = latents_of(self.vae, torch.stack([self.triples.any(4 * size, random) for _ in range(count)]))
        times = draw_times(count, random)
        level = self.model.alpha[times].view(-1, 1, 1, 1)
        noise = torch.randn_like(clean)
        with networks.quick_arithmetic():
            noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
            plain, injected, drawn = chosen.step(self.model, noisy, times)
        self.rollouts = [one for one in self.rollouts if not one.done]
        plain = plain - (level.sqrt() * noise - (1 - level).sqrt() * clean)
        return loss(plain), loss(injected), COLOURS_WEIGHT * colour_distance(drawn, chosen.result)

    def _begun(self, random: np.random.Generator) -> rollout.Rollout:
        size, count, _ = SHAPES[random.choice(len(SHAPES), p=[share for _, _, share in SHAPES])]
        drawn = [self.triples.draw(4 * size, random) for _ in range(count)]
        clean = latents_of(self.vae, torch.cat([torch.stack(part) for part in zip(*drawn)]))
        with networks.quick_arithmetic():
            return rollout.Rollout(self.model, *clean.chunk(3), random)


def loss(error: torch.Tensor) -> torch.Tensor:
    """Mean square of an error of v, and of its local means."""
    return error.square().mean() + COARSE_WEIGHT * F.avg_pool2d(error, COARSE_PIXELS).square().mean()


def colour_distance(drawn: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Sliced Wasserstein distance, squared, of the colours of latents (n, c, h, w), wherever in the pictures they are."""
    directions = F.normalize(torch.randn(DIRECTIONS, drawn.shape[1]), dim=1)

    def sorted_colours(latents: torch.Tensor) -> torch.Tensor:
        return torch.einsum("kc,nchw->nkhw", directions, F.avg_pool2d(latents, 2)).flatten(2).sort().values

    return (sorted_colours(drawn) - sorted_colours(wanted)).square().mean()


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
        content, style = (method.invert(model, x, method.timesteps(10), SHEET_LAYERS) for x in latents)
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
    held_out = [pictures.centre_square(pixels, 256) for pixels in settings.held_out]
    model = start(settings)
    injection = Injection(model, vae, settings.training)
    run = checkpoint.Run(model, work / "unet.ckpt", settings.seed, settings.rate, decay=0.997)
    totals, began = np.zeros(3), time.monotonic() - run.seconds
    while run.step < settings.steps:
        random = run.begin_step(settings.steps, warmup=40)
        losses = injection.step_losses(random)
        run.finish_step(sum(losses), clip=2.0)
        run.seconds = time.monotonic() - began
        totals += [part.item() for part in losses]
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
    row |= dict(zip(("plain", "injected", "colours"), losses.round(4).tolist()))
    with networks.quick_arithmetic():
        by_time = denoising_losses(model, method.encode(vae, held_out[::5]))
    row |= {f"t{moment}": round(value, 4) for moment, value in by_time.items()}
    row |= sheet(model, vae, contents, styles, work / f"unet-sheet-{run.step:05d}.jpg")
    print("unet", row, flush=True)
    log.append_row(work / "unet.csv", row)
    log.plot(work / "unet.csv", ["plain", "injected", "colours", "t501", "palette", "structure"], work / "unet.png")
