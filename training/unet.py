"""Trains the UNet on the frozen autoencoder's latents: to denoise, and to draw with injected keys and values.

Every step takes one of a few transfers under way (training/rollout.py) a timestep further. The images that it aims at
are decoded and judged: by their style, their content, their colours (training/losses.py). Nothing says what the result
should be: the mean of all that it might be has no strokes.
"""

import functools
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training import checkpoint, method, networks, workers
from training.crops import Crops
from training.inputs import SMALLEST, Shape
from training.muon import muon
from training.report import Report
from training.rollout import Rollout, draw_times
from training.step import Denoising, Judge, Learner, Step, Trained, Weights

UNDER_WAY = 5
# Latent sizes, and how often they are drawn at the begin and in the last part: 64x64 latents have 4,096 keys, as in use.
SIZES = (SMALLEST, 64)
EARLY_SHARES, LATE_SHARES = (0.7, 0.3), (0.4, 0.6)
LATE_PART = 0.67
# Pairs that are scored during training.
SCORED_PAIRS = 4
# A UNet that begins with random weights learns to denoise before it injects.
FIRST_STEPS, FIRST_CROPS = 2000, 12
CLIP, WARMUP_STEPS = 2.0, 20


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
    rate: float = 8e-4
    average: float = 0.985
    weights: Weights = field(default_factory=Weights)
    score_every_seconds: float = 1200
    pairs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)


class Injection:
    """Takes the steps of a run: transfers under way, and crops with noise."""

    def __init__(self, learner: Learner, vae: AutoencoderKL, settings: Settings) -> None:
        self.vae = vae
        self.crops = Crops(settings.images, settings.kinds, learner.device)
        judge = Judge(vae, self.crops).requires_grad_(False).to(learner.device)
        self.steps = {size: Step(learner, judge, Shape.of(size, settings.batch)) for size in SIZES}
        self.denoising = Denoising(learner, FIRST_CROPS, SIZES[0])
        self.rollouts: list[Rollout] = []

    def plain_step(self, random: np.random.Generator) -> Trained:
        """Denoising alone."""
        buffers = self.denoising
        drawn = torch.stack([self.crops.any(4 * SIZES[0], random) for _ in range(FIRST_CROPS)])
        buffers.clean.copy_(networks.posterior(self.vae, drawn)[1])
        buffers.times.copy_(draw_times(FIRST_CROPS, random))
        return buffers.train()

    def step(self, random: np.random.Generator, shared: np.random.Generator, progress: float) -> Trained:
        """One of the transfers a timestep further, or first a new one.

        `shared` is the same in every process: none waits for another that has more to do.
        """
        if len(self.rollouts) < UNDER_WAY:
            size = int(shared.choice(SIZES, p=LATE_SHARES if progress > LATE_PART else EARLY_SHARES))
            self.rollouts.append(Rollout(self.steps[size], self.vae, self.crops, random))
        chosen = self.rollouts[shared.integers(len(self.rollouts))]
        chosen.prepare(random)
        done = chosen.step.train()
        chosen.move(done.velocity)
        self.rollouts = [one for one in self.rollouts if not one.done]
        return done


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
    run = checkpoint.Run(model, work / "unet.ckpt", settings.seed, settings.rate, settings.average, muon)
    learner = Learner(model, settings.weights, functools.partial(run.descend, clip=CLIP), run.changes)
    injection = Injection(learner, vae, settings)
    report = Report(work, [part.name for part in fields(Weights)], settings.pairs, settings.score_every_seconds)
    while (progress := run.progress(settings.seconds)) < 1:
        random = run.begin_step(progress, WARMUP_STEPS)
        shared = np.random.default_rng([settings.seed, run.step])
        if run.step < first_steps:
            done = injection.plain_step(random)
        else:
            done = injection.step(random, shared, progress)
        run.finish_step(done.norm)
        if workers.rank() == 0:
            report.add(run, done.parts)
            if report.due():
                report.write(run, vae)
            if run.save_now_and_then():
                save_model(run, vae, settings.out)
                report.plot()
    if workers.rank() == 0:
        report.write(run, vae)
        run.save()
        save_model(run, vae, settings.out)
    workers.wait()
