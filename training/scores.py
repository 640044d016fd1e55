"""Measures of a stylized image, each defined here in full. Images are uint8 (h, w, 3) where nothing else is said.

Ratios compare a distance to the style with the content's own: 0 is the style, 1 is no nearer to it than the content.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from training import images
from training.features import Features
from training.losses import LUMA, gram, spectrum

RANDOM_FILTERS, RANDOM_SCALES = 128, 4
# In windows of 32 pixels, the frequencies whose periods are 3.6 to 2.3 pixels.
DITHER_WINDOW, DITHER = 32, slice(9, 15)
CELL = 16
DIRECTIONS = 8
# Classes of the gradient's length, in luma from 0 to 1 a pixel: each but the first is a kind of mark.
GRADIENTS = (0.01, 0.02, 0.04, 0.08, 0.16)


@dataclass(frozen=True)
class Row:
    """What one result scores, or the mean of several."""

    gram: float  # ratio of Gram distances, MobileNetV2 features: what the training itself uses
    random: float  # the same with random rectified filters at four scales
    encoder: float  # the same with the activations of the model's own encoder
    marks: float  # ratio of distances of oriented gradients where the content is flat
    dither: float  # power along the axes at periods of 2.3 to 3.6 pixels, over the style's or the content's
    palette: float  # ratio of distances of RGB histograms
    structure: float  # luma's contrast-structure similarity to the content, 1 is the content
    content: float  # distance of MobileNetV2 features to the content over the style's

    @classmethod
    def mean(cls, rows: list["Row"]) -> "Row":
        return cls(*np.mean([list(asdict(row).values()) for row in rows], 0).tolist())

    def rounded(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in asdict(self).items()}


class Measures:
    """The measures that need networks, and all of them together."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae
        self.features = Features()

    def __call__(self, content: np.ndarray, style: np.ndarray, result: np.ndarray) -> Row:
        three = images.to_tensor(np.stack([content, style, result]))
        with torch.no_grad():
            features = self.features(three)
            return Row(
                gram=gram_ratio(features),
                random=gram_ratio(random_features(three)),
                encoder=gram_ratio(encoder_features(self.vae, three)),
                marks=marks(content, style, result),
                dither=dither(three),
                palette=palette(content, style, result),
                structure=structure(content, result),
                content=float(np.mean([_ratio(r - c, s - c) for c, s, r in features])),
            )


def _ratio(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a.norm() / b.norm().clamp_min(1e-12))


def gram_ratio(features: list[torch.Tensor]) -> float:
    """Distance of Gram matrices of the result to the style's over the content's, mean of the layers.

    Each layer's features are (content, style, result).
    """
    return float(np.mean([_ratio(r - s, c - s) for c, s, r in (gram(layer) for layer in features)]))


def random_features(three: torch.Tensor) -> list[torch.Tensor]:
    """Rectified random 7x7 filters of images in [-1, 1] at four scales; always the same, and in no loss."""
    found = []
    for scale in range(RANDOM_SCALES):
        filters = torch.randn(RANDOM_FILTERS, 3, 7, 7, generator=torch.Generator().manual_seed(scale))
        filters = filters - 0.9 * filters.mean((2, 3), keepdim=True)
        found.append(torch.relu(F.conv2d(three, filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1))))
        three = F.avg_pool2d(three, 2)
    return found


def encoder_features(vae: AutoencoderKL, three: torch.Tensor) -> list[torch.Tensor]:
    """Rectified activations of an encoder's stages."""
    kept: list[torch.Tensor] = []
    stages = [vae.encoder.conv_in, *vae.encoder.down_blocks, vae.encoder.mid_block]
    hooks = [
        stage.register_forward_hook(lambda module, inputs, output: kept.append(torch.relu(output))) for stage in stages
    ]
    vae.encoder(three)
    for hook in hooks:
        hook.remove()
    return kept


def dither(three: torch.Tensor) -> float:
    """Luma's fine power along both axes, over the style's or the content's, whichever has more; above 1 is an excess."""
    content, style, result = spectrum(three, DITHER_WINDOW)[:, 0]
    excess = result.log() - torch.maximum(content, style).log()
    return float(torch.cat([excess[DITHER, 0], excess[0, DITHER]]).mean().exp())


