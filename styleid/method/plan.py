"""Resolves the arguments and options of a call once for a model, before anything is computed.

There is one rule for defaults: a value that is not given is what the model's folder recommends, else the paper's. And there
is one rule for sizes: files and PIL images are prepared as in the paper, arrays are taken as they are.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.images import ImageLike, Pixels, Size, check_size, to_array
from styleid.inversions.recording import Prompt, Recipe
from styleid.memory import Memory, of_transfer
from styleid.method.initial import Initial
from styleid.method.masks import Float64, read_masks
from styleid.method.options import (
    MEAN,
    Accuracy,
    Chosen,
    Hooks,
    Injection,
    Mix,
    Options,
    Resize,
    Seed,
    Start,
    Steps,
    Storage,
    Text,
)
from styleid.method.rates import PAPER, LayersByStep, Rate, layers_by_step, per_step_and_layer
from styleid.models.loading import default_model
from styleid.models.model import Model

if TYPE_CHECKING:
    from styleid._core import Schedule

Float32 = NDArray[np.float32]
T = TypeVar("T")


# ---- inversions ----


def plan_inversion(
    model: Model, evaluated: Steps, layers: Iterable[int] | None, prompt: Prompt, chosen: Chosen, hooks: Hooks
) -> Recipe:
    """How images are inverted. `layers` None stands for the default layers.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected
    """
    facts = _core.schedule(model.engine, evaluated.schedule, evaluated.steps)
    storage, accuracy = chosen.get(Storage), chosen.get(Accuracy)
    if storage.features == "recompute" and hooks.on_attention is not None:
        raise ValueError("features: those that on_attention takes part in cannot be recomputed")
    if storage.features == "recompute" and accuracy.refine and evaluated.schedule == "diffusers":
        raise ValueError("features: those of a refined inversion with the schedule 'diffusers' cannot be recomputed")
    for name in "on_step", "on_attention":
        if storage.cache is not None and getattr(hooks, name) is not None:
            raise ValueError(f"cache: an inversion with {name} cannot be kept, because what {name} does is not known")
    return Recipe(
        model=model,
        steps=evaluated.steps,
        schedule=evaluated.schedule,
        timesteps=facts["timesteps"],
        layers=default_layers(model, facts) if layers is None else checked_layers(layers, model.attention_layers),
        prompt=prompt,
        features=storage.features,
        feature_dtype=model.dtype if storage.dtype == "auto" else storage.dtype,
        refine=accuracy.refine,
        seed=default_seed(model, accuracy.seed),
        on_step=hooks.on_step,
        on_attention=hooks.on_attention,
        watched=_watched(hooks, model),
    )


# ---- sampling ----


@dataclass(frozen=True, eq=False)
class Sampling:
    """How an image is sampled: all that is known without the inversions."""

    model: Model
    steps: int
    schedule: str
    facts: Schedule
    parts: str  # what is injected: letters of "qkv"
    layers: tuple[int, ...]
    where: NDArray[np.uint8] | None  # (steps, decoder layers): the steps at which they are injected; None: all
    gamma: Float32  # (steps, decoder layers)
    temperature: Float32
    prompt: Prompt
    shares: list[float]  # of the styles, all together 1
    masks: list[Float64 | None]
    style_masks: list[Float64 | None]
    initial: Initial
    skip: int  # evaluations that are left out at the start
    level: int  # the index of the inversions' latents that it starts from
    hooks: Hooks
    watched: tuple[int, ...]  # by on_attention

    @property
    def evaluations(self) -> int:
        """The number of evaluations."""
        return len(self.facts["sampling"]) - self.skip


@dataclass(frozen=True)
class Allowed:
    """The layers that can be injected into, and the layers that are injected into, or that a function is asked about, unless
    others are given."""

    layers: tuple[int, ...]
    default: tuple[int, ...]


def plan_sampling(
    model: Model, evaluated: Steps, injection: Injection, allowed: Allowed, prompt: Prompt, chosen: Chosen, styles: int
) -> Sampling:
    """How an image is sampled from the content's inversion and those of so many styles.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected
    """
    mix, start, hooks = chosen.get(Mix), chosen.get(Start), chosen.get(Hooks)
    if start.initial is not None and not injection.adain:
        raise ValueError("initial: not together with adain=False, which is initial='content'")
    steps = evaluated.steps
    facts = _core.schedule(model.engine, evaluated.schedule, steps)
    layers, where = _layers_by_step(injection, allowed, steps, model)
    skip, level = _start(start.strength, steps, facts)
    watched = _watched(hooks, model)
    return Sampling(
        model=model,
        steps=steps,
        schedule=evaluated.schedule,
        facts=facts,
        parts=injection.parts,
        layers=layers if injection.parts else (),
        where=where,
        gamma=default_rate(model, "gamma", injection.gamma, steps),
        temperature=default_rate(model, "temperature", injection.temperature, steps),
        prompt=prompt,
        shares=mix.shares(styles),
        masks=read_masks("masks", mix.masks, styles),
        style_masks=read_masks("style_masks", mix.style_masks, styles),
        initial=start.initial or ("adain" if injection.adain else "content"),
        skip=skip,
        level=level,
        hooks=hooks,
        watched=layers if watched is None else watched,
    )


def _layers_by_step(
    injection: Injection, allowed: Allowed, steps: int, model: Model
) -> tuple[tuple[int, ...], NDArray[np.uint8] | None]:
    can_be, asked = (allowed.layers, allowed.default) if injection.parts else (model.attention_layers,) * 2
    layers, where = layers_by_step(injection.layers, asked, steps, model.layer_count)
    return allowed.default if layers is None else checked_layers(layers, can_be), where


def _start(strength: float, steps: int, facts: Schedule) -> tuple[int, int]:
    """How many evaluations of the sampling are left out, and the index of the latents that it starts from: those of the
    first evaluation's level, but zT for the whole sampling, as published."""
    count = max(round(strength * steps), 1)
    if count == steps:
        return 0, count
    skip = len(facts["starts"]) - count
    return skip, int(facts["starts"][skip])


