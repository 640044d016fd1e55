"""Measures by published networks: LPIPS, CFSD and FID. They need PyTorch (pip install styleid[metrics]) and weights.

`weights` of all functions is a folder of files under their published names (`styleid.metrics.weights.FILES`); None: what
PyTorch's and the hub's caches hold, or else a download. The definitions are those of StyleID's published evaluation:

- LPIPS (Zhang et al., CVPR 2018), version 0.1 with AlexNet
- CFSD on VGG-19's relu3_1 (Chung, Hyun, Heo, CVPR 2024)
- FID with one of two networks. "art": Inception v3 trained on paintings by Wright and Ommer (ArtFID, GCPR 2022), with
  torchvision's layers, of images in [0, 1] at their own size. "inception": that of the original FID, as pytorch-fid has
  it: images in [-1, 1], resized to 299 x 299 (bilinear, without smoothing)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from styleid.images import ImageLike, to_array
from styleid.metrics import sets
from styleid.metrics import weights as published
from styleid.metrics.weights import Folder

if TYPE_CHECKING:
    from torch import Tensor, nn

Kind = Literal["art", "inception"]

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LPIPS_MEAN, LPIPS_DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]
SMALLEST = {"alexnet": 32, "vgg19": 4, "art": 75, "inception": 1}  # sides that the layers leave something of
FID_SIDE = 299


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"LPIPS, CFSD and FID need PyTorch: pip install styleid[metrics] ({error})") from None
    return torch


def lpips(image: ImageLike, reference: ImageLike, weights: Folder = None) -> float:
    r"""The learned perceptual distance (LPIPS) of `image` and `reference`, which have one size of at least 32 x 32:

    $$\sum_l \mathrm{mean}_p \sum_c w_{lc} (x_{lc}(p) / |x_l(p)| - y_{lc}(p) / |y_l(p)|)^2$$

    over AlexNet's five ReLUs l, the positions p and channels c of their outputs x and y, and the learned weights w.

    Raises:
        TypeError, ValueError: as `styleid.to_array`; sizes that differ or are too small; weights that are not there
    """
    torch = _torch()
    x, y = _pair(image, reference, "alexnet")
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (LPIPS_MEAN, LPIPS_DEVIATION))
    network, heads = _network("alexnet", weights), _network("lpips", weights)
    with torch.inference_mode():
        maps = network((2 * torch.cat([x, y]) - 1 - mean) / deviation)
        unit = [each / (each.square().sum(1, keepdim=True).sqrt() + 1e-10) for each in maps]
        return float(heads([(each[:1] - each[1:]).square() for each in unit]))


def cfsd(image: ImageLike, content: ImageLike, weights: Folder = None) -> float:
    """The content feature structural distance of a result to its content: `structural_distance` of VGG-19's relu3_1.

    It compares the similarities within each image, and not the features of one image with those of the other. The two
    images have one size. Memory grows with height x width, work with its square.

    Raises:
        TypeError, ValueError: as `styleid.to_array`; sizes that differ or are too small; weights that are not there
    """
    torch = _torch()
    x, y = _pair(image, content, "vgg19")
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    with torch.inference_mode():
        (maps,) = _network("vgg19", weights)((torch.cat([x, y]) - mean) / deviation)
    return sets.structural_distance(maps[0].numpy(), maps[1].numpy())


def inception_features(images: Iterable[ImageLike], kind: Kind = "art", weights: Folder = None) -> NDArray[np.float32]:
    """What FID compares: (n, 2048) float32, one row for each of the images, which may differ in size.

    Args:
        images: as `styleid.to_array` takes them; for "art" at least 75 x 75
        kind: "art" or "inception", see above
        weights: see above

    Raises:
        TypeError, ValueError: as `styleid.to_array`; images that are too small; weights that are not there
    """
    torch = _torch()
    if kind not in ("art", "inception"):
        raise ValueError(f"kind: expected 'art' or 'inception', got {kind!r}")
    network = _network(kind, weights)
    rows = []
    with torch.inference_mode():
        for number, image in enumerate(images):
            x = _tensor(image, f"images[{number}]", SMALLEST[kind])
            if kind == "inception":
                x = (
                    2 * torch.nn.functional.interpolate(x, (FID_SIDE, FID_SIDE), mode="bilinear", align_corners=False)
                    - 1
                )
            rows.append(network(x)[0].numpy())
    return np.array(rows, np.float32)


def fid(
    images: Iterable[ImageLike], references: Iterable[ImageLike], kind: Kind = "art", weights: Folder = None
) -> float:
    """`frechet_distance` of the `inception_features` of two sets, `images` and `references`, of at least two images each.

    `kind`, `weights` and errors are those of `inception_features`.
    """
    return sets.frechet_distance(*(inception_features(each, kind, weights) for each in (images, references)))


def _network(name: str, weights: Folder) -> nn.Module:
    return _loaded(name, None if weights is None else os.fspath(weights))


@lru_cache(maxsize=8)
def _loaded(name: str, folder: str | None) -> nn.Module:
    from styleid.metrics import networks

    makers: dict[str, Callable[[], nn.Module]] = {
        "alexnet": networks.alexnet,
        "lpips": networks.Heads,
        "vgg19": networks.vgg19,
        "art": partial(networks.inception, tensorflow=False),
        "inception": partial(networks.inception, tensorflow=True),
    }
    return published.load(name, makers[name](), folder)


def _tensor(image: ImageLike, name: str, smallest: int) -> Tensor:
    """(1, 3, h, w) float32 in [0, 1]"""
    pixels = to_array(image, name)
    if min(pixels.shape[:2]) < smallest:
        raise ValueError(f"{name}: expected at least {smallest} pixels each way, got {pixels.shape[:2]}")
    tensor: Tensor = _torch().from_numpy(np.array(pixels.transpose(2, 0, 1)[np.newaxis], np.float32))
    return tensor / 255 if pixels.dtype == np.uint8 else tensor


def _pair(image: ImageLike, reference: ImageLike, network: str) -> tuple[Tensor, Tensor]:
    x, y = _tensor(image, "image", SMALLEST[network]), _tensor(reference, "reference", SMALLEST[network])
    if x.shape != y.shape:
        raise ValueError(f"reference: the shape is {tuple(y.shape[2:])}, but image's is {tuple(x.shape[2:])}")
    return x, y
