"""The method at work, stopped between its steps: what the UNet meets when it injects, and what it should make of it.

Latents on the way from an inverted content to a stylized picture are not clean pictures with independent noise: they
carry the content's palette in ways that such noise would not, and the network's own mistakes. So the network is taught
where it will be used. Each evaluation is a training step whose target is the finished picture, and its own output takes
the latent to the next step.
"""

import numpy as np
import torch

from training import method
from training.attention import DECODER_LAYERS

STEPS = 10
# The error of v is that of the picture times 1 / sqrt(1 - alpha), which nearly without noise is far too much; its square's
# factor is this at most.
CLEAN_WEIGHT = 4.0


class Rollout:
    """Latents (n, c, h, w) of contents, styles and results; inverts the first two, and samples towards the last."""

    def __init__(
        self,
        model: method.Denoiser,
        content: torch.Tensor,
        style: torch.Tensor,
        result: torch.Tensor,
        random: np.random.Generator,
    ) -> None:
        self.result = result
        self.times = method.timesteps(STEPS, first=int(random.integers(1, 1000 // STEPS)))
        self.layers = DECODER_LAYERS[0 if random.random() < 0.3 else 3 :]
        self.gamma, self.temperature = random.uniform(0.0, 0.9), random.uniform(1.0, 2.0)
        both = method.invert(model, torch.cat([content, style]), self.times, self.layers)
        self.queries = {
            time: {layer: (query.chunk(2)[0],) for layer, (query, _, _) in kept.items()}
            for time, kept in both.features.items()
        }
        self.styles = {time: latent.chunk(2)[1] for time, latent in both.latents.items()}
        content, style = both.latent.chunk(2)
        self.latent = method.adain(content, style) if random.random() < 0.8 else content

    def step(
        self, model: method.Denoiser, noisy: torch.Tensor, times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One injected evaluation, with a plain one of `noisy` at `times` in the same batch.

        Returns v of the plain part, the weighted error of the injected v, and the picture that the latter aims at.
        """
        time = self.times.pop()
        here = model.alpha[time]
        there = model.alpha[self.times[-1] if self.times else 0]
        tap = model.tap
        tap.mode, tap.layers, tap.gamma, tap.temperature = "share", self.layers, self.gamma, self.temperature
        tap.content = {k: tuple(x.float() for x in v) for k, v in self.queries.pop(time).items()}
        batch = torch.cat([noisy, self.styles.pop(time), self.latent])
        moments = torch.cat([times, torch.full((len(batch) - len(times),), time)])
        plain, _, injected = (
            model.velocity(batch.contiguous(memory_format=torch.channels_last), moments).float().chunk(3)
        )
        tap.mode, tap.content = "none", {}
        drawn = here.sqrt() * self.latent - (1 - here).sqrt() * injected
        error = (drawn - self.result) * (1 / (1 - here)).clamp_max(CLEAN_WEIGHT).sqrt()
        noise = method.noise_of(injected.detach(), self.latent, here)
        self.latent = method.moved(self.latent, noise, here, there)
        return plain, error, drawn

    @property
    def done(self) -> bool:
        return not self.times
