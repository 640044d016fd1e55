"""Picture scores, each defined here in full: they work on float pictures (n, 3, h, w) in [0, 1]."""

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
