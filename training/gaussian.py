"""The simplest denoiser, to compare with: latents as independent Gaussians, one mean and variance a channel."""

import torch


def fitted(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each channel, (1, c, 1, 1)."""
    return latents.mean((0, 2, 3), keepdim=True), latents.var((0, 2, 3), keepdim=True)


def loss(latents: torch.Tensor, alpha: torch.Tensor) -> float:
    """Expected error of the best noise estimate under that model, at noise level alpha.

    With x = sqrt(alpha) z + sqrt(1 - alpha) e and z of variance v, the best estimate of e leaves alpha v / (alpha v +
    1 - alpha) of its unit variance.
    """
    _, variance = fitted(latents)
    return (alpha * variance / (alpha * variance + 1 - alpha)).mean().item()
