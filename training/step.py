"""One training step of one latent size: a function of tensors (training/inputs.py), so that a GPU can record it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from training import losses, method, networks
from training.attention import DECODER_LAYERS
from training.crops import Crops
from training.graphs import Recorded
from training.inputs import Inputs, Shape

# The error's local means are few numbers among many, but they are the palette.
COARSE_WEIGHT, COARSE_PIXELS = 12.0, 8
# What gamma trades: at gamma 1 style counts a tenth, and content 13 times.
STYLE_LOSSES, STYLE_FALL = ("style", "random", "patches"), 0.9
CONTENT_LOSSES, CONTENT_RISE = ("content", "layout", "edges"), 12.0


@dataclass(frozen=True)
class Weights:
    """Of the parts of the loss."""

    plain: float = 1.5
    colours: float = 40.0
    style: float = 26.0
    random: float = 5.0
    content: float = 0.12
    spectra: float = 6.0
    grid: float = 100.0
    layout: float = 0.25
    patches: float = 1.5
    edges: float = 0.08


class Judge(torch.nn.Module):
    """Everything that an image under way is judged by."""

    def __init__(self, vae: AutoencoderKL, crops: Crops) -> None:
        super().__init__()
        self.vae = vae
        self.perception = losses.Perception()
        random = np.random.default_rng(0)
        some = torch.stack([crops.any(256, random) for _ in range(12)])
        self.patches = losses.Patches(networks.encode(vae, some), some)

    def forward(self, drawn: torch.Tensor, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Distances by name, as gamma weighs them; `drawn` are latents of a rollout's images."""
        images = networks.decode(self.vae, drawn)
        seen, content = losses.look(torch.cat([images, inputs.content_images], 1), inputs.view).chunk(2, 1)
        style = losses.look(inputs.style_images, inputs.style_view)
        grey = losses.grey(seen)
        # Without AdaIN the colours stay the content's: marks are then judged by their luma.
        palette = torch.where(inputs.adain, inputs.style, inputs.content)
        marks, wanted = torch.where(inputs.adain, seen, grey), torch.where(inputs.adain, style, losses.grey(style))
        in_style, in_content = self.perception(marks, wanted, grey, losses.grey(content))
        found = {
            "colours": losses.colours_distance(drawn, palette),
            "style": in_style,
            "random": losses.random_filters_distance(marks, wanted),
            "content": in_content,
            "spectra": losses.spectra_distance(images, inputs.content_decoded, inputs.style_decoded),
            "grid": losses.grid_distance(images),
            "layout": losses.layout_distance(images, inputs.content_decoded),
            "edges": self.patches.moved_edges(drawn, inputs.content),
            "patches": inputs.adain * self.patches.distance(drawn, inputs.style),
        }
        return {name: value * share_of(name, inputs.gamma) for name, value in found.items()}


def share_of(name: str, gamma: torch.Tensor | float) -> torch.Tensor | float:
    """Of a loss, at this gamma: the more of the content's queries are mixed in, the more of the content should stay."""
    if name in STYLE_LOSSES:
        return 1 - STYLE_FALL * gamma
    return 1 + CONTENT_RISE * gamma if name in CONTENT_LOSSES else 1.0


def velocity_loss(error: torch.Tensor) -> torch.Tensor:
    """Mean square of an error of v, and of its local means."""
    return error.square().mean() + COARSE_WEIGHT * F.avg_pool2d(error, COARSE_PIXELS).square().mean()


@dataclass(frozen=True)
class Trained:
    """What a step leaves: its weighted losses, the norm of their gradient, and v of the transfers."""

    parts: dict[str, torch.Tensor]
    norm: torch.Tensor
    velocity: torch.Tensor | None = None


