"""The method at work, stopped between its steps: what the UNet meets when it injects.

Latents on the way from an inverted content to a stylized image are not clean images with independent noise: they carry
the content's palette in ways that such noise would not, and the network's own mistakes. So the network is taught where
it will be used. Each evaluation is a training step: the image that it aims at is judged, and its own output takes the
latent to the next step.
"""

import numpy as np
import torch
from diffusers import AutoencoderKL

from training import losses, method, networks
from training.crops import Crops
from training.step import Step

STEPS = 10
# How often all decoder layers are injected (else the last six), queries are mixed, and the initial latent is AdaIN's.
ALL_LAYERS, MIXED, ADAIN = 0.6, 0.6, 0.8
# How often a crop that is denoised as it is has the noise of its own inversion: sampling should lead back from there.
INVERTED = 0.5
GAMMAS, TEMPERATURES = (0.0, 0.9), (1.0, 2.5)
# The image changes by sqrt(1 - alpha) v, so late steps would hardly count: the square root of at most this makes up for it.
# The last ones can draw little but dither.
LATE_WEIGHT, LAST_MOMENT, LAST_WEIGHT = 4.0, 150, 0.5
LEVELS = networks.noise_levels().tolist()


class Rollout:
    """Transfers under way, all in the shape of one step: inverts contents and styles, and samples towards results."""

    def __init__(self, step: Step, vae: AutoencoderKL, crops: Crops, random: np.random.Generator) -> None:
        self.shape, self.step, self.alpha = step.shape, step, step.model.alpha
        size, count = 4 * self.shape.size, self.shape.contents
        contents = torch.stack([crops.content(size, random) for _ in range(count)])
        styles = torch.stack([crops.style(size, random) for _ in range(self.shape.styles)])
        # Transfers begin with samples, whose noise becomes noise where an image is flat; nothing is judged by that noise.
        mean, self.clean = networks.posterior(vae, torch.cat([contents, styles]))
        # The autoencoder cannot draw the finest diagonals: spectra are compared with what it makes of both.
        with torch.no_grad():
            decoded = networks.decode(vae, mean)
        self.controls = {
            "gamma": random.uniform(*GAMMAS) if random.random() < MIXED else 0.0,
            "temperature": random.uniform(*TEMPERATURES),
            "deep": float(random.random() < ALL_LAYERS),
            "adain": float(random.random() < ADAIN),
        }
        self.judged_by = {
            "content": mean[:count],
            "style": self.of_each(mean[count:]),
            "content_images": contents,
            "style_images": self.of_each(styles),
            "content_decoded": decoded[:count],
            "style_decoded": self.of_each(decoded[count:]),
        }
        self.times = method.timesteps(STEPS, first=int(random.integers(1, 1000 // STEPS)))
        self._invert()

    def of_each(self, styles: torch.Tensor) -> torch.Tensor:
        """What belongs to the styles, for each of the contents that share them."""
        return styles.repeat_interleave(self.shape.contents // self.shape.styles, 0)

    def _invert(self) -> None:
        self.path: dict[int, torch.Tensor] = {}
        self.queries: dict[int, dict[int, torch.Tensor]] = {}
        latent, count = self.clean, self.shape.contents
        for time, following in zip(self.times, self.times[1:] + [999]):
            self.path[time] = latent
            self.step.inputs.write(inverted=latent, inverted_time=time)
            velocity, queries = self.step.invert()
            if self.controls["gamma"]:
                self.queries[time] = {layer: query.to(torch.bfloat16, copy=True) for layer, query in queries.items()}
            latent = self._moved(latent, velocity, time, following)
        self.latent = latent[:count]
        if self.controls["adain"]:
            self.latent = method.adain(self.latent, self.of_each(latent[count:]))

    def _moved(self, latent: torch.Tensor, velocity: torch.Tensor, time: int, following: int) -> torch.Tensor:
        here, there = self.alpha[time], self.alpha[following]
        return method.moved(latent, method.noise_of(velocity, latent, here), here, there)

    def prepare(self, random: np.random.Generator) -> None:
        """Writes the buffers of the next evaluation; crops that it denoises are those that it began with."""
        inputs, time = self.step.inputs, self.times[-1]
        view, style_view = losses.views(4 * self.shape.size, random)
        inputs.write(
            **self._plain(random),
            style_latent=self.path[time][self.shape.contents :],
            latent=self.latent,
            time=time,
            view=view,
            style_view=style_view,
            weight=weight_of(time),
            **self.controls,
            **self.judged_by,
        )
        inputs.write_queries(self.queries.get(time, {}))

    def _plain(self, random: np.random.Generator) -> dict[str, torch.Tensor]:
        """Some of the crops with noise: any, or that which takes them to where they came by on their inversion."""
        chosen = random.permutation(len(self.clean))[: self.shape.plain].tolist()
        clean, times = self.clean[chosen], draw_times(self.shape.plain, random)
        noise = torch.randn_like(clean)
        for i, crop in enumerate(chosen):
            if random.random() < INVERTED:
                times[i] = time = int(random.choice(list(self.path)))
                level = self.alpha[time]
                noise[i] = (self.path[time][crop] - level.sqrt() * clean[i]) / (1 - level).sqrt()
        return {"clean": clean, "noise": noise, "plain_times": times}

    def move(self, velocity: torch.Tensor) -> None:
        """Takes the latents along the v that was found."""
        time = self.times.pop()
        self.latent = self._moved(self.latent, velocity, time, self.times[-1] if self.times else 0)
        self.queries.pop(time, None)

    @property
    def done(self) -> bool:
        return not self.times


def draw_times(count: int, random: np.random.Generator) -> torch.Tensor:
    """A third uniform, a third leaning to high noise, where the palette is decided, a third to low, where inversions begin."""
    u = random.random(count) ** random.choice([1.0, 0.5, 2.0], count)
    return torch.from_numpy(np.minimum((u * 1000).astype(np.int64), 999))


def weight_of(time: int) -> float:
    """Of what is judged at a timestep."""
    late = min(1 / (1 - LEVELS[time]), LATE_WEIGHT) ** 0.5
    return late * (LAST_WEIGHT if time < LAST_MOMENT else 1.0)
