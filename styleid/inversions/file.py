"""The file of an inversion: safetensors with checksums, written as a whole or while it is made, read after checks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.files.checksums import check_seal
from styleid.files.tensors import Tensor, read_tensors, release

if TYPE_CHECKING:
    from styleid._core import Feature
    from styleid.inversions.inversion import Inversion

FORMAT, VERSION = "styleid inversion", "1"
FEATURE_TYPES = dict(zip(_core.DTYPES, ("F32", "BF16", "F16"), strict=True))  # in the words of safetensors
KEEP = {"both": ("query", "key", "value"), "query": ("query",), "keys": ("key", "value"), "none": ()}
SMALL = ("latents", "predicted", "timesteps", "context")  # arrays beside the features
SAVED = ("schedule", "keep", "prompt", "fingerprint", "negative_prompt")  # as they are, in the file's metadata


def arrays_of(inversion: Inversion) -> dict[str, NDArray[Any]]:
    """All arrays of an inversion, by their names in a file."""
    small = {name: getattr(inversion, name) for name in SMALL}
    kept = inversion.features.items()
    return small | {f"{kind}.{layer}": array for kind, layers in kept for layer, array in layers.items()}


def metadata_of(inversion: Inversion) -> dict[str, str]:
    """The metadata of a file, without checksums."""
    metadata = {key: getattr(inversion, key) for key in SAVED}
    metadata |= {"format": FORMAT, "version": VERSION, "layers": ",".join(map(str, inversion.layers))}
    metadata |= {"guidance": str(inversion.guidance), "size": "{}x{}".format(*inversion.size)}
    if inversion.recompute:
        metadata["recompute"] = inversion.feature_dtype
    return metadata


def to_tensor(array: NDArray[Any]) -> Tensor:
    """The same memory, where it is dense, as a tensor of a file."""
    dtype = {"float32": "F32", "uint16": "BF16", "float16": "F16", "int32": "I32"}[array.dtype.name]
    return Tensor(dtype, array.shape, np.ascontiguousarray(array).data.cast("B"))


def read_fields(path: Path, mapped: bool) -> dict[str, Any]:
    """An Inversion's fields from its file. Raises a ValueError that names the file and the fact if the file is damaged, or
    anything else."""
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: not an inversion of styleid")
    if metadata.get("version") != VERSION:
        raise ValueError(f"{path}: version {metadata.get('version')!r} of the format; this program reads {VERSION}")
    try:
        check_seal(tensors, metadata)
        return _fields(tensors, metadata, mapped)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: damaged inversion: {error}") from None


def _fields(tensors: dict[str, Tensor], metadata: Mapping[str, str], mapped: bool) -> dict[str, Any]:
    """The fields from a file's content, after checking all of it."""
    if missing := set(SMALL) - tensors.keys():
        raise ValueError(f"{min(missing)} is missing")
    settings: dict[str, Any] = {key: metadata[key] for key in SAVED}
    guidance = float(metadata["guidance"])
    if not math.isfinite(guidance):
        raise ValueError(f"guidance is {guidance}")
    if settings["schedule"] not in _core.SCHEDULES or settings["keep"] not in KEEP:
        raise ValueError(f"unknown schedule {settings['schedule']!r} or keep {settings['keep']!r}")
    latents = _array(tensors, "latents", (None,) * 4, ("F32",))
    steps = len(latents) - 1
    timesteps = _array(tensors, "timesteps", (steps,), ("I32",))
    if np.any(timesteps != _core.timesteps(steps)):
        raise ValueError(f"timesteps are not those of a schedule of {steps} steps")
    context = _array(tensors, "context", (1, None, None), ("F32",))
    predicted = _array(tensors, "predicted", (steps, *latents.shape[1:]), ("F32",))
    layers = tuple(int(layer) for layer in metadata["layers"].split(",") if layer)
    recompute = metadata.get("recompute")
    if recompute is not None and recompute not in FEATURE_TYPES:
        raise ValueError(f"features to be computed again in {recompute[:80]!r}")
    kinds = KEEP[settings["keep"]] if recompute is None else ()
    features = _features(tensors, kinds, layers, steps, latents.shape[2:], mapped)
    arrays = [array for kept in features.values() for array in kept.values()]
    stored = arrays[0].dtype.name if arrays else "float32"
    return settings | {
        "latents": latents,
        "timesteps": timesteps,
        "context": context,
        "layers": layers,
        "features": features,
        "size": _size(metadata["size"]),
        "guidance": guidance,
        "predicted": predicted,
        "feature_dtype": recompute or {"uint16": "bfloat16"}.get(stored, stored),
        "recompute": recompute is not None,
    }


def _size(text: str) -> tuple[int, int]:
    """The image's (height, width), written as HEIGHTxWIDTH."""
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text, re.ASCII)
    if not match:
        raise ValueError(f"its size is {text[:80]!r}")
    return int(match[1]), int(match[2])


def _features(
    tensors: dict[str, Tensor],
    kinds: tuple[str, ...],
    layers: tuple[int, ...],
    steps: int,
    size: tuple[int, ...],
    mapped: bool,
) -> dict[str, dict[int, Feature]]:
    """The kept features by kind and layer."""
    names = tensors.keys() - set(SMALL)
    if layers != tuple(sorted(set(layers))) or names != {f"{kind}.{layer}" for kind in kinds for layer in layers}:
        raise ValueError("the features do not match what it says was kept")
    features: dict[str, dict[int, Feature]] = {"query": {}, "key": {}, "value": {}}
    for kind in kinds:
        for layer in layers:
            array = _array(tensors, f"{kind}.{layer}", (steps, None, None), tuple(FEATURE_TYPES.values()), mapped)
            first = features[kinds[0]].get(layer, array)
            if array.shape != first.shape or level_size(array.shape[1], size) is None:
                raise ValueError(f"{kind}.{layer} has the shape {array.shape}, which does not fit the latents")
            features[kind][layer] = array
    return features


def level_size(tokens: int, latent_size: tuple[int, ...]) -> tuple[int, int] | None:
    """(h, w) of the UNet's level that has so many tokens: the latent's height and width, both halved some times; None where
    there is none."""
    height, width = latent_size
    while height * width > tokens and height % 2 == 0 and width % 2 == 0:
        height, width = height // 2, width // 2
    return (height, width) if height * width == tokens else None


def _array(
    tensors: dict[str, Tensor],
    name: str,
    shape: tuple[int | None, ...],
    dtypes: tuple[str, ...],
    mapped: bool = False,
) -> Any:
    """A tensor, or a copy of it, with an expected type and shape (None: any length but 0) and finite numbers."""
    tensor = tensors[name]
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} has the type {tensor.dtype}, expected {' or '.join(dtypes)}")
    fits = len(tensor.shape) == len(shape) and all(
        length > 0 and expected in (None, length) for length, expected in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has the shape {tensor.shape}")
    array: NDArray[Any] = tensor.array()
    if not mapped:
        array = array.copy()
    for part in array:  # one after the other, so that a mapped array is not in memory as a whole
        finite = (part & 0x7F80) != 0x7F80 if tensor.dtype == "BF16" else np.isfinite(part)
        if not finite.all():
            raise ValueError(f"{name} holds NaN or infinity")
        release(tensor.data)
    return array