@dataclass(frozen=True)
class Learner:
    """The model, and what a step does with its loss: moves the weights, and returns the gradient's norm."""

    model: method.Denoiser
    weights: Weights
    descend: Callable[[torch.Tensor], torch.Tensor]
    # The tensors that this changes.
    changes: Callable[[], list[torch.Tensor]]

    @property
    def device(self) -> torch.device:
        return self.model.alpha.device

    def learn(self, parts: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Weighs the losses and moves along the gradient of their sum."""
        weighted = {name: getattr(self.weights, name) * value for name, value in parts.items()}
        norm = self.descend(torch.stack(list(weighted.values())).sum())
        return {name: value.detach() for name, value in weighted.items()}, norm


class Denoising:
    """A step of a new UNet: crops with noise, nothing else."""

    def __init__(self, learner: Learner, crops: int, size: int) -> None:
        self.learner = learner
        self.clean = torch.zeros(crops, networks.LATENT_CHANNELS, size, size, device=learner.device)
        self.times = torch.zeros(crops, dtype=torch.long, device=learner.device)
        self.train: Recorded[Trained] = Recorded(self._train, learner.device, learner.changes)

    def _train(self) -> Trained:
        model = self.learner.model
        noisy, wanted = method.noised(model, self.clean, torch.randn_like(self.clean), self.times)
        with networks.quick_arithmetic(self.clean.device):
            found = model.velocity(noisy.contiguous(memory_format=torch.channels_last), self.times)
        return Trained(*self.learner.learn({"plain": velocity_loss(found.float() - wanted)}))


class Step:
    """Transfers of latents of one size, which share styles, and crops with noise in the same batch."""

    def __init__(self, learner: Learner, judge: Judge, shape: Shape) -> None:
        self.learner, self.model, self.judge, self.shape = learner, learner.model, judge, shape
        self.inputs = Inputs(shape, self.model.unet, learner.device)
        self.invert: Recorded[tuple[torch.Tensor, dict[int, torch.Tensor]]] = Recorded(self._invert, learner.device)
        self.train: Recorded[Trained] = Recorded(self._train, learner.device, learner.changes)

    @torch.no_grad()
    def _invert(self) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """v of what is inverted, and the contents' queries by layer."""
        latent, tap = self.inputs.inverted, self.model.tap
        tap.mode, tap.layers, tap.kept = "save", DECODER_LAYERS, {}
        with networks.quick_arithmetic(latent.device):
            velocity = self.model.velocity(latent, self.inputs.inverted_time.expand(len(latent)))
        queries = {layer: query[: self.shape.contents] for layer, (query, _, _) in tap.kept.items()}
        tap.mode, tap.kept = "none", {}
        return velocity.float(), queries

    def _train(self) -> Trained:
        inputs = self.inputs
        noisy, wanted = method.noised(self.model, inputs.clean, inputs.noise, inputs.plain_times)
        plain, injected = self.evaluated(noisy)
        level = self.model.level(inputs.time)
        found = self.judge(level.sqrt() * inputs.latent - (1 - level).sqrt() * injected, inputs)
        # Colours are weighed alike at all timesteps.
        found = {name: value if name == "colours" else inputs.weight * value for name, value in found.items()}
        found["plain"] = velocity_loss(plain - wanted)
        return Trained(*self.learner.learn(found), injected.detach())

    def evaluated(self, noisy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """v of the crops with noise, and of the transfers, injected."""
        inputs, shape, tap = self.inputs, self.shape, self.model.tap
        tap.mode, tap.layers, tap.queries = "share", DECODER_LAYERS, inputs.queries
        tap.gamma, tap.temperature, tap.deep = inputs.gamma, inputs.temperature, inputs.deep
        tap.parts = (shape.plain, shape.styles, shape.contents)
        batch = torch.cat([noisy, inputs.style_latent, inputs.latent]).contiguous(memory_format=torch.channels_last)
        times = torch.cat([inputs.plain_times, inputs.time.expand(shape.styles + shape.contents)])
        with networks.quick_arithmetic(batch.device):
            plain, _, injected = self.model.velocity(batch, times).float().split(tap.parts)
        tap.mode, tap.queries = "none", {}
        return plain, injected
