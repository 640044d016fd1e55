"""The method in plain PyTorch: inversion, injection, sampling. For scores and sheets during training only."""

from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import AutoencoderKL

from training import images, networks
from training.attention import Tap, install


class Denoiser(torch.nn.Module):
    """The UNet with its one learned context token, and the tap on its self-attention.

    The UNet predicts v = sqrt(alpha) e - sqrt(1 - alpha) x0 (Salimans and Ho, 2022): at high noise that is the image
    itself. A network that predicts the noise e has to pass it through untouched there, and the palette, which is what
    is left when the noise is taken off, drowns in its errors.
    """

    def __init__(self, unet: torch.nn.Module, context: torch.Tensor) -> None:
        super().__init__()
        self.unet = unet
        self.context = torch.nn.Parameter(context.clone())
        self.tap: Tap = install(unet)
        self.register_buffer("alpha", networks.noise_levels(), persistent=False)

    def velocity(self, latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The UNet's own output, v."""
        context = self.context.expand(latent.shape[0], -1, -1)
        return self.unet(latent, timestep, context).sample

    def forward(self, latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The noise estimate."""
        return noise_of(self.velocity(latent, timestep).float(), latent, self.level(timestep))

    def level(self, timestep: torch.Tensor) -> torch.Tensor:
        """alpha at timesteps, (n, 1, 1, 1). Plain indexing would read a timestep of no dimensions on the host."""
        return self.alpha.index_select(0, timestep.reshape(-1)).view(-1, 1, 1, 1)


def noise_of(velocity: torch.Tensor, latent: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """e = sqrt(alpha) v + sqrt(1 - alpha) z at the level alpha."""
    return level.sqrt() * velocity + (1 - level).sqrt() * latent


def noised(
    model: Denoiser, clean: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean latents with this noise at their timesteps, and the v that they have."""
    level = model.level(timestep)
    return level.sqrt() * clean + (1 - level).sqrt() * noise, level.sqrt() * noise - (1 - level).sqrt() * clean


@dataclass
class Inversion:
    """Where a latent ends under inversion, where it was at each timestep, and what the tapped layers computed there."""

    latent: torch.Tensor
    latents: dict[int, torch.Tensor] = field(default_factory=dict)
    features: dict[int, dict[int, tuple[torch.Tensor, ...]]] = field(default_factory=dict)


def timesteps(steps: int, first: int = 1) -> list[int]:
    return [first + i * (1000 // steps) for i in range(steps)]


def moved(latent: torch.Tensor, noise: torch.Tensor, here: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """One DDIM move between the levels alpha `here` and `there`."""
    clean = (latent - (1 - here).sqrt() * noise) / here.sqrt()
    return there.sqrt() * clean + (1 - there).sqrt() * noise


@torch.no_grad()
def invert(model: Denoiser, latent: torch.Tensor, times: list[int], layers: tuple[int, ...] = ()) -> Inversion:
    """Image latents (n, c, h, w) to their noise; keeps them, and q, k and v of the layers, at every timestep."""
    alpha = model.alpha
    result = Inversion(latent)
    for time, following in zip(times, times[1:] + [999]):
        result.latents[time] = result.latent
        model.tap.mode, model.tap.layers, model.tap.kept = "save", layers, {}
        noise = model(result.latent, torch.tensor(time, device=latent.device)).float()
        result.features[time] = {k: tuple(x.bfloat16() for x in v) for k, v in model.tap.kept.items()}
        result.latent = moved(result.latent, noise, alpha[time], alpha[following])
    model.tap.mode, model.tap.kept = "none", {}
    return result


@torch.no_grad()
def sample(
    model: Denoiser,
    latent: torch.Tensor,
    steps: int,
    content: Inversion | None = None,
    style: Inversion | None = None,
    layers: tuple[int, ...] = (),
    gamma: float = 0.75,
    temperature: float = 1.5,
) -> torch.Tensor:
    """Noise to image latents by the corrected schedule; with inversions of content and style, injects them."""
    alpha = model.alpha
    times = timesteps(steps)
    tap = model.tap
    dtype = torch.bfloat16 if torch.is_autocast_enabled(latent.device.type) else torch.float32
    for time, following in zip(reversed(times), [*reversed(times[:-1]), 0]):
        if content and style:
            tap.mode, tap.layers, tap.gamma, tap.temperature = "inject", layers, gamma, temperature
            tap.queries = {layer: kept[0].to(dtype) for layer, kept in content.features[time].items()}
            tap.style = {layer: tuple(x.to(dtype) for x in kept) for layer, kept in style.features[time].items()}
        noise = model(latent, torch.tensor(time, device=latent.device)).float()
        latent = moved(latent, noise, alpha[time], alpha[following])
    tap.mode, tap.queries, tap.style = "none", {}, {}
    return latent


def adain(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Gives each channel of `content` the mean and the deviation that it has in `style`."""
    mean, deviation = content.mean((2, 3), keepdim=True), content.std((2, 3), keepdim=True)
    target_mean, target_deviation = style.mean((2, 3), keepdim=True), style.std((2, 3), keepdim=True)
    return (content - mean) / deviation * target_deviation + target_mean


@torch.no_grad()
def encode(vae: AutoencoderKL, squares: list[np.ndarray]) -> torch.Tensor:
    """uint8 squares to scaled latents, (n, c, h, w): samples of the posterior, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = [images.to_tensor(square)[None].to(vae.device) for square in squares]
        return torch.cat([networks.posterior(vae, tensor)[1] for tensor in tensors])


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> list[np.ndarray]:
    """Scaled latents to uint8 squares."""
    return [images.to_pixels(vae.decode(latent[None] / vae.config.scaling_factor).sample[0]) for latent in latents]


def transfer(
    model: Denoiser,
    content: Inversion,
    style: Inversion,
    steps: int,
    layers: tuple[int, ...],
    gamma: float = 0.75,
    temperature: float = 1.5,
    use_adain: bool = True,
    use_injection: bool = True,
) -> torch.Tensor:
    """The whole method on two inversions; returns image latents."""
    latent = adain(content.latent, style.latent) if use_adain else content.latent
    if not use_injection:
        return sample(model, latent, steps)
    return sample(model, latent, steps, content, style, layers, gamma, temperature)
