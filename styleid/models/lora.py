"""LoRA files: low-rank changes of a model's linear and convolution layers, merged into its weights.

W' = W + weight * alpha / rank * up down (Hu et al., LoRA, 2022). With 3x3 convolutions `down` is the 3x3 one and `up`
a 1x1 one. Two namings: kohya-ss's `lora_unet_<path with _>.lora_down.weight`, and diffusers' `unet.<path>.lora_A.weight`
with its older spellings.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from styleid.files.tensors import Tensor
from styleid.models.weights import read_weights

if TYPE_CHECKING:
    from styleid._core import Weight

Lora = tuple[Path, float]  # a file, and the weight of its change

KINDS = {  # how a tensor's name ends -> what it is
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
}
# How a layer's name begins -> the engine's. The dots of kohya's names are underscores.
PREFIXES = {
    "lora_unet_": "unet_",
    "lora_te_text_model_": "text_",
    "unet.": "unet.",
    "text_encoder.text_model.": "text.",
    "text_encoder.": "text.",
    "": "unet.",  # files with nothing but a UNet's changes
}


class Change(NamedTuple):
    """What a file says about one layer."""

    down: NDArray[np.float32]  # (rank, inputs, ...)
    up: NDArray[np.float32]  # (outputs, rank, ...)
    scale: float  # alpha / rank


def merge(weights: Mapping[str, Weight], loras: Sequence[Lora]) -> dict[str, Weight]:
    """The weights with all changes; those that change become float32. ValueError naming the file and the layer."""
    merged = dict(weights)
    layers = {name.removesuffix(".weight"): name for name in weights if name.endswith(".weight")}
    layers |= {name.replace(".", "_"): full for name, full in layers.items()}
    for path, weight in loras:
        for layer, change in read_lora(path).items():
            if layer not in layers:
                raise ValueError(f"{path}: this model has no layer {layer[:120]!r}")
            name = layers[layer]
            try:
                merged[name] = _add(merged[name], change, weight)
            except ValueError as error:
                raise ValueError(f"{path}: {name}: {error}") from None
    return merged


def check(loras: Sequence[tuple[str | os.PathLike[str], float]]) -> list[Lora]:
    """The argument `loras` of `load_model`. TypeError or ValueError unless it is pairs of a path and a number."""
    checked = []
    for item in loras:
        if not isinstance(item, (tuple, list)) or len(item) != 2 or not isinstance(item[0], (str, os.PathLike)):
            raise TypeError(f"loras: expected pairs of a path and a weight, got {item!r}")
        if type(item[1]) not in (int, float) or not math.isfinite(item[1]):
            raise ValueError(f"loras: expected a number as the weight of {item[0]}, got {item[1]!r}")
        checked.append((Path(item[0]), float(item[1])))
    return checked


def read_lora(path: Path) -> dict[str, Change]:
    """The changes by layers' names, the engine's or those with _ for each dot. ValueError naming file and tensor."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_weights(path)[0].items():
        ending = next((ending for ending in KINDS if name.endswith(ending)), None)
        if ending is None:
            raise ValueError(f"{path}: {name[:120]!r} is no part of a LoRA for UNet or text encoder")
        prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
        layer = PREFIXES[prefix] + name[len(prefix) :].removesuffix(ending)
        layer = re.sub(r"\.processor\.", ".", layer)
        if ending.startswith("_") and layer.endswith(".to_out"):
            layer += ".0"
        if KINDS[ending] in found.setdefault(layer, {}):
            raise ValueError(f"{path}: {name[:120]!r} is there under two names")
        found[layer][KINDS[ending]] = tensor
    if not found:
        raise ValueError(f"{path}: holds no tensors")
    return {layer: _change(path, layer, tensors) for layer, tensors in found.items()}


def _change(path: Path, layer: str, tensors: Mapping[str, Tensor]) -> Change:
    arrays = {}
    for kind, tensor in tensors.items():
        if tensor.dtype not in ("F32", "F16", "BF16"):
            raise ValueError(f"{path}: {layer[:120]}: {kind} has the type {tensor.dtype}, expected F32, F16 or BF16")
        arrays[kind] = tensor.float32()
    if missing := {"down", "up"} - arrays.keys():
        raise ValueError(f"{path}: {layer[:120]}: {missing.pop()} is missing")
    down, up, alpha = arrays["down"], arrays["up"], arrays.get("alpha")
    fits = down.ndim in (2, 4) and up.ndim == down.ndim and up.shape[1:] == (len(down), *[1] * (up.ndim - 2))
    if not fits or not down.size or not up.size:
        raise ValueError(f"{path}: {layer[:120]}: down {down.shape} and up {up.shape} do not fit each other")
    if alpha is not None and alpha.size != 1:
        raise ValueError(f"{path}: {layer[:120]}: alpha has the shape {alpha.shape}, expected one number")
    return Change(down, up, 1.0 if alpha is None else float(alpha.item()) / len(down))


def _add(weight: Weight, change: Change, strength: float) -> Weight:
    """W + strength * scale * up down, in float32."""
    old = Tensor(weight["dtype"], tuple(weight["shape"]), weight["data"]).float32()
    down, up = (array.reshape(len(array), -1) for array in (change.down, change.up))
    shape = (len(up), *change.down.shape[1:])
    if _matrix(shape) != _matrix(old.shape):
        raise ValueError(f"its change has the shape {shape}, but the model's layer {old.shape}")
    with np.errstate(all="ignore"):  # becomes infinity or NaN, which is refused below
        new = old + np.float32(strength * change.scale) * (up @ down).reshape(old.shape)
    if not np.isfinite(new).all():
        raise ValueError("the changed weights hold NaN or infinity")
    return {"dtype": "F32", "shape": new.shape, "data": new.data}


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """1x1 convolutions and linear layers are the same."""
    return shape[:2] if shape[2:] == (1, 1) else shape
