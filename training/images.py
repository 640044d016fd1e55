"""Reading a folder of images, and cutting training crops from them."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SMALLEST_SIDE = 96
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Returns an image as uint8 (h, w, 3), grey ones included; raises ValueError when it cannot serve."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be read ({error})") from error
    if min(pixels.shape[:2]) < SMALLEST_SIDE:
        raise ValueError(f"is {pixels.shape[1]}x{pixels.shape[0]}, smaller than {SMALLEST_SIDE} pixels")
    if np.ptp(pixels) == 0:
        raise ValueError("is a single flat colour")
    return pixels


def read_folder(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads every usable image under a folder, by name in sorted order; says which ones it skips, and why."""
    images = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        try:
            images[str(path.relative_to(folder))] = read_image(path)
        except ValueError as error:
            print(f"skipped {path.name}: {error}", flush=True)
    if not images:
        raise SystemExit(f"no usable images in {folder}")
    return images


def resized(pixels: np.ndarray, shorter_side: int) -> np.ndarray:
    """Scales an image down so that its shorter side has the given length; smaller images stay as they are."""
    height, width = pixels.shape[:2]
    scale = shorter_side / min(height, width)
    if scale >= 1:
        return pixels
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.LANCZOS))


def centre_square(pixels: np.ndarray, side: int) -> np.ndarray:
    """Centre-crops to a square and scales it (up as well as down) to side x side."""
    height, width = pixels.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = Image.fromarray(pixels[top : top + edge, left : left + edge])
    return np.asarray(square.resize((side, side), Image.LANCZOS))


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (..., h, w, 3) -> float32 (..., 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.array(pixels)).movedim(-1, -3).float() / 127.5 - 1


def to_pixels(image: torch.Tensor) -> np.ndarray:
    """float (3, h, w) in [-1, 1] -> uint8 (h, w, 3)."""
    return ((image.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1).cpu().numpy()


class CropSampler:
    """Random square crops, flipped half of the time, from every image at several scales."""

    def __init__(self, images: list[np.ndarray], shorter_sides: tuple[int, ...], crop: int) -> None:
        self.crop = crop
        self.scales = [[resized(pixels, max(side, crop)) for pixels in images] for side in shorter_sides]

    def batch(self, count: int, random: np.random.Generator) -> torch.Tensor:
        """(count, 3, crop, crop) in [-1, 1]."""
        return to_tensor(np.stack([self._one(random) for _ in range(count)]))

    def _one(self, random: np.random.Generator) -> np.ndarray:
        scale = self.scales[random.integers(len(self.scales))]
        pixels = scale[random.integers(len(scale))]
        top = random.integers(pixels.shape[0] - self.crop + 1)
        left = random.integers(pixels.shape[1] - self.crop + 1)
        cut = pixels[top : top + self.crop, left : left + self.crop]
        return cut[:, ::-1] if random.random() < 0.5 else cut
