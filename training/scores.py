"""Picture scores, each defined here in full: they work on float pictures (n, 3, h, w) in [0, 1]."""

import numpy as np
import torch
from torch.nn import functional as F

LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


def luminance(image: torch.Tensor) -> torch.Tensor:
    """ITU-R BT.601 luma, (n, 1, h, w)."""
    return (image * LUMA).sum(1, keepdim=True)


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio over the three channels together, in dB, (n,)."""
    return -10 * torch.log10((a - b).square().mean((1, 2, 3)).clamp_min(1e-12))


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity of Wang et al. 2004 (Gaussian window 11, sigma 1.5), mean over the channels, (n,)."""
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


def colour_histogram(pixels: np.ndarray) -> np.ndarray:
    """Shares of a uint8 picture's colours in 8x8x8 equal boxes of RGB."""
    boxes = (pixels.reshape(-1, 3) >> 5).astype(np.int64) @ np.array([64, 8, 1])
    return np.bincount(boxes, minlength=512) / boxes.size


def hellinger(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.sqrt(max(0.0, 1 - np.sqrt(p * q).sum())))


def palette(content: np.ndarray, style: np.ndarray, result: np.ndarray) -> float:
    """Hellinger distance of the result's RGB histogram to the style's, relative to the content's. Lower is closer."""
    content, style, result = (colour_histogram(x) for x in (content, style, result))
    return hellinger(result, style) / max(hellinger(content, style), 1e-12)


def structure(content: np.ndarray, result: np.ndarray) -> float:
    """SSIM's contrast-structure term of luma, in [0, 1], over separate 8x8 blocks: its luminance term is left out."""
    a, b = (blocks(x) for x in (content, result))
    covariance = ((a - a.mean(1, keepdims=True)) * (b - b.mean(1, keepdims=True))).mean(1)
    c2 = 0.03**2
    return float(((2 * covariance + c2) / (a.var(1) + b.var(1) + c2)).mean())


def blocks(pixels: np.ndarray, side: int = 8) -> np.ndarray:
    """uint8 (h, w, 3) -> the luma of its blocks, (n, side * side) in [0, 1]."""
    luma = pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255
    height, width = (length // side * side for length in luma.shape)
    luma = luma[:height, :width].reshape(height // side, side, width // side, side)
    return luma.transpose(0, 2, 1, 3).reshape(-1, side * side)