def marks(content: np.ndarray, style: np.ndarray, result: np.ndarray) -> float:
    """Is there a mark where the photograph has none? Histograms of oriented gradients there, compared with the style's.

    The content is flat in the third of its 16-pixel cells whose gradients are the smallest. A histogram counts pixels by
    direction (8) and length (6 classes, the first has no direction); Hellinger distances, the result's over the content's.
    """
    strength, _ = gradients(content)
    cells = blocks(strength, CELL).mean(1)
    flat = cells <= np.quantile(cells, 1 / 3)
    wanted = gradient_histogram(style)
    seen, drawn = (gradient_histogram(pixels, flat) for pixels in (content, result))
    return hellinger(drawn, wanted) / max(hellinger(seen, wanted), 1e-12)


def gradients(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Length and direction (0 to pi) of luma's gradient."""
    down, right = np.gradient(luminance(pixels))
    return np.hypot(down, right), np.arctan2(down, right) % np.pi


def gradient_histogram(pixels: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
    """Shares of the pixels by direction and length of the gradient, in the chosen cells (None: all)."""
    strength, angle = (blocks(part, CELL) for part in gradients(pixels))
    if chosen is not None:
        strength, angle = strength[chosen], angle[chosen]
    length = np.digitize(strength, GRADIENTS)
    direction = np.minimum((angle / np.pi * DIRECTIONS).astype(int), DIRECTIONS - 1)
    counts = np.bincount(np.where(length == 0, 0, length * DIRECTIONS + direction).ravel(), minlength=6 * DIRECTIONS)
    return counts / counts.sum()


def colour_histogram(pixels: np.ndarray) -> np.ndarray:
    """Shares of the colours in 8x8x8 equal boxes of RGB."""
    boxes = (pixels.reshape(-1, 3) >> 5).astype(np.int64) @ np.array([64, 8, 1])
    return np.bincount(boxes, minlength=512) / boxes.size


def hellinger(p: np.ndarray, q: np.ndarray) -> float:
    """Distance of two histograms, 0 to 1."""
    return float(np.sqrt(max(0.0, 1 - np.sqrt(p * q).sum())))


def palette(content: np.ndarray, style: np.ndarray, result: np.ndarray) -> float:
    """Hellinger distance of the result's RGB histogram to the style's, over the content's."""
    content, style, result = (colour_histogram(pixels) for pixels in (content, style, result))
    return hellinger(result, style) / max(hellinger(content, style), 1e-12)


def structure(content: np.ndarray, result: np.ndarray) -> float:
    """SSIM's contrast-structure term of luma, over separate 8x8 blocks; its luminance term is left out."""
    a, b = (blocks(luminance(pixels), 8) for pixels in (content, result))
    covariance = ((a - a.mean(1, keepdims=True)) * (b - b.mean(1, keepdims=True))).mean(1)
    c2 = 0.03**2
    return float(((2 * covariance + c2) / (a.var(1) + b.var(1) + c2)).mean())


def luminance(pixels: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 luma, (h, w) in [0, 1]."""
    return pixels.astype(np.float64) @ np.array(LUMA) / 255


def blocks(plane: np.ndarray, side: int) -> np.ndarray:
    """(h, w) -> its blocks, (n, side * side); what is left at the right and at the bottom is dropped."""
    height, width = (length // side * side for length in plane.shape)
    plane = plane[:height, :width].reshape(height // side, side, width // side, side)
    return plane.transpose(0, 2, 1, 3).reshape(-1, side * side)


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of images (n, 3, h, w) in [0, 1] over the three channels together, in dB, (n,)."""
    return -10 * torch.log10((a - b).square().mean((1, 2, 3)).clamp_min(1e-12))


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity of Wang et al. 2004 (Gaussian window 11, sigma 1.5) of images (n, c, h, w) in [0, 1], (n,)."""
    axis = torch.arange(11, dtype=a.dtype) - 5
    line = torch.exp(-axis.square() / (2 * 1.5**2))
    line = line / line.sum()
    channels = a.shape[1]
    window = (line[:, None] * line[None, :]).expand(channels, 1, 11, 11)

    def blur(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, window, groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    score = score / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return score.mean((1, 2, 3))
