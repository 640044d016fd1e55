"""The options of the functions, in small classes that check themselves.

Each field carries what the command line needs to know about it: its flag, its help text and how it is parsed.
`styleid.cli.parser` makes the flags from the fields, so that Python and the command line cannot drift apart.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.images import RESIZE, Size, check_size
from styleid.inversions.cache import Cache
from styleid.inversions.file import KEEP
from styleid.inversions.recording import FEATURES
from styleid.method.initial import NAMES, Initial, check_initial
from styleid.method.masks import Masks
from styleid.method.rates import PAPER, SHAPES, LayersByStep, Rate, check_rate, parse_rate
from styleid.models.model import LARGEST_SEED
from styleid.models.placement import DTYPES
from styleid.numbers import number, whole

Float32 = NDArray[np.float32]
OnStep = Callable[[int, int, Float32], object]
OnAttention = Callable[
    [int, int, Float32, Float32, Float32], tuple[Float32 | None, Float32 | None, Float32 | None] | None
]
T = TypeVar("T")

Seed = int | Literal["mean"]  # of a sample of the VAE's posterior, or its mean
MEAN: Final = "mean"
PARTS = {"q": "query", "k": "key", "v": "value"}  # of the attention: what `inject` can name


def flag(text: str, **facts: Any) -> dict[str, Any]:
    """The metadata of a field that has a flag: its help text, and further facts for argparse. `flag` is the flag's name where
    it differs from the field's; `parse` is the function that reads its text, which raises ValueError; `unset` says in words
    what holds without the flag, where the field's default is not what one would type."""
    return {"help": text, **facts}


def parse_layers(text: str) -> list[int]:
    """Reads layers such as 6-11, or 7,8,9, or both forms together."""
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()) or not int(first) <= int(last) < 1000:
            raise ValueError(f"expected numbers such as 6-11 or 7,8,9, got {text!r}")
        layers += range(int(first), int(last) + 1)
    return layers


def parse_seed(text: str) -> Seed:
    """Reads a seed: a whole number, or mean."""
    if text != MEAN and not text.strip().isdecimal():
        raise ValueError(f"expected a whole number or {MEAN}, got {text!r}")
    return MEAN if text == MEAN else int(text)


def check_seed(seed: Any) -> Seed | None:
    """A seed of the VAE's posterior, "mean" or None. TypeError or ValueError for anything else."""
    if seed is None:
        return None
    if isinstance(seed, str):
        if seed != MEAN:
            raise ValueError(f"seed: expected a whole number, {MEAN!r} or None, got {seed!r}")
        return MEAN
    return whole("seed", seed, 0, LARGEST_SEED)


