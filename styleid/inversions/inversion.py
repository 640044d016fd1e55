"""An inverted image: its latents at every step and the attention features kept on the way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.files.checksums import seal
from styleid.files.tensors import from_bfloat16, mapping_of, release, write_tensors
from styleid.images import padded_size
from styleid.inversions.file import KEEP, SMALL, arrays_of, metadata_of, read_fields, to_tensor
from styleid.inversions.html import inversion_html, thumbnail_png
from styleid.models.loading import default_model
from styleid.models.model import Model
from styleid.numbers import whole

if TYPE_CHECKING:
    from styleid._core import Feature, InversionData, Recomputed


@dataclass(frozen=True, eq=False, repr=False)
class Inversion:
    """The result of the DDIM inversion of one image (step 2 of the method). Made by `styleid.invert` or `Inversion.load`.

    Attributes:
        latents: (steps + 1, C, h, w) float32: z0 = the input of the first evaluation, ..., zT
        timesteps: (steps,) int32, ascending; the features of slot i were kept at timesteps[i]
        context: (1, tokens, channels) float32: the context of the prompt
        layers: the decoder layers whose features were kept
        size: (height, width) of the image, to which results are cut; the latents are those of the image padded to
            multiples of `model.image_multiple`
        schedule, keep, prompt: as given to `styleid.invert`
        fingerprint: that of the model that made it
        features: the kept arrays themselves: "query", "key" and "value" -> layer -> (steps, tokens, channels), float32,
            or uint16 that holds the bits of bfloat16; read-only where they lie in a mapped file
        model: the model that made it; None for a loaded one
        negative_prompt, guidance: the `styleid.Text` that was given to `styleid.invert`
        predicted: (steps, C, h, w) float32: the x0 that each evaluation predicts, see `styleid.invert`
        feature_dtype: "float32", "bfloat16" or "float16": the type that the features are kept in
        recompute: whether features are not kept, but evaluated again from `latents` whenever they are needed
    """

    latents: NDArray[np.float32]
    predicted: NDArray[np.float32]
    timesteps: NDArray[np.int32]
    context: NDArray[np.float32]
    layers: tuple[int, ...]
    schedule: str
    keep: str
    prompt: str
    negative_prompt: str
    guidance: float
    fingerprint: str
    features: Mapping[str, dict[int, Feature]]
    feature_dtype: str
    recompute: bool
    size: tuple[int, int]
    model: Model | None = None

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

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, in memory or in a mapped file."""
        return sum(array.nbytes for array in arrays_of(self).values())

    @property
    def data(self) -> InversionData | Recomputed:
        """The arrays as the functions of `styleid._core` take them."""
        if self.recompute:
            return {"latents": self.latents, "context": self.context, "feature_dtype": self.feature_dtype}
        return cast("InversionData", {"latents": self.latents, **self.features})

    def __repr__(self) -> str:
        channels, height, width = self.latents.shape[1:]
        return (
            f"<styleid.Inversion of {height}x{width} latents with {channels} channels, {self.steps} steps "
            f"({self.schedule}), layers {list(self.layers)}, keep {self.keep}"
            f"{', recomputed' if self.recompute else ''}, {self.nbytes / 1e6:.0f} MB>"
        )

    def thumbnail(self) -> NDArray[np.uint8] | None:
        """The decoded image that the first evaluation predicts: (H, W, 3) uint8; None for an inversion from a file, which
        has no model."""
        if self.model is None:
            return None
        return self.crop(self.model.decode(self.predicted[:1]))

    def _repr_html_(self) -> str:
        """What a notebook shows: the thumbnail and a table of facts."""
        return inversion_html(self)

    def _repr_png_(self) -> bytes | None:
        """The thumbnail, where a notebook shows no HTML."""
        return self._png

    @cached_property
    def _png(self) -> bytes | None:  # decoded once, though a notebook asks for HTML and PNG
        return thumbnail_png(self)

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
        step = whole("step", step, 0, self.steps - 1)
        if layer not in self.layers:
            raise ValueError(f"layer: expected one of {list(self.layers)}, got {layer!r}")
        layer = int(layer)
        stored: NDArray[Any] = self._evaluate(kind, step, layer) if self.recompute else self.features[kind][layer][step]
        feature: NDArray[np.float32]
        if stored.dtype == np.uint16:
            feature = from_bfloat16(stored)
        else:
            feature = stored.astype(np.float32, copy=False).view()
        feature.flags.writeable = False  # a change would be lost where it is a copy
        return feature

    def _evaluate(self, kind: str, step: int, layer: int) -> Feature:
        """A feature of one step, made by an evaluation up to its layer."""
        model = self.model or default_model()
        self.check_model(model)
        features = _core.features(
            model.engine, self.latents[step : step + 1], self.context, self.steps, self.schedule, (layer,), (self.keep,),
            self.feature_dtype, step,
        )[0]  # fmt: skip
        feature: Feature = cast("Mapping[str, dict[int, Feature]]", features)[kind][layer][0]
        return feature

    def __deepcopy__(self, memo: object) -> Inversion:
        """A copy with copies of all arrays except mapped ones, which cannot change; the model is the same object."""
        copies: dict[str, Any] = {name: getattr(self, name).copy() for name in SMALL}
        features = {
            kind: {layer: array if mapping_of(array) else array.copy() for layer, array in layers.items()}
            for kind, layers in self.features.items()
        }
        return replace(self, **copies, features=features)

    @property
    def mapped(self) -> bool:
        """Whether the features lie in a mapped file."""
        return any(mapping_of(array) is not None for array in arrays_of(self).values())

    def release(self) -> None:
        """Gives back the memory that mapped features take up in this process after they were read."""
        for array in arrays_of(self).values():
            release(array)

    def reconstruct(self, model: Model | None = None) -> NDArray[np.uint8]:
        """The image that DDIM sampling from zT gives, under the prompts of the inversion: (H, W, 3) uint8 of its size.

        model: None: the model that made the inversion, or the default one if the inversion was loaded from a file.
        ValueError for another model.
        """
        model = model or self.model or default_model()
        self.check_model(model)
        unused = np.ones((self.steps, model.layer_count), np.float32)  # gamma and temperature: nothing is injected
        negative = None if self.guidance == 1 else model.encode_prompt(self.negative_prompt)
        image = _core.inject_styles(
            model.engine, self.latent, self.context, self.steps, self.schedule, (), None, (), (), unused, unused,
            negative=negative, guidance=self.guidance,
        )  # fmt: skip
        return self.crop(image)

    def crop(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A decoded image, (H, W, 3) uint8, without the padding; it raises no errors."""
        return np.ascontiguousarray(image[: self.size[0], : self.size[1]])

    def check_model(self, model: Model, name: str = "inversion") -> None:
        """Raises a ValueError that begins with `name` if the inversion was made by another model."""
        if self.fingerprint != model.fingerprint:
            raise ValueError(f"{name}: was made by another model than {model!r}")
        latent = tuple(side * model.vae_factor for side in self.latent_size)
        if padded_size(self.size, model.image_multiple) != latent:
            raise ValueError(f"{name}: damaged: an image of {self.size} does not have latents of {self.latent_size}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to one safetensors file, `path`, whole or not at all. Raises OSError where that is impossible."""
        tensors = {name: to_tensor(array) for name, array in arrays_of(self).items()}
        write_tensors(path, tensors, seal(tensors, metadata_of(self)))

    @classmethod
    def load(cls, path: str | os.PathLike[str], mapped: bool = False) -> Inversion:
        """Reads what `save` wrote to `path`.

        With `mapped` the features stay in the file, which is checked as a whole, and are read when they are used. The file
        may be removed or replaced meanwhile; but a program that shortens it in place ends this process, and one that
        writes into it changes the features.

        Raises a ValueError that names the file and the fact if the file is anything else, or has changed.
        """
        return cls(**read_fields(Path(path), mapped))
