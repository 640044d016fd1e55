"""Functions that several commands use."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from styleid.cli.arguments import TILINGS
from styleid.images import load_image, to_array
from styleid.method.options import Mix
from styleid.models.loading import load_model
from styleid.models.model import Model


def load(options: argparse.Namespace) -> Model:
    """The model that the flags name."""
    return load_model(
        options.model,
        options.dtype,
        options.device,
        threads=options.threads,
        prediction=options.prediction,
        loras=options.lora,
        vae=options.vae,
        tiling=TILINGS[options.tiling],
        ema=options.ema,
    )


def check_inputs(options: argparse.Namespace, inputs: Sequence[str]) -> None:
    """Raises ValueError where the output would overwrite a file that is read."""
    if options.overwrite or not os.path.exists(options.output):
        return
    for path in inputs:
        if os.path.exists(path) and os.path.samefile(path, options.output):
            raise ValueError(f"{options.output}: is read as well; with --overwrite it is replaced")


def open_image(path: str) -> Image.Image:
    """The image in a file, as one of Pillow's."""
    return Image.fromarray(load_image(path))


def open_masks(mix: dict[str, Any], count: int) -> dict[str, Any]:
    """The arguments of `Mix`, with images in place of the names of their files. Raises ValueError for a wrong number."""
    for name, flag in ("masks", "--mask"), ("style_masks", "--style-mask"):
        if mix[name] is not None and len(mix[name]) != count:
            raise ValueError(f"{flag}: expected {count}, one per style, got {len(mix[name])}")
    opened = {name: mix[name] and [open_image(path) for path in mix[name]] for name in ("masks", "style_masks")}
    return mix | opened


def mix(mix: dict[str, Any], sizes: Sequence[tuple[int, ...]], how: str) -> Mix:
    """The option `Mix`, whose masks are the brightness of images that are cut as the content and the styles are."""

    def brightness(mask: Image.Image, size: tuple[int, ...]) -> NDArray[np.float64]:
        grey: NDArray[np.float64] = to_array(mask, "mask", (size[0], size[1]), how).mean(axis=2) / 255
        return grey

    masks = mix["masks"] and [brightness(mask, sizes[0]) for mask in mix["masks"]]
    style_masks = mix["style_masks"] and [
        brightness(mask, size) for mask, size in zip(mix["style_masks"], sizes[1:], strict=True)
    ]
    return Mix(mix["weights"], masks, style_masks)


def say_recommended(options: argparse.Namespace, model: Model, settings: dict[str, Any]) -> None:
    """Says which of the settings are not the paper's because the model recommends others."""
    own = {name: value for name, value in model.recommended.items() if settings.get(name, value) is None}
    if own and not options.quiet:
        print(f"styleid: as the model recommends: {listing(own)}", file=sys.stderr)


def listing(settings: Any) -> str:
    """Names and values as one line of text."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def show_progress(options: argparse.Namespace) -> bool:
    """Whether progress is shown."""
    return not options.quiet and sys.stderr.isatty()


class Latents:
    """An `on_step` that keeps the latents of a sampling.

    Attributes:
        seen: the latents of every step, each (1, C, h, w) float32
    """

    def __init__(self) -> None:
        self.seen: list[NDArray[np.float32]] = []

    def __call__(self, step: int, steps: int, latents: NDArray[np.float32]) -> None:
        """As `inject_styles` calls it."""
        self.seen.append(latents.copy())

    def image(self, model: Model, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The sampling's result before it is rounded to 8 bits, (H, W, 3) in [0, 1], cut to a shape (H, W, ...)."""
        return np.ascontiguousarray(model.decode_float(self.seen[-1])[: shape[0], : shape[1]])