def parse_numbers(text: str) -> list[float]:
    """Reads numbers such as 1,3."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"expected numbers such as 1,3, got {text!r}") from None


def parse_size(text: str) -> Size:
    """Reads a size such as 512, or 512x768 with the height first."""
    sides = text.lower().split("x")
    if not 1 <= len(sides) <= 2 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"expected N or HEIGHTxWIDTH, got {text!r}")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


# ---- what the functions take as arguments of their own ----

RECOMMENDED = "what the model recommends, else "
LAYERS = flag(
    "decoder layers, such as 6-11 or 7,8,9", parse=parse_layers, unset=f"{RECOMMENDED}the layers of the schedule"
)
SHAPED = f"or FROM:TO:SHAPE, decreasing over the steps, where SHAPE is one of {', '.join(SHAPES)}"


@dataclass(frozen=True)
class Steps:
    """Which timesteps are evaluated."""

    steps: int = field(default=50, metadata=flag("DDIM steps, 2 to 1000", parse=int))
    schedule: str = field(default="paper", metadata=flag("which timesteps the steps are at", choices=_core.SCHEDULES))

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole("steps", self.steps, 2, _core.TRAIN_STEPS))
        _one_of("schedule", self.schedule, _core.SCHEDULES)


@dataclass(frozen=True)
class Kept:
    """Which features an inversion keeps."""

    layers: Iterable[int] | None = field(default=None, metadata=LAYERS)
    keep: str = field(
        default="both",
        metadata=flag("which features are kept: a content's query, or a style's keys and values", choices=tuple(KEEP)),
    )

    def __post_init__(self) -> None:
        _one_of("keep", self.keep, tuple(KEEP))


@dataclass(frozen=True, eq=False)
class Injection:
    """How features are injected, and how the initial latent is made."""

    gamma: Rate | None = field(
        default=None,
        metadata=flag(
            f"how far the content's queries are preserved, 0 to 1; {SHAPED}",
            parse=parse_rate,
            unset=f"{RECOMMENDED}{PAPER['gamma']}",
        ),
    )
    temperature: Rate | None = field(
        default=None,
        metadata=flag(
            "a factor of the attention's logits, above 0; more than 1 sharpens the attention; or FROM:TO:SHAPE as for --gamma",
            parse=parse_rate,
            unset=f"{RECOMMENDED}{PAPER['temperature']}",
        ),
    )
    layers: LayersByStep | None = field(default=None, metadata=LAYERS)
    adain: bool = field(
        default=True,
        metadata=flag("start from the content's own latent, without AdaIN", flag="--no-adain", action="store_false"),
    )
    inject: bool | str = field(
        default=True,
        metadata=flag(
            "what is injected: some letters of qkv, for query, key and value",
            none=("--no-injection", "inject nothing into the attention"),
            unset="".join(PARTS),
        ),
    )

    def __post_init__(self) -> None:
        for name in "gamma", "temperature":
            value = getattr(self, name)
            if value is not None:
                check_rate(name, value)
        parts = self.parts
        for name, needed in ("gamma", "q"), ("temperature", "qkv"):
            if getattr(self, name) is not None and not set(needed) & set(parts):
                warnings.warn(f"{name}: has no effect with inject={self.inject!r}", stacklevel=4)

    @property
    def parts(self) -> str:
        """The letters of what is injected, in the order of "qkv"."""
        if isinstance(self.inject, str):
            if not set(self.inject) <= set(PARTS):
                raise ValueError(f"inject: expected True, False or letters of {''.join(PARTS)!r}, got {self.inject!r}")
            return "".join(part for part in PARTS if part in self.inject)
        if not isinstance(self.inject, (bool, np.bool_)):
            raise TypeError(f"inject: expected True, False or letters of 'qkv', got {self.inject!r}")
        return "".join(PARTS) if self.inject else ""


# ---- options ----


class Option:
    """The base class of the options that the functions take as `options`."""


@dataclass(frozen=True)
class Text(Option):
    r"""The prompts that the model is given.

    The paper's prompt is empty, and there is no guidance. With guidance g, every evaluation of the sampling is two, one
    under `prompt` and one under `negative`, which get the same features injected (Ho and Salimans, Classifier-free
    diffusion guidance, 2022):

    $$e = e_\mathrm{negative} + g (e_\mathrm{prompt} - e_\mathrm{negative})$$

    Args:
        prompt: the text that an image is inverted or sampled under. None: for `inject_styles`, the text that `content`
            was inverted under; else the empty one
        negative: the text that `guidance` leads away from
        guidance: g above; 1: the prompt's evaluation alone. A guided inversion strays from what the sampling can undo, so
            `transfer` guides the sampling only
        content_prompt, style_prompt: for `transfer`, the texts that the content and the styles are inverted under; None:
            `prompt`

    Raises:
        TypeError, ValueError: naming the field, what came and what was expected
    """

    prompt: str | None = field(
        default=None,
        metadata=flag("the text that images are inverted and sampled under", unset="the empty one, as in the paper"),
    )
    negative: str = field(
        default="",
        metadata=flag("the text that --guidance leads away from", flag="--negative-prompt", unset="the empty one"),
    )
    guidance: float = field(
        default=1.0,
        metadata=flag("the scale of classifier-free guidance; 1 evaluates the prompt alone", parse=float),
    )
    content_prompt: str | None = field(
        default=None, metadata=flag("the text that the content is inverted under", unset="that of --prompt")
    )
    style_prompt: str | None = field(
        default=None, metadata=flag("the text that the styles are inverted under", unset="that of --prompt")
    )

    def __post_init__(self) -> None:
        for name in "prompt", "negative", "content_prompt", "style_prompt":
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "negative"):
                raise TypeError(f"{name}: expected str, got {type(value).__name__}")
        object.__setattr__(self, "guidance", number("guidance", self.guidance))
        if self.guidance == 1 and self.negative:
            warnings.warn("negative: has no effect while guidance is 1", stacklevel=3)


@dataclass(frozen=True, eq=False)
class Mix(Option):
    r"""Several styles, and where each is injected.

    Args:
        weights: the share of each style; None: equal shares. $\log w_s$ of a style's weight is added to the logits of its
            keys, and the initial latent is the mean with these weights: (1 - s, s) interpolates two styles
        masks: where in the content a style is injected, see `styleid.method.masks`: an array (H, W) over the content, or,
            with several styles, a list of one for each; None, also in the list: everywhere. The share that the masks do
            not cover, of the attention and of the initial latent, is the content's, as without any injection
        style_masks: which part of each style is looked at, given in the same way over the styles' images; AdaIN takes its
            statistics from that part as well

    Raises:
        TypeError, ValueError: naming the field, what came and what was expected
    """

    weights: Sequence[float] | None = field(
        default=None,
        metadata=flag("the share of each of several styles, such as 1,3", parse=parse_numbers, unset="equal shares"),
    )
    masks: Masks | None = field(
        default=None,
        metadata=flag(
            "an image that is bright where in the content the style is injected; repeat it for each of several styles",
            unset="everywhere",
            flag="--mask",
            metavar="FILE",
            action="append",
        ),
    )
    style_masks: Masks | None = field(
        default=None,
        metadata=flag(
            "an image that is bright where the style is looked at; repeat it for each of several styles",
            unset="everywhere",
            flag="--style-mask",
            metavar="FILE",
            action="append",
        ),
    )

    def __post_init__(self) -> None:
        if self.weights is not None:
            weights = np.asarray(self.weights)
            if weights.dtype.kind not in "fiu" or weights.ndim != 1 or not np.all((weights > 0) & np.isfinite(weights)):
                raise ValueError(f"weights: expected positive numbers, one per style, got {self.weights!r}")

    def shares(self, count: int) -> list[float]:
        """The weight of each of `count` styles, all together 1. ValueError also where there is no style."""
        if not count:
            raise ValueError("style: expected at least one, got none")
        shares = np.ones(count) if self.weights is None else np.asarray(self.weights)
        if len(shares) != count:
            raise ValueError(f"weights: expected {count} positive numbers, one per style, got {self.weights!r}")
        return [float(share) for share in shares / shares.sum()]


@dataclass(frozen=True)
class Start(Option):
    """Where the sampling begins.

    Args:
        initial: how the initial latent is made, in place of what `adain` says: "adain", "content", "style", "quantiles",
            "frequencies", or a function of the content's and the style's zT, see `styleid.method.initial`
        strength: above 0, at most 1. Below 1, only the last k = round(strength * steps) evaluations are made, at least
            one, from the latents that the inversions had at that level in place of zT

    Raises:
        TypeError, ValueError: naming the field, what came and what was expected
    """

    initial: Initial | None = field(
        default=None, metadata=flag("how the initial latent is made", choices=NAMES, unset="adain")
    )
    strength: float = field(
        default=1.0, metadata=flag("the part of the steps that is sampled, above 0, at most 1", parse=float)
    )

    def __post_init__(self) -> None:
        if self.initial is not None:
            check_initial(self.initial)
        object.__setattr__(self, "strength", number("strength", self.strength, 0, 1))
        if not self.strength:
            raise ValueError("strength: expected a number above 0 and at most 1, got 0")


@dataclass(frozen=True)
class Storage(Option):
    """Where an inversion's features are kept, and whether the inversion is kept for further runs.

    Args:
        features: where features are kept. All of these give the same results:

            - "memory": where the model computes, on a GPU as `styleid._core.DeviceArray`
            - "host": in the host's memory also where the model is on a GPU, for GPUs with little memory
            - "disk": in a mapped file: the entry of `cache`, or else a nameless file in the temporary folder (environment
              variable TMPDIR)
            - "recompute": nowhere; they are evaluated again whenever they are needed, at the cost of most of an evaluation
        dtype: "float32", "bfloat16" or "float16" (half the memory), or "auto": the type that the model computes in
        cache: a folder, or a `styleid.Cache`, that keeps inversions from one run to the next; not with hooks

    Raises:
        TypeError, ValueError: naming the field, what came and what was expected
    """

    features: str = field(
        default="memory",
        metadata=flag(
            "where attention features are kept; recompute keeps none, which takes the least memory and more time",
            choices=FEATURES,
        ),
    )
    dtype: str = field(
        default="auto",
        metadata=flag(
            "the dtype that attention features are kept in; auto: the one that is computed in",
            flag="--feature-dtype",
            choices=DTYPES,
        ),
    )
    cache: str | os.PathLike[str] | Cache | None = field(
        default=None, metadata=flag("a folder that keeps inversions for later runs", metavar="DIR")
    )

    def __post_init__(self) -> None:
        _one_of("features", self.features, FEATURES)
        _one_of("dtype", self.dtype, DTYPES)
        if self.cache is not None and not isinstance(self.cache, (str, os.PathLike, Cache)):
            raise TypeError(f"cache: expected a folder or a styleid.Cache, got {type(self.cache).__name__}")


@dataclass(frozen=True)
class Hooks(Option):
    """Functions that see, and may change, what is computed.

    Args:
        on_step: called as on_step(step, steps, latents) before every evaluation and, with step = steps, after the last
            one. latents (1, C, h, w) float32 are what is evaluated next, and may be changed in place. In an inversion the
            first call has z0 and the last one zT, in a sampling the other way round
        on_attention: called as on_attention(step, layer, query, key, value) before each self-attention of `layers`: in an
            inversion after its features were kept, in a sampling with what is injected, or with the layer's own arrays
            where nothing is injected. step counts the timesteps upwards, as in `Inversion.query`, so that a sampling
            counts down; in an inversion it is `steps` at the level above the last timestep, which `Accuracy.refine` may
            evaluate. The arrays are float32: query (tokens, channels), key and value (keys, channels), with the heads'
            channels one after the other. Keys and values of several styles follow one another; the styles' weights and
            masks apply as long as the number of keys stays the same. The hook returns None, or (query, key, value) of such
            shapes, where key and value may have any number of rows and None stands for what was given. It may also change
            the arrays in place. The arrays of a bfloat16 model are converted, and rounded back
        layers: the decoder layers whose attention the hook sees. None: those whose features are kept or injected

    Raises:
        TypeError: a hook that cannot be called
    """

    on_step: OnStep | None = None
    on_attention: OnAttention | None = None
    layers: Iterable[int] | None = None

    def __post_init__(self) -> None:
        for name in "on_step", "on_attention":
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name}: expected a callable or None, got {type(value).__name__}")
        if self.layers is not None and self.on_attention is None:
            warnings.warn("layers: has no effect without on_attention", stacklevel=3)


@dataclass(frozen=True)
class Accuracy(Option):
    """How an image is inverted beyond what the paper does.

    Args:
        refine: k further evaluations in each step. After a step from z to $z' = M(z, e)$, the step is made again with the
            noise at its end, $z' = M(z, e(z', t'))$, k times; t' is the timestep of the level that the step leads to. The
            fixed point is the latent that the sampling's step leads back to z. Where a schedule samples at t' in this
            step, as "diffusers" does, the features of the last evaluation are kept
        seed: the seed of a sample of the VAE's posterior in place of its mean, see `Model.encode`, or "mean". None: what the
            model's folder recommends, else the mean

    Raises:
        TypeError, ValueError: naming the field, what came and what was expected
    """

    refine: int = field(
        default=0, metadata=flag("K more evaluations in each step of an inversion", metavar="K", parse=int)
    )
    seed: Seed | None = field(
        default=None,
        metadata=flag(
            "the seed of a sample of the VAE's posterior, or mean",
            metavar="SEED",
            parse=parse_seed,
            unset=f"{RECOMMENDED}{MEAN}",
        ),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "refine", whole("refine", self.refine, 0, 1000))
        object.__setattr__(self, "seed", check_seed(self.seed))


@dataclass(frozen=True)
class Resize(Option):
    """The size that images are computed in.

    Args:
        size: the side of a square, or (height, width). None: arrays keep their own size; of files and PIL images a centred
            square is cut out and resized to the model's native size, as in the paper. Where a side is no multiple of
            `model.image_multiple`, the engine gets the image mirrored at its right and lower border, and results are cut
            to the image's size again
        how: "crop", "fit" or "stretch", see `styleid.load_image`

    Raises:
        TypeError, ValueError: naming the field, what came and what was expected
    """

    size: Size | None = field(
        default=None,
        metadata=flag(
            "the size to compute in, in pixels: N, or HEIGHTxWIDTH", parse=parse_size, unset="the model's native size"
        ),
    )
    how: str = field(
        default="crop",
        metadata=flag(
            "how images get their size: crop takes the largest centred part, fit keeps all of an image and its aspect ratio, "
            "stretch changes the aspect ratio",
            flag="--resize",
            choices=RESIZE,
        ),
    )

    def __post_init__(self) -> None:
        _one_of("how", self.how, RESIZE)
        if self.size is not None:
            check_size(self.size)


Options = Option | Iterable[Option]
Kind = TypeVar("Kind", bound=Option)


class Chosen:
    """The options of one call, by their classes. TypeError for one that the function has no use for, or that comes twice."""

    def __init__(self, options: Options, function: str, allowed: Sequence[type[Option]]) -> None:
        given = [options] if isinstance(options, Option) else options
        names = ", ".join(kind.__name__ for kind in allowed)
        self._given: dict[type, Option] = {}
        try:
            iterator = iter(given)
        except TypeError:
            raise TypeError(f"options: expected some of {names}, got {type(options).__name__}") from None
        for one in iterator:
            kind = type(one)
            if kind not in allowed:
                raise TypeError(f"options: {function} takes {names}, got {kind.__name__}")
            if kind in self._given:
                raise TypeError(f"options: {kind.__name__} is given twice")
            self._given[kind] = one

    def get(self, kind: type[Kind]) -> Kind:
        """What was given of that class, else its defaults."""
        return cast(Kind, self._given.get(kind) or kind())


def _one_of(name: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {list(choices)}, got {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name}: expected one of {list(choices)}, got {value!r}")
