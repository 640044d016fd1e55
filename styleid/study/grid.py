"""The axes of a sweep: alternatives for every setting that may vary."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from styleid import _core
from styleid.method.initial import NAMES
from styleid.method.options import LAYERS, MEAN, PARTS, RECOMMENDED, Seed, check_seed, flag, parse_layers, parse_seed
from styleid.method.rates import PAPER, parse_rate
from styleid.numbers import number, whole

LayerSet = str | Iterable[int] | None


SEVERAL = "several with commas"


def _texts(text: str) -> list[str]:
    """Reads texts such as 0.3,0.9:0.5:cosine."""
    return text.split(",")


def _sets(text: str) -> list[str]:
    """Reads sets of layers such as 6-11/7,8."""
    return text.split("/")


def _parts(text: str) -> list[bool | str]:
    """Reads parts of the attention such as qkv,kv,none."""
    return [False if part == "none" else part for part in text.split(",")]


def _switches(text: str) -> list[bool]:
    """Reads on, off or both with a comma."""
    if not set(text.split(",")) <= {"on", "off"}:
        raise ValueError(f"expected on, off or both with a comma, got {text!r}")
    return [part == "on" for part in text.split(",")]


def _numbers(text: str) -> list[float]:
    """Reads numbers such as 0.5,1."""
    return [float(part) for part in text.split(",")]


def _integers(text: str) -> list[int]:
    """Reads whole numbers such as 20,50."""
    return [int(part) for part in text.split(",")]


def _seeds(text: str) -> list[Seed]:
    """Reads seeds such as mean,0,1."""
    return [parse_seed(part) for part in text.split(",")]


@dataclass(frozen=True)
class Grid:
    """Alternatives for the settings of a sweep, of which every combination is computed.

    Each field takes one value or a sequence of them. None stands for what the model's folder recommends, else the paper's.

    Attributes:
        gamma: numbers from 0 to 1, or schedules as `styleid.method.rates.parse_rate` reads them: "0.9:0.5:cosine"
        temperature: numbers above 0, or schedules
        initial: the initial latent: names as for `styleid.Start`, "adain" in the paper
        layers: sets of decoder layers: "6-11", "7,8,9" or [7, 8, 9]; several sets as a list of these
        inject: what is injected: True (everything), False (nothing) or some letters of "qkv"
        adain: True or False, another way to say initial="adain" or initial="content"; not together with `initial`
        strength: above 0, at most 1: the part of the steps that is sampled
        steps: numbers of DDIM steps, 2 to 1000
        schedule: "paper", "diffusers" or "corrected"
        seed: the seed of a sample of the VAE's posterior, or "mean"

    Raises:
        TypeError, ValueError: naming the field, what came and what was expected
    """

    gamma: Any = field(
        default=(None,),
        metadata=flag(
            f"how far the content's queries are preserved, 0 to 1, or FROM:TO:SHAPE; {SEVERAL}",
            parse=_texts,
            unset=f"{RECOMMENDED}{PAPER['gamma']}",
        ),
    )
    temperature: Any = field(
        default=(None,),
        metadata=flag(
            f"a factor of the attention's logits, above 0, or FROM:TO:SHAPE; {SEVERAL}",
            parse=_texts,
            unset=f"{RECOMMENDED}{PAPER['temperature']}",
        ),
    )
    initial: Any = field(
        default=(None,),
        metadata=flag(f"how the initial latent is made: {', '.join(NAMES)}; {SEVERAL}", parse=_texts, unset="adain"),
    )
    layers: Any = field(
        default=(None,),
        metadata=flag(
            "decoder layers, such as 6-11 or 7,8,9; several sets with slashes",
            parse=_sets,
            unset=LAYERS["unset"],
        ),
    )
    inject: Any = field(
        default=(True,),
        metadata=flag(f"what is injected: some letters of qkv, or none; {SEVERAL}", parse=_parts, unset="".join(PARTS)),
    )
    adain: Any = field(
        default=(None,),
        metadata=flag("AdaIN of the initial latent: on, off, or on,off for both", parse=_switches, unset="on"),
    )
    strength: Any = field(
        default=(1.0,),
        metadata=flag(f"the part of the steps that is sampled, above 0, at most 1; {SEVERAL}", parse=_numbers),
    )
    steps: Any = field(default=(50,), metadata=flag(f"DDIM steps, 2 to 1000; {SEVERAL}", parse=_integers))
    schedule: Any = field(
        default=("paper",),
        metadata=flag(f"which timesteps the steps are at: {', '.join(_core.SCHEDULES)}; {SEVERAL}", parse=_texts),
    )
    seed: Any = field(
        default=(None,),
        metadata=flag(
            f"the seed of a sample of the VAE's posterior, or mean; {SEVERAL}",
            parse=_seeds,
            unset=f"{RECOMMENDED}{MEAN}",
        ),
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            given = getattr(self, one.name)
            values = _layer_sets(given) if one.name == "layers" else _several(one.name, given)
            checked = tuple(dict.fromkeys(CHECKS[one.name](value) for value in values))
            if not checked:
                raise ValueError(f"{one.name}: expected at least one value, got none")
            object.__setattr__(self, one.name, checked)
        if self.adain != (None,) and self.initial != (None,):
            raise ValueError("adain: give either adain or initial, because adain=False is initial='content'")

    @property
    def initials(self) -> tuple[str, ...]:
        """The names of initial latents, whichever way they were given."""
        if self.initial != (None,):
            return tuple(name or "adain" for name in self.initial)
        return tuple("content" if adain is False else "adain" for adain in self.adain)


def _several(name: str, given: Any) -> Sequence[Any]:
    """The alternatives of a field; a single value is the only alternative."""
    if callable(given):
        raise TypeError(f"{name}: {FUNCTION}")
    if given is None or isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
        return (given,)
    return tuple(given)


def _layer_sets(given: Any) -> Sequence[Any]:
    """The alternative sets of layers; a list of numbers is one set."""
    values = _several("layers", given)
    return (values,) if values and all(hasattr(value, "__index__") for value in values) else values


FUNCTION = "expected numbers or text such as '0.9:0.5:cosine', got a function, which has no name that a result could be found by"


def rate_text(name: str, value: Any) -> str | None:
    """gamma or temperature as text in one spelling, None where none is given."""
    if value is None:
        return None
    if callable(value):
        raise TypeError(f"{name}: {FUNCTION}")
    try:
        if isinstance(value, str) and ":" in value:
            parse_rate(value)
            return value
        number = float(value) if not isinstance(value, (bool, bytes)) else None
    except (TypeError, ValueError) as error:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name}: expected a number or FROM:TO:SHAPE, got {value!r}: {error}") from None
    if number is None:
        raise TypeError(f"{name}: expected a number or FROM:TO:SHAPE, got {value!r}")
    if not (0 <= number <= 1 if name == "gamma" else 0 < number < math.inf):
        raise ValueError(f"{name}: expected {'0 to 1' if name == 'gamma' else 'numbers above 0'}, got {value!r}")
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def layer_text(layers: Sequence[int]) -> str:
    """Layers as the command line writes them: 6-11, or 7,9."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _layers(value: LayerSet) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        layers = _parsed(value) if isinstance(value, str) else tuple(operator.index(layer) for layer in value)
    except TypeError:
        raise TypeError(f"layers: expected sets of whole numbers, or text such as '6-11', got {value!r}") from None
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"layers: expected different numbers, got {value!r}")
    return tuple(sorted(layers))