# ---- defaults ----


def default_rate(model: Model, name: str, value: Rate | None, steps: int) -> Float32:
    """gamma or temperature as (steps, decoder layers): the given value, else what the model recommends, else the paper's."""
    if value is None:
        value = cast("dict[str, float]", model.recommended).get(name, PAPER[name])
    return per_step_and_layer(name, value, steps, model.layer_count)


def default_layers(model: Model, facts: Schedule) -> tuple[int, ...]:
    """The decoder layers that the model recommends, else those of the schedule."""
    return tuple(model.recommended.get("layers", facts["layers"]))


def default_seed(model: Model, seed: Seed | None) -> int | None:
    """The seed of the posterior's sample, None for its mean: the given one, else what the model recommends, else the mean."""
    if seed is None:
        return model.recommended.get("seed")
    return None if seed == MEAN else seed


def model_of(model: Model | None) -> Model:
    """The model that a function was given; None stands for the default one."""
    if model is None:
        return default_model()
    if not isinstance(model, Model):
        raise TypeError(f"model: expected what styleid.load_model returns, got {type(model).__name__}")
    return model


# ---- texts ----


def prompt_of(model: Model, text: Text, prompt: str, context: Float32 | None = None) -> Prompt:
    """The prompts and contexts that the model is given.

    Args:
        prompt: the text, in place of the one in `text`
        context: the context of `prompt`, where it is known
    """
    if context is None:
        context = model.encode_prompt(prompt)
    guidance = text.guidance
    negative = None if guidance == 1 else model.encode_prompt(text.negative)
    if negative is not None and np.array_equal(negative, context):
        warnings.warn("guidance: has no effect while the prompt and the negative one are the same", stacklevel=3)
        negative = None
    return Prompt(prompt, context, text.negative, guidance, negative)


def without(text: Text, *fields: str) -> Text:
    """`text`, and a warning for those fields that a function has no use for."""
    for name in fields:
        if getattr(text, name) is not None:
            warnings.warn(f"{name}: has an effect in styleid.transfer only", stacklevel=3)
    return text


# ---- images and layers ----


def prepare(image: ImageLike, model: Model, name: str, resize: Resize) -> Pixels:
    """The image in the size that results have."""
    size = resize.size
    if size is None and not isinstance(image, np.ndarray):
        size = model.image_size
    return to_array(image, name, size, resize.how)


def checked_layers(layers: Iterable[int], allowed: Sequence[int]) -> tuple[int, ...]:
    """The layers in ascending order; TypeError or ValueError if one is not allowed or comes twice."""
    try:
        chosen = sorted(map(operator.index, layers))
    except TypeError:
        raise TypeError(f"layers: expected whole numbers, got {layers!r}") from None
    if len(set(chosen)) < len(chosen) or not set(chosen) <= set(allowed):
        raise ValueError(f"layers: expected different ones out of {list(allowed)}, got {chosen}")
    return tuple(chosen)


def _watched(hooks: Hooks, model: Model) -> tuple[int, ...] | None:
    return None if hooks.layers is None else checked_layers(hooks.layers, model.attention_layers)


def listed(value: T | list[T] | tuple[T, ...]) -> list[T]:
    """The values of an argument that is one value or several."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def named(name: str, values: Sequence[T]) -> list[tuple[str, T]]:
    """The values of an argument, one or several, with the names that error messages call them by."""
    return [(name if len(values) == 1 else f"{name}[{i}]", value) for i, value in enumerate(values)]


# ---- memory ----


def predict_memory(
    model: Model,
    content: Size | None = None,
    style: Size | list[Size] | None = None,
    *,
    steps: int = 50,
    schedule: str = "paper",
    layers: LayersByStep | None = None,
    options: Options = (),
) -> Memory:
    """The memory that `styleid.transfer` will take on top of the loaded model.

    Args:
        model: the model, whose evaluations are measured without running them
        content: the side of the content, or its (height, width); None: the model's native square
        style: the size of the style, or a list of sizes of several styles; None: the content's size
        steps, schedule, layers: as in `styleid.transfer`
        options: a `styleid.Storage`, which says where features are kept, and in what type

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected
    """
    storage, evaluated = Chosen(options, "predict_memory", (Storage,)).get(Storage), Steps(steps, schedule)
    facts = _core.schedule(model.engine, schedule, steps)
    allowed = Allowed(model.attention_layers, default_layers(model, facts))
    chosen, _ = _layers_by_step(Injection(layers=layers), allowed, evaluated.steps, model)
    size = check_size(model.image_size if content is None else content)
    sizes = [size] if style is None else [check_size(one) for one in (style if isinstance(style, list) else [style])]
    dtype = model.dtype if storage.dtype == "auto" else storage.dtype
    return of_transfer(model, size, sizes, steps, chosen, dtype, storage.features)
