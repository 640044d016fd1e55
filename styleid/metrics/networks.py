"""The networks of perceptual measures in PyTorch, as far as these measures use them, with their published weights' names.

AlexNet and VGG-19 are torchvision's, Inception v3 is torchvision's or, as `tensorflow`, that of the original FID.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Layers(nn.Module):
    """A chain of layers that returns the outputs of some of them."""

    def __init__(self, layers: Sequence[nn.Module], outputs: Sequence[int]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.outputs = outputs

    def forward(self, x: Tensor) -> list[Tensor]:
        """(n, 3, h, w) -> the outputs, each (n, c, h', w')"""
        found = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.outputs:
                found.append(x)
        return found


def alexnet() -> Layers:
    """AlexNet up to its fifth ReLU; the outputs are all five, with 64, 192, 384, 256 and 256 channels."""
    return Layers(
        [
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        ],
        outputs=(1, 4, 7, 9, 11),
    )  # fmt: skip


def vgg19() -> Layers:
    """VGG-19 up to relu3_1, its output: (n, 256, h / 4, w / 4)."""
    return Layers(
        [
            nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(),
        ],
        outputs=(11,),
    )  # fmt: skip


class Heads(nn.Module):
    """LPIPS' weights of the channels of AlexNet's five outputs."""

    def __init__(self) -> None:
        super().__init__()
        for number, channels in enumerate((64, 192, 384, 256, 256)):
            head = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{number}", nn.ModuleDict({"model": head}))

    def forward(self, distances: Sequence[Tensor]) -> Tensor:
        """(n, c, h, w) of each output -> (n,): the weighted sums over channels, means over positions, and their sum"""
        heads = [head["model"] for head in self.children()]  # type: ignore[index]
        means = [head(x).mean((1, 2, 3)) for head, x in zip(heads, distances, strict=True)]
        return torch.stack(means).sum(0)


# ---- Inception v3: Szegedy et al., CVPR 2016 ----

Step = tuple[Any, ...]  # the arguments of `_convolution` after its name
Chain = dict[str, Step]  # one after the other; names that differ in a last letter a and b are side by side


def _convolution(
    inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = True
) -> nn.Module:
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sides[0] // 2, sides[1] // 2) if same and stride == 1 else (0, 0)
    block = nn.Sequential()
    block.add_module("conv", nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False))
    block.add_module("bn", nn.BatchNorm2d(outputs, eps=0.001))
    block.add_module("relu", nn.ReLU())
    return block


class Mixed(nn.Module):
    """Chains of convolutions side by side, and a pooling with or without a convolution after it, concatenated."""

    def __init__(self, chains: Sequence[Chain], pool: Any, pooled: Step | None = None) -> None:
        super().__init__()
        self.chains = [list(chain) for chain in chains]
        self.pool = pool
        for chain in chains:
            for name, step in chain.items():
                self.add_module(name, _convolution(*step))
        self.branch_pool = _convolution(*pooled) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        branches = [self._chain(names, x) for names in self.chains]
        return torch.cat([*branches, self.branch_pool(self.pool(x))], 1)

    def _chain(self, names: Sequence[str], x: Tensor) -> Tensor:
        for name in names:
            if name.endswith("a"):
                x = torch.cat([getattr(self, name)(x), getattr(self, name[:-1] + "b")(x)], 1)
            elif not name.endswith("b"):
                x = getattr(self, name)(x)
        return x


def _a(n: int, pooled: int, pool: Any) -> Mixed:
    return Mixed(
        [
            {"branch1x1": (n, 64, 1)},
            {"branch5x5_1": (n, 48, 1), "branch5x5_2": (48, 64, 5)},
            {"branch3x3dbl_1": (n, 64, 1), "branch3x3dbl_2": (64, 96, 3), "branch3x3dbl_3": (96, 96, 3)},
        ],
        pool,
        (n, pooled, 1),
    )


def _b(n: int, pool: Any) -> Mixed:
    return Mixed(
        [
            {"branch3x3": (n, 384, 3, 2)},
            {"branch3x3dbl_1": (n, 64, 1), "branch3x3dbl_2": (64, 96, 3), "branch3x3dbl_3": (96, 96, 3, 2)},
        ],
        pool,
    )


def _c(n: int, m: int, pool: Any) -> Mixed:
    wide, high = (1, 7), (7, 1)
    return Mixed(
        [
            {"branch1x1": (n, 192, 1)},
            {"branch7x7_1": (n, m, 1), "branch7x7_2": (m, m, wide), "branch7x7_3": (m, 192, high)},
            {
                "branch7x7dbl_1": (n, m, 1), "branch7x7dbl_2": (m, m, high), "branch7x7dbl_3": (m, m, wide),
                "branch7x7dbl_4": (m, m, high), "branch7x7dbl_5": (m, 192, wide),
            },
        ],
        pool,
        (n, 192, 1),
    )  # fmt: skip


def _d(n: int, pool: Any) -> Mixed:
    return Mixed(
        [
            {"branch3x3_1": (n, 192, 1), "branch3x3_2": (192, 320, 3, 2)},
            {
                "branch7x7x3_1": (n, 192, 1), "branch7x7x3_2": (192, 192, (1, 7)), "branch7x7x3_3": (192, 192, (7, 1)),
                "branch7x7x3_4": (192, 192, 3, 2),
            },
        ],
        pool,
    )  # fmt: skip


def _e(n: int, pool: Any) -> Mixed:
    wide, high = (1, 3), (3, 1)
    return Mixed(
        [
            {"branch1x1": (n, 320, 1)},
            {"branch3x3_1": (n, 384, 1), "branch3x3_2a": (384, 384, wide), "branch3x3_2b": (384, 384, high)},
            {
                "branch3x3dbl_1": (n, 448, 1), "branch3x3dbl_2": (448, 384, 3),
                "branch3x3dbl_3a": (384, 384, wide), "branch3x3dbl_3b": (384, 384, high),
            },
        ],
        pool,
        (n, 192, 1),
    )  # fmt: skip


def inception(tensorflow: bool) -> nn.Sequential:
    """Inception v3 up to the mean of its last map: (n, 3, h, w) -> (n, 2048), h and w at least 75.

    With `tensorflow`, average pooling leaves the border's padding out of its means, and the last block pools by maximum:
    the network that FID is defined with.
    """
    reduce = partial(F.max_pool2d, kernel_size=3, stride=2)
    average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=not tensorflow)
    last = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1) if tensorflow else average
    network = nn.Sequential()
    for name, part in {
        "Conv2d_1a_3x3": _convolution(3, 32, 3, 2),
        "Conv2d_2a_3x3": _convolution(32, 32, 3, same=False),
        "Conv2d_2b_3x3": _convolution(32, 64, 3),
        "maxpool1": nn.MaxPool2d(3, 2),
        "Conv2d_3b_1x1": _convolution(64, 80, 1),
        "Conv2d_4a_3x3": _convolution(80, 192, 3, same=False),
        "maxpool2": nn.MaxPool2d(3, 2),
        "Mixed_5b": _a(192, 32, average),
        "Mixed_5c": _a(256, 64, average),
        "Mixed_5d": _a(288, 64, average),
        "Mixed_6a": _b(288, reduce),
        "Mixed_6b": _c(768, 128, average),
        "Mixed_6c": _c(768, 160, average),
        "Mixed_6d": _c(768, 160, average),
        "Mixed_6e": _c(768, 192, average),
        "Mixed_7a": _d(768, reduce),
        "Mixed_7b": _e(1280, average),
        "Mixed_7c": _e(2048, last),
        "avgpool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
    }.items():
        network.add_module(name, part)
    return network
