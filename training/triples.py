"""What injection is taught with: a content, a style, and the picture that injection should make of the two.

There are two kinds, drawn at random:

same picture   content is a recoloured, smoothed copy of the result, and style is another crop of the result's picture:
               palette and texture have to come from the style.
two pictures   the result is the content redrawn in the style's palette and, in part, with patches of the style: both
               have to come from a style that shows something else.
"""

import numpy as np
import torch
from torch.nn import functional as F

from training import pictures, recolour

# Small copies show a crop the palette of nearly the whole picture, as the method does; large ones show strokes.
SIDES = (400, 256, 160, 104)
SAME_PICTURE = 0.3
# How much of the redrawn picture is in a result; the rest keeps the content's details.
REDRAWN = 0.6


class Triples:
    """Draws (content, style, result) crops."""

    def __init__(self, training: list[np.ndarray]) -> None:
        self.scales = [[pictures.resized(pixels, side) for pixels in training] for side in SIDES]

    def draw(self, crop: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Three (3, crop, crop) pictures in [-1, 1]."""
        scale = self.scales[random.integers(len(self.scales))]
        one, other = scale[random.integers(len(scale))], scale[random.integers(len(scale))]
        if random.random() < SAME_PICTURE:
            result, style = _cut(one, crop, random), _cut(one, crop, random)
            return _disguised(result, random), style, result
        content, style = _cut(one, crop, random), _cut(other, crop, random)
        moved = recolour.palette_moved(content, style, rounds=12, seed=int(random.integers(1 << 30)))
        return content, style, torch.lerp(moved, redrawn(moved, style), REDRAWN)

    def any(self, crop: int, random: np.random.Generator) -> torch.Tensor:
        """One crop as it is, (3, crop, crop) in [-1, 1]."""
        scale = self.scales[random.integers(len(self.scales))]
        return _cut(scale[random.integers(len(scale))], crop, random)


def redrawn(image: torch.Tensor, style: torch.Tensor, side: int = 8) -> torch.Tensor:
    """`image` from overlapping patches of `style`, each the most similar one; both (3, h, w) of equal colours."""
    stride = side // 2
    wanted = F.unfold(image[None], side, stride=stride)[0].T
    found = F.unfold(style[None], side, stride=2)[0].T
    nearest = (found.square().sum(1) - 2 * wanted @ found.T).argmin(1)
    chosen = found[nearest].T[None]
    total, count = (F.fold(x, image.shape[1:], side, stride=stride)[0] for x in (chosen, torch.ones_like(chosen)))
    return total / count


def _cut(pixels: np.ndarray, crop: int, random: np.random.Generator) -> torch.Tensor:
    pixels = pictures.at_least(pixels, crop)
    top = random.integers(pixels.shape[0] - crop + 1)
    left = random.integers(pixels.shape[1] - crop + 1)
    cut = pixels[top : top + crop, left : left + crop]
    return pictures.to_tensor(cut[:, ::-1] if random.random() < 0.5 else cut)


def _disguised(image: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    changed = recolour.jittered(image[None], random)
    shrunk = random.choice((1, 2, 4), p=(0.4, 0.35, 0.25))
    small = F.avg_pool2d(changed, int(shrunk))
    return F.interpolate(small, size=image.shape[1:], mode="bilinear")[0]
