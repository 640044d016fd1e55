"""Trains the UNet on the frozen autoencoder's latents: to denoise, and to draw with injected keys and values.

Every step takes one of a few transfers under way (training/rollout.py) a timestep further. The images that it aims at
are decoded and judged: by their style, their content, their colours (training/losses.py). Nothing says what the result
should be: the mean of all that it might be has no strokes.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from training import checkpoint, losses, method, networks, workers
from training.crops import Crops
from training.muon import muon
from training.report import Report
from training.rollout import Rollout, decode, encode

UNDER_WAY = 5
# Contents that share a style.
SHARE = 4
# Latent sizes, and how often they are drawn at the begin and in the last part: 64x64 latents have 4,096 keys, as in use.
SIZES = (32, 48, 64)
EARLY_SHARES, LATE_SHARES = (0.8, 0.1, 0.1), (0.5, 0.1, 0.4)
LATE_PART = 0.67
# Pairs that are scored during training.
SCORED_PAIRS = 4
# How often crops of their own are in a batch, to be denoised as they are.
PLAIN_SHARE = 0.5
# A UNet that begins with random weights learns to denoise before it injects.
FIRST_STEPS, FIRST_CROPS = 2000, 12
# The error's local means are few numbers among many, but they are the palette.
COARSE_WEIGHT, COARSE_PIXELS = 12.0, 8
CLIP, WARMUP_STEPS = 2.0, 20
# The image changes by sqrt(1 - alpha) v, so late steps would hardly count: the square root of at most this makes up for it.
# The last ones can draw little but dither.
LATE_WEIGHT, LAST_MOMENT, LAST_WEIGHT = 2.0, 150, 0.5

# What gamma trades: at gamma 1 style counts a quarter, and content five times.
STYLE_LOSSES, STYLE_FALL = ("style", "random", "patches"), 0.75
CONTENT_LOSSES, CONTENT_RISE = ("content", "layout", "edges"), 4.0


@dataclass(frozen=True)
class Weights:
    """Of the parts of the loss."""

    plain: float = 0.5
    colours: float = 40.0
    style: float = 20.0
    random: float = 4.0
    content: float = 0.4
    spectra: float = 8.0
    layout: float = 1.0
    patches: float = 1.0
    edges: float = 0.2


@dataclass
class Settings:
    """One run; what is not in it is a constant of this module."""

    images: dict[str, np.ndarray]
    kinds: dict[str, str]
    init: Path
    out: Path
    seconds: float
    seed: int = 1
    batch: int = 4
    device: str = "cpu"
    rate: float = 1e-3
    average: float = 0.985
    weights: Weights = field(default_factory=Weights)
    score_every_seconds: float = 1200
    pairs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)


class Judge(torch.nn.Module):
    """Everything that an image under way is judged by."""

    def __init__(self, vae: AutoencoderKL, crops: Crops) -> None:
        super().__init__()
        self.vae = vae
        self.perception = losses.Perception()
        random = np.random.default_rng(0)
        some = torch.stack([crops.any(256, random) for _ in range(12)])
        self.patches = losses.Patches(encode(vae, some), some)

    def forward(self, drawn: torch.Tensor, rollout: Rollout, random: np.random.Generator) -> dict[str, torch.Tensor]:
        """Distances by name; `drawn` are latents of a rollout's images."""
        images = decode(self.vae, drawn)
        view = losses.View(4 * rollout.size, random)
        seen, content = view(images), view(rollout.content_images)
        # Another place of the style at every step, turned and scaled alike.
        view.shift(random)
        style = view(rollout.style_images)
        # Without AdaIN the colours stay the content's: marks are then judged by their luma.
        palette = rollout.style if rollout.adain else rollout.content
        marks = (seen, style) if rollout.adain else (losses.grey(seen), losses.grey(style))
        found = {
            "colours": losses.colours_distance(drawn, palette),
            "style": self.perception.style(*marks),
            "random": losses.random_filters_distance(*marks),
            "content": self.perception.content(seen, content),
            "spectra": losses.spectra_distance(images, rollout.content_decoded, rollout.style_decoded),
            "layout": losses.layout_distance(images, rollout.content_decoded),
            "edges": self.patches.moved_edges(drawn, rollout.content),
        }
        if rollout.adain:
            found["patches"] = self.patches.distance(drawn, rollout.style)
        return {name: value * share_of(name, rollout.gamma) for name, value in found.items()}


def share_of(name: str, gamma: float) -> float:
    """Of a loss, at this gamma: the more of the content's queries are mixed in, the more of the content should stay."""
    if name in STYLE_LOSSES:
        return 1 - STYLE_FALL * gamma
    return 1 + CONTENT_RISE * gamma if name in CONTENT_LOSSES else 1.0


