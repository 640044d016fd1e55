"""Changes of colour: random ones, and the exact one that gives a picture the palette of another."""

import numpy as np
import torch


def jittered(images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Random palettes for pictures (n, 3, h, w) in [-1, 1]: colours mixed, inverted at times, darker or lighter."""
    return torch.stack([_jittered_one(image, random) for image in images])


def _jittered_one(image: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    light = ((image + 1) / 2).clamp(0, 1) ** float(np.exp(random.uniform(-0.7, 0.7)))
    mix = torch.from_numpy(_colour_mix(random)).float()
    centre = light.mean((1, 2), keepdim=True)
    changed = torch.einsum("ij,jhw->ihw", mix, light - centre)
    target = centre + torch.from_numpy(random.normal(0, 0.12, (3, 1, 1))).float()
    return ((changed + target) * 2 - 1).clamp(-1, 1)


def _colour_mix(random: np.random.Generator) -> np.ndarray:
    """A matrix on RGB: rotation of the hues, then saturation and contrast; one in eight is a negative."""
    angle = random.uniform(-np.pi, np.pi)
    grey = np.full((3, 3), 1 / 3)
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    rotation = np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * axis
    contrast = random.uniform(0.6, 1.3) * (-1 if random.random() < 0.125 else 1)
    return contrast * grey + random.uniform(0, 1.6) * rotation


def palette_moved(image: torch.Tensor, style: torch.Tensor, rounds: int = 3, seed: int = 0) -> torch.Tensor:
    """Gives `image` the palette of `style` (both (3, h, w) in [-1, 1]) and keeps its layout.

    First the linear map between the two colour distributions that moves colours least (it matches mean and
    covariance), then a few rounds of histogram matching along three rotated axes, which bring the rest closer.
    """
    colours, target = (x.flatten(1).double().numpy() for x in (image, style))
    moved = _linear_transport(colours, target)
    random = np.random.default_rng(seed)
    for _ in range(rounds):
        axes = np.linalg.qr(random.normal(size=(3, 3)))[0]
        step = np.stack([_match(a @ moved, a @ target) for a in axes])
        # Half a step a round: full ones would amplify grain in flat areas.
        moved = moved + 0.5 * axes.T @ (step - axes @ moved)
    return torch.from_numpy(moved).float().view_as(image).clamp(-1, 1)


def _linear_transport(colours: np.ndarray, target: np.ndarray) -> np.ndarray:
    mean, target_mean = colours.mean(1, keepdims=True), target.mean(1, keepdims=True)
    floor = 1e-3 * np.eye(3)
    covariance, target_covariance = np.cov(colours) + floor, np.cov(target) + floor
    root = _root(covariance)
    inverse = np.linalg.inv(root)
    matrix = inverse @ _root(root @ target_covariance @ root) @ inverse
    return matrix @ (colours - mean) + target_mean


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _match(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Histogram matching in one dimension, by quantiles."""
    quantiles = np.linspace(0, 1, 65)
    return np.interp(values, np.quantile(values, quantiles), np.quantile(target, quantiles))
