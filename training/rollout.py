"""The method at work, stopped between its steps: what the UNet meets when it injects.

Latents on the way from an inverted content to a stylized image are not clean images with independent noise: they carry
the content's palette in ways that such noise would not, and the network's own mistakes. So the network is taught where
it will be used. Each evaluation is a training step: the image that it aims at is judged, and its own output takes the
latent to the next step.
"""

import numpy as np
import torch
from diffusers import AutoencoderKL

from training import method, networks
from training.attention import DECODER_LAYERS
from training.crops import Crops

STEPS = 10
# How often all decoder layers are injected (else the last six), queries are mixed, and the initial latent is AdaIN's.
ALL_LAYERS, MIXED, ADAIN = 0.5, 0.5, 0.8
GAMMAS, TEMPERATURES = (0.0, 0.95), (1.0, 2.5)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Images (n, 3, h, w) to scaled latents."""
    with networks.quick_arithmetic(images.device):
        latent = vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mode()
    return latent.float() * vae.config.scaling_factor


def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Scaled latents to images; gradients pass."""
    latents = (latents / vae.config.scaling_factor).contiguous(memory_format=torch.channels_last)
    with networks.quick_arithmetic(latents.device):
        return vae.decode(latents).sample.float()


class Rollout:
    """Transfers of latents (size x size) under way: inverts contents and styles, and samples towards results.

    Several contents share a style: its part of the batch is computed once for all of them.
    """

    def __init__(
        self,
        model: method.Denoiser,
        vae: AutoencoderKL,
        crops: Crops,
        random: np.random.Generator,
        size: int,
        count: int,
        styles: int,
    ) -> None:
        if count % styles:
            raise ValueError(f"{count} contents cannot share {styles} styles equally")
        self.size, self.count, self.share = size, count, count // styles
        self.content_images = torch.stack([crops.content(4 * size, random) for _ in range(count)])
        styles_drawn = torch.stack([crops.style(4 * size, random) for _ in range(styles)])
        latents = encode(vae, torch.cat([self.content_images, styles_drawn]))
        # The autoencoder cannot draw the finest diagonals: spectra are compared with what it makes of both.
        with torch.no_grad():
            decoded = decode(vae, latents)
        self.content, self.content_decoded = latents[:count], decoded[:count]
        self.style, self.style_decoded, self.style_images = map(
            self.of_each, (latents[count:], decoded[count:], styles_drawn)
        )
        self.times = method.timesteps(STEPS, first=int(random.integers(1, 1000 // STEPS)))
        self.layers = DECODER_LAYERS[0 if random.random() < ALL_LAYERS else 3 :]
        self.gamma = random.uniform(*GAMMAS) if random.random() < MIXED else 0.0
        self.temperature = random.uniform(*TEMPERATURES)
        self._invert(model, latents)
        self.adain = random.random() < ADAIN
        if self.adain:
            self.latent = method.adain(self.latent, self.style_noise)

    def of_each(self, styles: torch.Tensor) -> torch.Tensor:
        """What belongs to the styles, for each of the contents."""
        return styles.repeat_interleave(self.share, 0)

    def _invert(self, model: method.Denoiser, latents: torch.Tensor) -> None:
        with networks.quick_arithmetic(latents.device):
            both = method.invert(model, latents, self.times, self.layers if self.gamma else ())
        self.queries = {
            time: {layer: (query[: self.count],) for layer, (query, _, _) in kept.items()}
            for time, kept in both.features.items()
        }
        self.styles = {time: latent[self.count :] for time, latent in both.latents.items()}
        self.latent, self.style_noise = both.latent[: self.count], self.of_each(both.latent[self.count :])

    def step(
        self, model: method.Denoiser, noisy: torch.Tensor, times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """One injected evaluation, with a plain one of `noisy` (any number, or none) at `times` in the same batch.

        Returns v of the plain part, the latents of the images aimed at, and the timestep.
        """
        time = self.times.pop()
        here = model.alpha[time]
        there = model.alpha[self.times[-1] if self.times else 0]
        tap = model.tap
        tap.mode, tap.layers, tap.gamma, tap.temperature = "share", self.layers, self.gamma, self.temperature
        style = self.styles.pop(time)
        tap.parts = (len(noisy), len(style), self.count)
        tap.content = {layer: tuple(x.float() for x in kept) for layer, kept in self.queries.pop(time).items()}
        batch = torch.cat([noisy, style, self.latent]).contiguous(memory_format=torch.channels_last)
        moments = torch.cat([times, torch.full((len(style) + self.count,), time, device=times.device)])
        with networks.quick_arithmetic(batch.device):
            output = model.velocity(batch, moments)
        plain, _, injected = output.float().split(tap.parts)
        tap.mode, tap.content = "none", {}
        drawn = here.sqrt() * self.latent - (1 - here).sqrt() * injected
        noise = method.noise_of(injected.detach(), self.latent, here)
        self.latent = method.moved(self.latent, noise, here, there)
        return plain, drawn, time

    @property
    def done(self) -> bool:
        return not self.times