class Injection:
    """The step of a run: transfers under way, crops with noise, and the sum of the losses."""

    def __init__(self, model: method.Denoiser, vae: AutoencoderKL, settings: Settings) -> None:
        self.model, self.vae, self.settings = model, vae, settings
        self.device = torch.device(settings.device)
        self.alpha = networks.noise_levels().tolist()
        self.crops = Crops(settings.images, settings.kinds, self.device)
        self.judge = Judge(vae, self.crops).requires_grad_(False).to(self.device)
        self.rollouts: list[Rollout] = []

    def noisy_crops(self, count: int, size: int, random: np.random.Generator) -> tuple[torch.Tensor, ...]:
        """(noisy latents, timesteps, v that should be predicted)."""
        clean = torch.zeros(0, networks.LATENT_CHANNELS, size, size, device=self.device)
        if count:
            clean = encode(self.vae, torch.stack([self.crops.any(4 * size, random) for _ in range(count)]))
        times = draw_times(count, random).to(self.device)
        level = self.model.alpha[times].view(-1, 1, 1, 1)
        noise = torch.randn_like(clean)
        return (
            level.sqrt() * clean + (1 - level).sqrt() * noise,
            times,
            level.sqrt() * noise - (1 - level).sqrt() * clean,
        )

    def plain_step(self, random: np.random.Generator) -> dict[str, torch.Tensor]:
        """Denoising alone."""
        noisy, times, wanted = self.noisy_crops(FIRST_CROPS, SIZES[0], random)
        with networks.quick_arithmetic(self.device):
            found = self.model.velocity(noisy.contiguous(memory_format=torch.channels_last), times)
        return {"plain": velocity_loss(found.float() - wanted)}

    def step(
        self, random: np.random.Generator, shared: np.random.Generator, progress: float
    ) -> dict[str, torch.Tensor]:
        """Weighted losses by name. `shared` is the same in every process: none waits for another that has more to do."""
        if len(self.rollouts) < UNDER_WAY:
            size = int(shared.choice(SIZES, p=LATE_SHARES if progress > LATE_PART else EARLY_SHARES))
            styles = max(1, round(self.settings.batch / SHARE * (SIZES[0] / size) ** 2))
            count = styles * min(SHARE, max(1, round(self.settings.batch * (SIZES[0] / size) ** 2)))
            self.rollouts.append(Rollout(self.model, self.vae, self.crops, random, size, count, styles))
        chosen = self.rollouts[shared.integers(len(self.rollouts))]
        count = max(1, chosen.count // SHARE) if shared.random() < PLAIN_SHARE else 0
        noisy, times, wanted = self.noisy_crops(count, chosen.size, random)
        plain, drawn, moment = chosen.step(self.model, noisy, times)
        self.rollouts = [one for one in self.rollouts if not one.done]
        found = self.judge(drawn, chosen, random)
        weight = min(1 / (1 - self.alpha[moment]), LATE_WEIGHT) ** 0.5 * (LAST_WEIGHT if moment < LAST_MOMENT else 1)
        weighted = {name: getattr(self.settings.weights, name) * value for name, value in found.items()}
        weighted = {name: value if name == "colours" else weight * value for name, value in weighted.items()}
        if count:
            weighted["plain"] = self.settings.weights.plain * velocity_loss(plain - wanted)
        return weighted


def draw_times(count: int, random: np.random.Generator) -> torch.Tensor:
    """Half uniform, half leaning to high noise, where the palette is decided."""
    u = random.random(count)
    u = np.where(random.random(count) < 0.5, u, np.sqrt(u))
    return torch.from_numpy(np.minimum((u * 1000).astype(np.int64), 999))


def velocity_loss(error: torch.Tensor) -> torch.Tensor:
    """Mean square of an error of v, and of its local means."""
    return error.square().mean() + COARSE_WEIGHT * F.avg_pool2d(error, COARSE_PIXELS).square().mean()


def start(settings: Settings, device: torch.device) -> method.Denoiser:
    """The UNet of the model folder to begin with; a new one where it holds the autoencoder only."""
    if (settings.init / "unet").exists():
        unet, context = networks.load_unet(settings.init), networks.load_context(settings.init)
    else:
        torch.manual_seed(settings.seed)
        unet, context = networks.new_unet(), 0.1 * torch.randn(1, 1, networks.CONTEXT_WIDTH)
    return method.Denoiser(unet, context).to(device).to(memory_format=torch.channels_last)


def save_model(run: checkpoint.Run, vae: AutoencoderKL, out: Path) -> None:
    """The whole model folder, with averaged weights."""
    run.average.swap(run.module)
    networks.save_network(run.module.unet, out / "unet")
    networks.save_frame(out, run.module.context)
    run.average.swap(run.module)
    if not (out / "vae").exists():
        networks.save_network(vae, out / "vae")


def train(settings: Settings) -> None:
    """Trains for `seconds`, all sittings together, and leaves a model folder. Runs in every worker process."""
    work, device = settings.out / "work", torch.device(settings.device)
    vae = networks.load_vae(settings.init).to(device).to(memory_format=torch.channels_last).requires_grad_(False)
    model = start(settings, device)
    first_steps = 0 if (settings.init / "unet").exists() else FIRST_STEPS
    injection = Injection(model, vae, settings)
    run = checkpoint.Run(model, work / "unet.ckpt", settings.seed, settings.rate, settings.average, muon)
    report = Report(work, [part.name for part in fields(Weights)], settings.pairs, settings.score_every_seconds)
    while (progress := run.progress(settings.seconds)) < 1:
        random = run.begin_step(progress, WARMUP_STEPS)
        shared = np.random.default_rng([settings.seed, run.step])
        if run.step < first_steps:
            parts = injection.plain_step(random)
        else:
            parts = injection.step(random, shared, progress)
        run.finish_step(torch.stack(list(parts.values())).sum(), CLIP)
        if workers.rank() == 0:
            report.add(run, parts)
            if report.due():
                report.write(run, vae)
            if run.save_now_and_then():
                save_model(run, vae, settings.out)
    if workers.rank() == 0:
        report.write(run, vae)
        run.save()
        save_model(run, vae, settings.out)
    workers.wait()
