"""What a drawn image is judged by: distances to its style and its content. Images are (n, 3, h, w) in about [-1, 1]."""

import functools
import math

import numpy as np
import torch
from torch.nn import functional as F

from training.features import Features

LUMA = (0.299, 0.587, 0.114)
# Luma and two opponent colours.
AXES = (LUMA, (0.5, -0.5, 0.0), (0.25, 0.25, -0.5))
# The activations that stand for the content: strides 8 and 16.
CONTENT_LAYERS = (3, 4)
# How many pixels a view is shifted, and by which power of two it is scaled, at most.
SHIFT, ZOOM = 12, 0.5
# Squared differences of neighbours below which nothing is seen: one level of 255.
GRID_FLOOR = (2 / 255) ** 2


@functools.cache
def constant(values: tuple, device: torch.device) -> torch.Tensor:
    """A tensor of a device; made once, because nothing may be copied to a GPU while a step is recorded."""
    return torch.tensor(values, device=device)


def luma(images: torch.Tensor) -> torch.Tensor:
    """ITU-R BT.601 luma, (n, 1, h, w)."""
    return (images * constant(LUMA, images.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def grey(images: torch.Tensor) -> torch.Tensor:
    """Luma three times."""
    return luma(images).expand_as(images)


def views(size: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two ways to look at images of size x size pixels, drawn at random, alike but for their shifts: for `look`.

    Features have strides of 4 to 16 pixels and filters along the axes; what a network draws must not fit either. Half of
    the views have the pixels as they are, turned by quarters; the others any angle and scale. All may be flipped.
    """
    if random.random() < 0.5:
        angle, scale = random.integers(4) * math.pi / 2, 1.0
    else:
        angle, scale = random.uniform(0, 2 * math.pi), 2 ** random.uniform(-ZOOM, ZOOM)
    flip = -1 if random.random() < 0.5 else 1
    # Rounded, so that quarters are exact.
    right, down = scale * round(math.cos(angle), 9), scale * round(math.sin(angle), 9)
    turn = np.array([[flip * right, -down], [flip * down, right]])
    shifts = random.integers(-SHIFT, SHIFT + 1, (2, 2, 1)) * 2 / size
    first, second = (torch.from_numpy(np.concatenate([turn, shift], 1)[None]).float() for shift in shifts)
    return first, second


def look(images: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Images (n, c, h, w) through a view (1, 2, 3): the affine map of its coordinates, from -1 to 1, to theirs.

    The border is continued by its reflection, so that it lies within the view: marks and frames along it are seen.
    """
    grid = F.affine_grid(view.expand(len(images), -1, -1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def gram(features: torch.Tensor) -> torch.Tensor:
    """Products of channels, means over the pixels: (n, c, c)."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def relative(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distance of a to b over the size of b, for each of a batch."""
    a, b = a.flatten(1), b.flatten(1)
    return (a - b).norm(dim=1) / (b.norm(dim=1) + 1e-6)


def deviations(features: torch.Tensor) -> torch.Tensor:
    return features.std((2, 3), keepdim=True)


def normalized(features: torch.Tensor) -> torch.Tensor:
    return (features - features.mean((2, 3), keepdim=True)) / (deviations(features) + 1e-3)


class Perception(torch.nn.Module):
    """Distances of a feature network's activations."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Features()

    def forward(
        self, marks: torch.Tensor, wanted: torch.Tensor, grey: torch.Tensor, grey_content: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances of `marks` to a style, and of grey images to a content; all go through the network together.

        To the style: relative distances of Gram matrices and of deviations, mean of the layers. To the content: squared
        distance of normalized activations; of grey images, so that it holds on to no colours.
        """
        in_style, in_content = [], []
        for layer, found in enumerate(self.features(torch.cat([marks, wanted, grey, grey_content]))):
            a, b, c, d = found.chunk(4)
            in_style += [relative(gram(a), gram(b)), relative(deviations(a), deviations(b))]
            if layer in CONTENT_LAYERS:
                in_content.append((normalized(c) - normalized(d)).square().mean())
        return torch.stack(in_style).mean(), torch.stack(in_content).mean()


def random_filters_distance(images: torch.Tensor, style: torch.Tensor, count: int = 32) -> torch.Tensor:
    """Relative distance of Gram matrices of rectified random filters at four scales, drawn anew at every call."""
    total, both = images.new_zeros(()), torch.cat([images, style])
    for _ in range(4):
        filters = torch.randn(count, 3, 7, 7, device=both.device)
        filters = filters - 0.9 * filters.mean((2, 3), keepdim=True)
        filters = filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        drawn, wanted = gram(torch.relu(F.conv2d(both, filters))).chunk(2)
        total = total + relative(drawn, wanted).mean()
        both = F.avg_pool2d(both, 2)
    return total / 4


@functools.cache
def fourier(device: torch.device, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cosines and sines of the discrete Fourier transform, (side, side), and a window of unit power for images."""
    places = torch.arange(side, device=device)
    angles = 2 * math.pi / side * (places[:, None] * places % side)
    window = torch.hann_window(side, device=device)
    window = window[:, None] * window[None]
    return angles.cos(), angles.sin(), window / window.square().sum().sqrt()


def spectrum(images: torch.Tensor, side: int = 16) -> torch.Tensor:
    """Power by frequency, mean of overlapping windows: (n, axis, side, side // 2 + 1); a bin is 1 / side of a pixel."""
    x = torch.einsum("ac,nchw->nahw", constant(AXES, images.device), images)
    x = x.unfold(2, side, side // 2).unfold(3, side, side // 2)
    cosines, sines, window = fourier(images.device, side)
    x = (x - x.mean((-2, -1), keepdim=True)) * window
    half = side // 2 + 1
    real, imaginary = x @ cosines[:, :half], x @ sines[:, :half]
    real, imaginary = cosines @ real - sines @ imaginary, cosines @ imaginary + sines @ real
    return (real.square() + imaginary.square()).mean((2, 3))


@functools.cache
def frequency_rings(device: torch.device, side: int = 16) -> torch.Tensor:
    """Weights that average a spectrum over the frequencies of one length: (ring, side, side // 2 + 1)."""
    down, right = torch.fft.fftfreq(side, device=device) * side, torch.arange(side // 2 + 1.0, device=device)
    y, x = torch.meshgrid(down, right, indexing="ij")
    radius = (x.square() + y.square()).sqrt().round()
    # The first and the last column hold both of a conjugate pair, the others one.
    weight = torch.where((x == 0) | (x == side // 2), 0.5, 1.0)
    rings = torch.stack([(radius == r) * weight for r in range(1, int(radius.max()) + 1)])
    return rings / rings.sum((1, 2), keepdim=True)


def smooth(x: torch.Tensor, beta: float = 0.3) -> torch.Tensor:
    """x, squared near zero."""
    return torch.where(x < beta, 0.5 * x * x / beta, x - 0.5 * beta)


def spectra_distance(
    images: torch.Tensor, content: torch.Tensor, style: torch.Tensor, lack: float = 0.3, floor: float = 3e-4
) -> torch.Tensor:
    """How far power exceeds the style's (or half the content's), leans to directions that these do not have, or is missing.

    In logarithms of power (1 is a factor of e), ring by ring of frequencies, in three octaves. Dither is a lean to the axes.
    """
    rings = frequency_rings(images.device)
    total, three = images.new_zeros(()), torch.cat([images, content, style])
    for octave in range(3):
        if octave:
            three = F.avg_pool2d(three, 2)
        drawn, seen, wanted = (spectrum(three) + floor).chunk(3)
        excess = drawn.log() - torch.maximum(wanted, 0.5 * seen).log()
        of_ring = torch.einsum("nakl,rkl->nar", excess, rings)
        lean = excess - torch.einsum("nar,rkl->nakl", of_ring, (rings > 0).float())
        missing = wanted.log() - drawn.log()
        value = smooth(excess.relu()) + smooth(lean.relu()) + lack * smooth(missing.relu())
        total = total + torch.einsum("nakl,rkl->nar", value, rings).mean()
    return total / 3


def layout_distance(images: torch.Tensor, content: torch.Tensor, side: int = 16) -> torch.Tensor:
    """1 - correlation of the luma of 16-pixel blocks with the content's: blotches count, strokes do not."""
    a, b = (F.avg_pool2d(luma(x), side, stride=side // 2).flatten(1) for x in (images, content))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return 1 - F.cosine_similarity(a, b, dim=1, eps=0.02).mean()


def grid_distance(images: torch.Tensor, pixel: int = 4, cells: int = 8) -> torch.Tensor:
    """How far the places of a latent pixel differ in how much an image changes there: squared deviations of logarithms.

    Images know nothing of the latents' grid; boxes do: they change at the borders of latent pixels more than within.
    Neighbours' differences, along both axes, in luma and opponent colours, are first averaged over windows of `cells`
    latent pixels a side, so that flat areas count as much as others.
    """
    x = torch.einsum("ac,nchw->nahw", constant(AXES, images.device), images)
    total = images.new_zeros(())
    for along_rows in (x, x.transpose(2, 3)):
        # The first difference kept is that across a border; it and the three that follow are the places of a latent pixel.
        change = (along_rows.diff(dim=3)[..., pixel - 1 :].square() + GRID_FLOOR).sqrt().unflatten(3, (-1, pixel))
        window, stride = (cells * pixel, cells), (cells * pixel // 2, cells // 2)
        windows = F.avg_pool2d(change.movedim(4, 2).flatten(1, 2), window, stride)
        places = windows.log().unflatten(1, (-1, pixel))
        total = total + (places - places.mean(2, keepdim=True)).mean((3, 4)).square().mean()
    return total / 2


def colours_distance(drawn: torch.Tensor, wanted: torch.Tensor, directions: int = 32) -> torch.Tensor:
    """Sliced Wasserstein distance, squared, of the colours of latents, wherever they are; means of 2x2 and 4x4 pixels."""
    lines = F.normalize(torch.randn(directions, drawn.shape[1], device=drawn.device), dim=1)

    def ordered(latents: torch.Tensor, side: int) -> torch.Tensor:
        return torch.einsum("kc,nchw->nkhw", lines, F.avg_pool2d(latents, side)).flatten(2).sort().values

    return torch.stack([(ordered(drawn, s) - ordered(wanted, s)).square().mean() for s in (2, 4)]).mean()


class Patches(torch.nn.Module):
    """Distances of latents, nothing decoded: patches to a style's, and how far a content's edges moved.

    A latent pixel is a block of 4x4 pixels, so filters of 1 to 5 of them at three scales see strokes of 4 to 48 pixels.
    Channels are partly whitened: otherwise random filters see little but colours.
    """

    def __init__(self, latents: torch.Tensor, images: torch.Tensor, count: int = 48, whitening: float = 0.35) -> None:
        super().__init__()
        pixels = latents.movedim(1, -1).flatten(0, 2)
        values, vectors = torch.linalg.eigh(torch.cov(pixels.T))
        self.register_buffer("white", vectors * values.clamp_min(1e-4) ** -whitening)  # (channels, components)
        wanted = F.avg_pool2d(luma(images), 4).flatten()[:, None]
        columns = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
        self.register_buffer("luma", torch.linalg.lstsq(columns, wanted).solution[:-1, 0])
        self.count = count

    def distance(self, drawn: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Sliced Wasserstein distance of random filters' outputs, relative to their spread in the style."""
        a, b = (torch.einsum("ck,nchw->nkhw", self.white, x) for x in (drawn, style))
        parts = []
        for side, pool in ((1, 1), (3, 1), (5, 1), (3, 2), (3, 4)):
            filters = torch.randn(self.count, a.shape[1], side, side, device=a.device)
            if side > 1:  # half of them see no colour
                filters[::2] -= filters[::2].mean((2, 3), keepdim=True)
            x, y = (F.conv2d(F.avg_pool2d(v, pool), filters).flatten(2) for v in (a, b))
            spread = y.std(2, keepdim=True)
            scale = spread + 0.1 * spread.mean() + 1e-3
            parts.append(((x.sort().values - y.sort().values) / scale).abs().mean())
        return torch.stack(parts).mean()

    def moved_edges(self, drawn: torch.Tensor, content: torch.Tensor, side: int = 4) -> torch.Tensor:
        """1 - correlation of luma in small windows, weighted by the content's deviation there: flat areas are free."""
        a, b = (torch.einsum("c,nchw->nhw", self.luma, x)[:, None] for x in (drawn, content))

        def mean(x: torch.Tensor) -> torch.Tensor:
            return F.avg_pool2d(x, side, stride=2)

        mean_a, mean_b = mean(a), mean(b)
        var_a = (mean(a * a) - mean_a.square()).clamp_min(0)
        var_b = (mean(b * b) - mean_b.square()).clamp_min(0)
        correlation = (mean(a * b) - mean_a * mean_b) / (var_a * var_b + 1e-6).sqrt()
        weight = var_b.sqrt()
        return ((1 - correlation) * weight).sum() / (weight.sum() + 1e-6)
