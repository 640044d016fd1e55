"""Random crops of the training images, made on the device that holds them."""

import csv
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

# Shorter sides that images are scaled to: a small copy shows a crop the palette of most of the image, a large one its strokes.
SIDES = (256, 256, 300, 400)
PHOTOGRAPH = "photo"
# How often a content is a painting, a style is one, a style is turned by any angle, and a crop of its own is a painting.
CONTENT_ART, STYLE_ART, TURNED, ANY_ART = 0.25, 0.85, 0.5, 0.4


def kinds_of(folder: Path) -> dict[str, str]:
    """The kind of each image by file name, as the folder's manifest.csv (columns file, kind) has it; empty without one."""
    manifest = folder / "manifest.csv"
    if not manifest.exists():
        return {}
    with manifest.open(newline="", encoding="utf-8") as file:
        return {row["file"]: row["kind"] for row in csv.DictReader(file)}


class Crops:
    """Draws contents, styles and other crops; where only one kind of images is there, all are of it."""

    def __init__(self, images: dict[str, np.ndarray], kinds: dict[str, str], device: torch.device) -> None:
        held = {name: torch.from_numpy(np.array(pixels)).movedim(-1, 0).to(device) for name, pixels in images.items()}
        photographs = [image for name, image in held.items() if kinds.get(name) == PHOTOGRAPH]
        others = [image for name, image in held.items() if kinds.get(name) != PHOTOGRAPH]
        self.photographs, self.art = photographs or others, others or photographs

    def content(self, size: int, random: np.random.Generator) -> torch.Tensor:
        """(3, size, size) in [-1, 1]."""
        return cut(self._scaled(CONTENT_ART, size, random), size, random)

    def style(self, size: int, random: np.random.Generator) -> torch.Tensor:
        image = self._scaled(STYLE_ART, size, random)
        return turned_cut(image, size, random) if random.random() < TURNED else cut(image, size, random)

    def any(self, size: int, random: np.random.Generator) -> torch.Tensor:
        return cut(self._scaled(ANY_ART, size, random), size, random)

    def _scaled(self, art: float, size: int, random: np.random.Generator) -> torch.Tensor:
        """A whole image whose shorter side is one of SIDES, at least `size`."""
        group = self.art if random.random() < art else self.photographs
        image = group[random.integers(len(group))][None].float() / 127.5 - 1
        shorter = min(image.shape[2:])
        side = max(size, int(random.choice(SIDES)))
        if side == shorter:
            return image[0]
        shape = [max(side, round(length * side / shorter)) for length in image.shape[2:]]
        return F.interpolate(image, shape, mode="bilinear", antialias=True)[0]


def cut(image: torch.Tensor, size: int, random: np.random.Generator) -> torch.Tensor:
    """A crop at a random place, flipped half of the time."""
    top, left = (int(random.integers(length - size + 1)) for length in image.shape[1:])
    crop = image[:, top : top + size, left : left + size]
    return crop.flip(2) if random.random() < 0.5 else crop


def turned_cut(image: torch.Tensor, size: int, random: np.random.Generator) -> torch.Tensor:
    """A crop turned by any angle, so that strokes have all directions; reflections fill what lies outside."""
    height, width = image.shape[1:]
    angle = random.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    extent = np.array([width, height])
    centre = random.uniform(size / 2, extent - size / 2)
    # An affine map from the crop's coordinates to the image's, both from -1 to 1.
    matrix = np.concatenate([turn * size / extent[:, None], (2 * centre / extent - 1)[:, None]], 1)
    matrix = torch.tensor(matrix, dtype=torch.float32, device=image.device)
    grid = F.affine_grid(matrix[None], [1, 3, size, size], align_corners=False)
    found = F.grid_sample(image[None], grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return found[0].clamp(-1, 1)
