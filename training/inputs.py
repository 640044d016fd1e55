"""What a training step reads: buffers of a fixed shape, written between the steps."""

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel

from training import networks
from training.attention import DECODER_LAYERS

# Contents that share a style, and that there are for each crop to be denoised as it is.
SHARE = 4
SMALLEST = 32


@dataclass(frozen=True)
class Shape:
    """The size of a step's latents, and how many contents, styles and crops to denoise it has."""

    size: int
    contents: int
    styles: int
    plain: int

    @classmethod
    def of(cls, size: int, batch: int) -> "Shape":
        """About as much work as `batch` transfers of the smallest latents."""
        count = batch * (SMALLEST / size) ** 2
        styles = max(1, round(count / SHARE))
        contents = styles * min(SHARE, max(1, round(count)))
        return cls(size, contents, styles, max(1, contents // 2))


class Inputs:
    """The buffers; styles are there once for each content, but for `style_latent`, which is a part of the batch."""

    def __init__(self, shape: Shape, unet: UNet2DConditionModel, device: torch.device) -> None:
        def zeros(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(sizes, dtype=dtype, device=device)

        count = shape.contents
        latent = (networks.LATENT_CHANNELS, shape.size, shape.size)
        image = (3, 4 * shape.size, 4 * shape.size)
        # The batch: clean crops and the noise that they get, styles and contents on their way, and their timesteps.
        self.clean, self.noise = zeros(shape.plain, *latent), zeros(shape.plain, *latent)
        self.plain_times = zeros(shape.plain, dtype=torch.long)
        self.style_latent, self.latent = zeros(shape.styles, *latent), zeros(count, *latent)
        self.time = zeros(1, dtype=torch.long)
        # The method's controls. `deep`: layers 3-5 are injected as well.
        self.gamma, self.temperature = zeros(), zeros()
        self.deep, self.adain = zeros(dtype=torch.bool), zeros(dtype=torch.bool)
        self.queries = {layer: zeros(count, *shape_of(layer, unet, shape.size)) for layer in DECODER_LAYERS}
        # What the results are judged by, and how: latents, images, and what the autoencoder makes of these.
        self.content, self.style = zeros(count, *latent), zeros(count, *latent)
        self.content_images, self.style_images = zeros(count, *image), zeros(count, *image)
        self.content_decoded, self.style_decoded = zeros(count, *image), zeros(count, *image)
        self.view, self.style_view = zeros(1, 2, 3), zeros(1, 2, 3)
        self.weight = zeros()
        # An evaluation of the inversion: contents, then styles.
        self.inverted = zeros(count + shape.styles, *latent)
        self.inverted_time = zeros(1, dtype=torch.long)

    def write(self, **values: torch.Tensor | float) -> None:
        """Sets buffers by their names."""
        for name, value in values.items():
            buffer = getattr(self, name)
            if isinstance(value, torch.Tensor):
                buffer.copy_(value)
            else:
                buffer.fill_(value)

    def write_queries(self, queries: dict[int, torch.Tensor]) -> None:
        """Those of the contents, by layer."""
        for layer, query in queries.items():
            self.queries[layer].copy_(query)


def shape_of(layer: int, unet: UNet2DConditionModel, size: int) -> tuple[int, int]:
    """(tokens, channels) of a decoder layer's queries."""
    channels, level = unet.config.block_out_channels, layer // 3
    return (size >> (len(channels) - 1 - level)) ** 2, channels[-1 - level]
