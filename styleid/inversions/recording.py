"""Runs inversions, and keeps their features in memory, writes them to a file, or drops them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.files.checksums import first_sum, seal_sums
from styleid.files.tensors import TensorStream
from styleid.images import Pixels, pad, padded_size
from styleid.inversions.file import FEATURE_TYPES, KEEP, arrays_of, metadata_of, to_tensor
from styleid.inversions.inversion import Inversion
from styleid.models.model import Model
from styleid.progress import Report

if TYPE_CHECKING:
    from styleid._core import Features, Hook, OnAttention

Float32 = NDArray[np.float32]

FEATURES = ("memory", "host", "disk", "recompute")


@dataclass(frozen=True, eq=False)
class Prompt:
    """The prompts that the model is given, as texts and as contexts of (1, tokens, channels)."""

    text: str
    context: Float32
    negative: str = ""
    guidance: float = 1.0
    negative_context: Float32 | None = None  # None: nothing more is evaluated


@dataclass(frozen=True, eq=False)
class Recipe:
    """How images are inverted: all arguments of `styleid._core.invert` except the images and what is kept of each."""

    model: Model
    steps: int
    schedule: str
    timesteps: NDArray[np.int32]
    layers: tuple[int, ...]
    prompt: Prompt
    features: str  # one of FEATURES
    feature_dtype: str
    refine: int = 0
    seed: int | None = None
    on_step: Hook | None = None
    on_attention: OnAttention | None = None
    watched: tuple[int, ...] | None = None  # by on_attention; None: the layers

    def settings(self, keep: str) -> dict[str, object]:
        """The settings that an inversion depends on besides the image and the model."""
        return {
            "steps": self.steps, "schedule": self.schedule, "layers": list(self.layers), "keep": keep,
            "prompt": self.prompt.text, "negative_prompt": self.prompt.negative, "guidance": self.prompt.guidance,
            "feature_dtype": self.feature_dtype, "recompute": self.features == "recompute", "refine": self.refine,
            "seed": self.seed,
        }  # fmt: skip


def run_inversions(
    recipe: Recipe, images: Sequence[tuple[Pixels, str]], files: Sequence[BinaryIO], report: Report = None
) -> list[Inversion]:
    """Inverts images of one size as one batch.

    Args:
        images: each image with what is kept of it, a key of KEEP
        files: a file for each image, to write its inversion to; features are then mapped from it. Empty: they stay in memory
    """
    model, prompt = recipe.model, recipe.prompt
    latents = [model.encode(pad(pixels, model.image_multiple), recipe.seed) for pixels, _ in images]
    drafts = [_draft(recipe, pixels, keep) for pixels, keep in images]
    recordings = [Recording(file, draft) for file, draft in zip(files, drafts, strict=bool(files))]

    def sink(step: int, features: list[Features]) -> None:
        for recording, kept in zip(recordings, features, strict=True):
            recording.keep(cast("dict[str, dict[int, NDArray[Any]]]", kept))

    results = _core.invert(
        model.engine, np.concatenate(latents), prompt.context, recipe.steps, recipe.schedule,
        () if recipe.features == "recompute" else recipe.layers, [keep for _, keep in images], recipe.feature_dtype, report,
        recipe.on_step, prompt.negative_context, prompt.guidance, on_attention=recipe.on_attention,
        watched=recipe.watched, sink=sink if files else None, refine=recipe.refine,
        on_host=recipe.features == "host",
    )  # fmt: skip
    inversions = [
        replace(
            draft,
            latents=result["latents"],
            predicted=result["predicted"],
            features={"query": result["query"], "key": result["key"], "value": result["value"]},
        )
        for draft, result in zip(drafts, results, strict=True)
    ]
    if not files:
        return inversions
    return [recording.finish(whole) for recording, whole in zip(recordings, inversions, strict=True)]


def _draft(recipe: Recipe, pixels: Pixels, keep: str) -> Inversion:
    """An inversion that is still to be run: its latents are zeros, and it has no features."""
    model, prompt = recipe.model, recipe.prompt
    height, width = (side // model.vae_factor for side in padded_size(pixels.shape[:2], model.image_multiple))
    latents = np.zeros((recipe.steps + 1, model.config["unet"]["in_channels"], height, width), np.float32)
    return Inversion(
        latents=latents,
        predicted=latents[1:],
        timesteps=recipe.timesteps,
        context=prompt.context,
        layers=recipe.layers,
        schedule=recipe.schedule,
        keep=keep,
        prompt=prompt.text,
        negative_prompt=prompt.negative,
        guidance=prompt.guidance,
        fingerprint=model.fingerprint,
        features={},
        size=(pixels.shape[0], pixels.shape[1]),
        model=model,
        feature_dtype=recipe.feature_dtype,
        recompute=recipe.features == "recompute",
    )


class Recording:
    """The file of an inversion that is still running.

    Its features are written as they come, so that no more than one step's are in memory; the rest, and the header with
    the checksums, at the end.

    Args:
        file: an empty one, open for reading and writing
        draft: the inversion with arrays of the right shapes and, so far, no features
    """

    def __init__(self, file: BinaryIO, draft: Inversion) -> None:
        shapes = {name: (to_tensor(array).dtype, array.shape) for name, array in arrays_of(draft).items()}
        for kind in KEEP[draft.keep]:
            for layer in draft.layers:
                shapes[f"{kind}.{layer}"] = (FEATURE_TYPES[draft.feature_dtype], _shape(draft, layer))
        self._sums = {name: first_sum(*form) for name, form in shapes.items()}
        self._stream = TensorStream(file, shapes, seal_sums(self._sums, metadata_of(draft)))

    def keep(self, features: dict[str, dict[int, NDArray[Any]]]) -> None:
        """Writes one step's features."""
        for kind, layers in features.items():
            for layer, array in layers.items():
                self._write(f"{kind}.{layer}", array)

    def finish(self, inversion: Inversion) -> Inversion:
        """Completes the file and returns the inversion with its features mapped from it."""
        for name, array in arrays_of(replace(inversion, features={})).items():
            self._write(name, array)
        tensors = self._stream.finish(seal_sums(self._sums, metadata_of(inversion)))
        features = {
            kind: {layer: tensors[f"{kind}.{layer}"].array() for layer in layers}
            for kind, layers in inversion.features.items()
        }
        return replace(inversion, features=features)

    def _write(self, name: str, array: NDArray[Any]) -> None:
        data = to_tensor(array).data
        self._sums[name] = zlib.crc32(data, self._sums[name])
        self._stream.write(name, data)


def _shape(draft: Inversion, layer: int) -> tuple[int, int, int]:
    """The shape of a layer's features of all steps."""
    model = cast(Model, draft.model)
    height, width = model.layer_size(layer, draft.latent_size)
    return draft.steps, height * width, model.layer_channels(layer)
