"""Inversions as they run, and what becomes of their features: kept in memory, written to a file, or forgotten."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.files.checksums import first_sum, seal_sums
from styleid.files.tensors import TensorStream
from styleid.images import Pixels, pad, padded_size
from styleid.inversions.file import KEEP, arrays_of, metadata_of, to_array, to_tensor
from styleid.inversions.inversion import Inversion
from styleid.models.model import Model
from styleid.progress import Report

if TYPE_CHECKING:
    from styleid._core import Features, Hook, OnAttention

FEATURES = ("memory", "disk", "recompute")


def draft_of(
    model: Model,
    pixels: Pixels,
    timesteps: NDArray[np.int32],
    schedule: str,
    layers: tuple[int, ...],
    keep: str,
    prompt: str,
    context: NDArray[np.float32],
    feature_dtype: str,
    recompute: bool = False,
) -> Inversion:
    """An inversion that is still to be run: its latents are zeros, and it has no features."""
    height, width = (side // model.vae_factor for side in padded_size(pixels.shape[:2], model.image_multiple))
    latents = np.zeros((len(timesteps) + 1, model.config["unet"]["in_channels"], height, width), np.float32)
    return Inversion(
        latents=latents,
        timesteps=timesteps,
        context=context,
        layers=layers,
        schedule=schedule,
        keep=keep,
        prompt=prompt,
        fingerprint=model.fingerprint,
        features={},
        size=(pixels.shape[0], pixels.shape[1]),
        model=model,
        predicted=latents[1:],
        feature_dtype=feature_dtype,
        recompute=recompute,
    )


def run_inversions(
    drafts: Sequence[Inversion],
    pictures: Sequence[Pixels],
    files: Sequence[BinaryIO],
    negative: NDArray[np.float32] | None = None,
    report: Report = None,
    on_step: Hook | None = None,
    on_attention: OnAttention | None = None,
    refine: int = 0,
    seed: int | None = None,
) -> list[Inversion]:
    """Inverts pictures of one size as one batch.

    drafts: what is known of each before: all but the numbers; made alike, but for what they keep
    files: one for each, to write it to; the features are then mapped from there. Empty: they stay in memory
    """
    one = drafts[0]
    model = cast(Model, one.model)
    latents = [model.encode(pad(picture, model.image_multiple), seed) for picture in pictures]
    recordings = [Recording(file, draft) for file, draft in zip(files, drafts, strict=bool(files))]

    def sink(step: int, features: list[Features]) -> None:
        for recording, kept in zip(recordings, features, strict=True):
            recording.keep(cast("dict[str, dict[int, NDArray[Any]]]", kept))

    results = _core.invert(
        model.engine, np.concatenate(latents), one.context, one.steps, one.schedule,
        () if one.recompute else one.layers, [draft.keep for draft in drafts], one.feature_dtype, report, on_step,
        negative, one.guidance, on_attention=on_attention, sink=sink if files else None, refine=refine,
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
                shapes[f"{kind}.{layer}"] = (
                    "BF16" if draft.feature_dtype == "bfloat16" else "F32",
                    _shape(draft, layer),
                )
        self._sums = {name: first_sum(*form) for name, form in shapes.items()}
        self._stream = TensorStream(file, shapes, seal_sums(self._sums, metadata_of(draft)))

    def keep(self, features: dict[str, dict[int, NDArray[Any]]]) -> None:
        """Writes one step's features."""
        for kind, layers in features.items():
            for layer, array in layers.items():
                self._write(f"{kind}.{layer}", array)

    def finish(self, inversion: Inversion) -> Inversion:
        """The inversion, now complete, with its features mapped from the file."""
        for name, array in arrays_of(replace(inversion, features={})).items():
            self._write(name, array)
        tensors = self._stream.finish(seal_sums(self._sums, metadata_of(inversion)))
        features = {
            kind: {layer: to_array(tensors[f"{kind}.{layer}"]) for layer in layers}
            for kind, layers in inversion.features.items()
        }
        return replace(inversion, features=features)

    def _write(self, name: str, array: NDArray[Any]) -> None:
        data = to_tensor(array).data
        self._sums[name] = zlib.crc32(data, self._sums[name])
        self._stream.write(name, data)


def _shape(draft: Inversion, layer: int) -> tuple[int, int, int]:
    """Of a layer's features of all steps."""
    model = cast(Model, draft.model)
    height, width = model.layer_size(layer, draft.latent_size)
    return draft.steps, height * width, model.layer_channels(layer)
