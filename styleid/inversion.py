"""An inverted picture: its latents at every step and the attention features kept on the way."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.checksums import check_seal, seal
from styleid.images import padded_size
from styleid.loading import default_model
from styleid.model import Model
from styleid.tensors import Tensor, from_bfloat16, read_tensors, write_tensors

if TYPE_CHECKING:
    from styleid._core import Feature, InversionData

FORMAT, VERSION = "styleid inversion", "2"
UNSEALED = "1"  # the version before: without checksums, guidance, and pictures that needed padding
KEEP = {"both": ("query", "key", "value"), "query": ("query",), "keys": ("key", "value"), "none": ()}
SCHEDULES = ("paper", "diffusers", "corrected")
SAVED = ("schedule", "keep", "prompt", "fingerprint", "negative_prompt")  # as they are, in the file's metadata


@dataclass(frozen=True, eq=False, repr=False)
class Inversion:
    """What DDIM inversion made of one picture (step 2 of the method). Made by `styleid.invert` or `Inversion.load`.

    Attributes:
        latents: (steps + 1, C, h, w) float32: z0 = the input of the first evaluation, ..., zT
        timesteps: (steps,) int32, ascending; the features of slot i were kept at timesteps[i]
        context: (1, tokens, channels) float32: the prompt's context
        layers: the decoder layers whose features were kept
        size: (height, width) of the picture, to which results are cut; the latents are those of the picture padded to
            multiples of `model.image_multiple`. None: as large as the latents (files of earlier versions)
        schedule, keep, prompt: as given to `styleid.invert`
        fingerprint: of the model that made it
        features: the kept arrays themselves: "query", "key" and "value" -> layer -> (steps, tokens, channels), float32,
            or uint16 that holds the bits of bfloat16
        model: the model that made it; None for a loaded one
        negative_prompt, guidance: as given to `styleid.invert`
    """

    latents: NDArray[np.float32]
    timesteps: NDArray[np.int32]
    context: NDArray[np.float32]
    layers: tuple[int, ...]
    schedule: str
    keep: str
    prompt: str
    fingerprint: str
    features: Mapping[str, dict[int, Feature]]
    size: tuple[int, int] | None = None
    model: Model | None = None
    negative_prompt: str = ""
    guidance: float = 1.0

    @property
    def steps(self) -> int:
        """The number of evaluations."""
        return len(self.timesteps)

    @property
    def latent(self) -> NDArray[np.float32]:
        """zT: (1, C, h, w) float32, where the inversion ends."""
        return self.latents[-1:]

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.latents.shape[2], self.latents.shape[3]

    def image_size(self, model: Model) -> tuple[int, int]:
        """(H, W) of the picture: `size`, or, where that is None, what `model` decodes the latents to."""
        height, width = self.latent_size
        return self.size or (height * model.vae_factor, width * model.vae_factor)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        kept = sum(array.nbytes for layers in self.features.values() for array in layers.values())
        return self.latents.nbytes + self.context.nbytes + kept

    @property
    def data(self) -> InversionData:
        """The arrays as the functions of `styleid._core` take them."""
        return cast("InversionData", {"latents": self.latents, **self.features})

    def __repr__(self) -> str:
        channels, height, width = self.latents.shape[1:]
        return (
            f"<styleid.Inversion of {height}x{width} latents with {channels} channels, {self.steps} steps "
            f"({self.schedule}), layers {list(self.layers)}, keep {self.keep}, {self.nbytes / 1e6:.0f} MB>"
        )

    def query(self, step: int, layer: int) -> NDArray[np.float32]:
        """Q of a layer at timesteps[step]: (tokens, channels) float32, read-only; a view where kept in float32.

        ValueError where it was not kept.
        """
        return self._feature("query", step, layer)

    def key(self, step: int, layer: int) -> NDArray[np.float32]:
        """K of a layer at timesteps[step]: (tokens, channels) float32, read-only; a view where kept in float32.

        ValueError where it was not kept.
        """
        return self._feature("key", step, layer)

    def value(self, step: int, layer: int) -> NDArray[np.float32]:
        """V of a layer at timesteps[step]: (tokens, channels) float32, read-only; a view where kept in float32.

        ValueError where it was not kept.
        """
        return self._feature("value", step, layer)

    def _feature(self, kind: str, step: int, layer: int) -> NDArray[np.float32]:
        if kind not in KEEP[self.keep]:
            raise ValueError(f"{kind}: this inversion was made with keep={self.keep!r}")
        if layer not in self.layers:
            raise ValueError(f"layer: expected one of {list(self.layers)}, got {layer!r}")
        if not 0 <= step < self.steps:
            raise ValueError(f"step: expected 0 to {self.steps - 1}, got {step!r}")
        stored = self.features[kind][layer][step]
        feature = from_bfloat16(stored) if stored.dtype == np.uint16 else stored.view()
        feature.flags.writeable = False  # a change would be lost where it is a copy
        return cast(NDArray[np.float32], feature)

    def reconstruct(self, model: Model | None = None) -> NDArray[np.uint8]:
        """The picture that DDIM sampling from zT gives, under the prompts of the inversion: (H, W, 3) uint8 of its size.

        model: None: the model that made the inversion, or the default one if the inversion was loaded from a file.
        ValueError for another model.
        """
        model = model or self.model or default_model()
        self.check_model(model)
        truncate = _core.schedule(model.engine, self.schedule, self.steps)["truncate"]
        unused = np.ones((self.steps, model.layer_count), np.float32)  # gamma and temperature: nothing is injected
        negative = None if self.guidance == 1 else model.encode_prompt(self.negative_prompt)
        z0 = _core.sample(
            model.engine, self.latent, self.context, self.steps, self.schedule, (), None, (), (), unused, unused,
            negative=negative, guidance=self.guidance,
        )  # fmt: skip
        return self.crop(model.engine.decode(z0, truncate)[0])

    def crop(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A decoded picture, (H, W, 3) uint8, without what was padded; no errors."""
        return picture if self.size is None else np.ascontiguousarray(picture[: self.size[0], : self.size[1]])

    def check_model(self, model: Model, name: str = "inversion") -> None:
        """ValueError, beginning with `name`, if the inversion was made by another model."""
        if self.fingerprint != model.fingerprint:
            raise ValueError(f"{name}: was made by another model than {model!r}")
        latent = tuple(side * model.vae_factor for side in self.latent_size)
        if self.size is not None and padded_size(self.size, model.image_multiple) != latent:
            raise ValueError(f"{name}: damaged: a picture of {self.size} does not have latents of {self.latent_size}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to one safetensors file, `path`, whole or not at all. OSError where that is impossible."""
        metadata = {key: getattr(self, key) for key in SAVED}
        metadata |= {"format": FORMAT, "version": VERSION, "layers": ",".join(map(str, self.layers))}
        metadata |= {"guidance": str(self.guidance)}
        arrays: dict[str, NDArray[Any]] = {
            "latents": self.latents, "timesteps": self.timesteps, "context": self.context
        }  # fmt: skip
        arrays |= {f"{kind}.{layer}": array for kind, kept in self.features.items() for layer, array in kept.items()}
        if self.size is not None:
            metadata["size"] = "{}x{}".format(*self.size)
        tensors = {name: _to_tensor(array) for name, array in arrays.items()}
        write_tensors(path, tensors, seal(tensors, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Inversion:
        """Reads what `save` wrote to `path`. ValueError naming the file and the fact if it is anything else, or has
        changed since."""
        path = Path(path)
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path}: not an inversion of styleid")
        if metadata.get("version") not in (VERSION, UNSEALED):
            raise ValueError(
                f"{path}: version {metadata.get('version')!r} of the format; this program reads {UNSEALED} and {VERSION}"
            )
        try:
            if metadata["version"] == UNSEALED:
                metadata = {"negative_prompt": "", "guidance": "1"} | metadata
            else:
                check_seal(tensors, metadata)
            return _assemble(tensors, metadata)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: damaged inversion: {error}") from None


def _to_tensor(array: NDArray[Any]) -> Tensor:
    dtype = {"float32": "F32", "uint16": "BF16", "int32": "I32"}[array.dtype.name]
    return Tensor(dtype, array.shape, np.ascontiguousarray(array).data.cast("B"))


def _assemble(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Inversion:
    """The inversion from a file's content, after checking all of it."""
    if missing := {"latents", "timesteps", "context"} - tensors.keys():
        raise ValueError(f"{min(missing)} is missing")
    metadata = {"negative_prompt": "", "guidance": "1.0", **metadata}  # which earlier files do not have
    settings = {key: metadata[key] for key in SAVED}
    guidance = float(metadata["guidance"])
    if not math.isfinite(guidance):
        raise ValueError(f"guidance is {guidance}")
    if settings["schedule"] not in SCHEDULES or settings["keep"] not in KEEP:
        raise ValueError(f"unknown schedule {settings['schedule']!r} or keep {settings['keep']!r}")
    latents = _array(tensors, "latents", (None,) * 4, ("F32",))
    steps = len(latents) - 1
    timesteps = _array(tensors, "timesteps", (steps,), ("I32",))
    if not 2 <= steps <= 1000 or np.any(timesteps != np.minimum(1 + np.arange(steps) * (1000 // steps), 999)):
        raise ValueError(f"timesteps are not those of a schedule of {steps} steps")
    context = _array(tensors, "context", (1, None, None), ("F32",))
    layers = tuple(int(layer) for layer in metadata["layers"].split(",") if layer)
    features = _features(tensors, KEEP[settings["keep"]], layers, steps, latents.shape[2:])
    return Inversion(
        latents,
        timesteps,
        context,
        layers,
        **settings,
        features=features,
        size=_size(metadata),
        model=None,
        guidance=guidance,
    )


def _size(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """The picture's (height, width), written as HEIGHTxWIDTH."""
    text = metadata.get("size")
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text, re.ASCII)
    if not match:
        raise ValueError(f"its size is {text[:80]!r}")
    return int(match[1]), int(match[2])


def _features(
    tensors: dict[str, Tensor], kinds: tuple[str, ...], layers: tuple[int, ...], steps: int, size: tuple[int, ...]
) -> dict[str, dict[int, Feature]]:
    """The kept features by kind and layer."""
    names = tensors.keys() - {"latents", "timesteps", "context"}
    if layers != tuple(sorted(set(layers))) or names != {f"{kind}.{layer}" for kind in kinds for layer in layers}:
        raise ValueError("the features do not match what it says was kept")
    features: dict[str, dict[int, Feature]] = {"query": {}, "key": {}, "value": {}}
    for kind in kinds:
        for layer in layers:
            array = _array(tensors, f"{kind}.{layer}", (steps, None, None), ("F32", "BF16"))
            first = features[kinds[0]].get(layer, array)
            if array.shape != first.shape or not _is_level(array.shape[1], *size):
                raise ValueError(f"{kind}.{layer} has the shape {array.shape}, which does not fit the latents")
            features[kind][layer] = array
    return features


def _is_level(tokens: int, height: int, width: int) -> bool:
    """Whether a UNet level has that many tokens: the latent's height and width, both halved some times."""
    while height * width > tokens and height % 2 == 0 and width % 2 == 0:
        height, width = height // 2, width // 2
    return height * width == tokens


def _array(tensors: dict[str, Tensor], name: str, shape: tuple[int | None, ...], dtypes: tuple[str, ...]) -> Any:
    """A copy of a tensor with an expected type and shape (None: any length but 0) and finite numbers."""
    tensor = tensors[name]
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} has the type {tensor.dtype}, expected {' or '.join(dtypes)}")
    fits = len(tensor.shape) == len(shape) and all(
        length > 0 and expected in (None, length) for length, expected in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has the shape {tensor.shape}")
    array = np.frombuffer(tensor.data, {"F32": "<f4", "BF16": "<u2", "I32": "<i4"}[tensor.dtype]).copy()
    finite = (array & 0x7F80) != 0x7F80 if tensor.dtype == "BF16" else np.isfinite(array)
    if not finite.all():
        raise ValueError(f"{name} holds NaN or infinity")
    return array.reshape(tensor.shape)