def _parsed(text: str) -> tuple[int, ...]:
    try:
        return tuple(parse_layers(text))
    except ValueError as error:
        raise ValueError(f"layers: {error}") from None


def _one_of(name: str, allowed: Sequence[Any]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not any(type(value) is type(each) and value == each for each in allowed):
            raise ValueError(f"{name}: expected some of {list(allowed)}, got {value!r}")
        return value

    return check


def _inject(value: Any) -> bool | str:
    if isinstance(value, str):
        if not set(value) <= set("qkv"):
            raise ValueError(f"inject: expected True, False or letters of 'qkv', got {value!r}")
        letters = "".join(letter for letter in "qkv" if letter in value)
        return letters if letters not in ("", "qkv") else letters == "qkv"
    if not isinstance(value, bool):
        raise TypeError(f"inject: expected True, False or letters of 'qkv', got {value!r}")
    return value


def _strength(value: Any) -> float:
    strength = number("strength", value, 0, 1)
    if strength == 0:
        raise ValueError(f"strength: expected numbers above 0 and at most 1, got {value!r}")
    return strength


def _whole(name: str, low: int, high: int) -> Callable[[Any], int]:
    return lambda value: whole(name, value, low, high)


CHECKS: dict[str, Callable[[Any], Any]] = {
    "gamma": lambda value: rate_text("gamma", value),
    "temperature": lambda value: rate_text("temperature", value),
    "initial": _one_of("initial", (None, *NAMES)),
    "layers": _layers,
    "inject": _inject,
    "adain": _one_of("adain", (None, True, False)),
    "strength": _strength,
    "steps": _whole("steps", 2, _core.TRAIN_STEPS),
    "schedule": _one_of("schedule", _core.SCHEDULES),
    "seed": check_seed,
}
