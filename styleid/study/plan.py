"""The plan of a sweep: which inversions and which samplings there are, under which keys and file names.

One plan serves for every way to carry it out: here, one after the other (`styleid.study.sweep`), or by the workers of a
cluster (`styleid.study.cluster`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from styleid import _core
from styleid.inversions.cache import key_of
from styleid.method.options import MEAN, Accuracy, Chosen, Hooks, Steps, Storage, Text
from styleid.method.plan import checked_layers, default_layers, default_seed, plan_inversion, prompt_of
from styleid.method.rates import PAPER, parse_rate, per_step_and_layer
from styleid.models.model import Model
from styleid.study.grid import Grid, layer_text, rate_text
from styleid.study.inputs import Source, plain_stem

Row = dict[str, Any]  # of the manifest: content, style, the settings, output, sha256 of its file, measures
ROLES = "content", "style"
STYLES = 2  # how many are worked with at a time: the one whose results are made, and the next
AXES = ("gamma", "temperature", "initial", "layers", "inject", "strength", "steps", "schedule", "seed")
PLAIN: Row = {"initial": "adain", "inject": True, "strength": 1.0, "steps": 50, "schedule": "paper"}


@dataclass(frozen=True)
class Common:
    """Settings that are the same for all results of a sweep, as in `styleid.Text`, `styleid.Accuracy` and
    `styleid.Storage`."""

    prompt: str = ""
    negative_prompt: str = ""
    guidance: float = 1.0
    refine: int = 0
    feature_dtype: str = "auto"
    features: str = "memory"

    def accuracy(self, seed: int | None) -> Accuracy:
        """That of an inversion; None is the posterior's mean."""
        return Accuracy(self.refine, MEAN if seed is None else seed)

    def chosen(self, seed: int | None) -> Chosen:
        """The options of an inversion."""
        options = Storage(self.features, self.feature_dtype), self.accuracy(seed)
        return Chosen(options, "sweep", (Storage, Accuracy))


@dataclass(frozen=True, eq=False)
class Inverting:
    """An inversion that a sweep needs. Its key covers everything that it depends on."""

    key: str
    source: Source
    keep: str
    steps: int
    schedule: str
    layers: tuple[int, ...]
    seed: int | None
    common: Common


@dataclass(frozen=True, eq=False)
class Result:
    """A result: two inversions and the settings of the sampling.

    label: what of the settings varies, for file names and sheets
    group: the place of its kind of inversion among all; results of a group share inversions
    """

    key: str
    content: Inverting
    style: Inverting
    settings: Row
    label: str
    group: int

    @property
    def output(self) -> str:
        """The name of its file."""
        stems = [plain_stem(one.source.path) for one in (self.content, self.style)]
        return "_".join([*stems, *filter(None, [file_label(self.label)]), self.key[:16]]) + ".png"

    @property
    def names(self) -> Row:
        """The columns that say what the result was made from."""
        return {"content": str(self.content.source.path), "style": str(self.style.source.path)}


@dataclass(frozen=True, eq=False)
class Plan:
    """All results of a sweep, in the table's order."""

    results: tuple[Result, ...]

    @property
    def inversions(self) -> dict[str, Inverting]:
        """Each inversion once, by its key."""
        return {one.key: one for result in self.results for one in (result.content, result.style)}


def make_plan(
    contents: Sequence[Source], styles: Sequence[Source], model: Model, grids: Sequence[Grid], common: Common
) -> Plan:
    """The plan of all combinations of any of the grids. TypeError or ValueError, naming the field, for what the model cannot compute."""
    every_one = [each for grid in grids for each in _combinations(model, grid)]
    combinations = list({json.dumps(each): each for each in every_one}.values())
    varying = {axis for axis in AXES if len({str(settings[axis]) for settings, _, _ in combinations}) > 1}
    labels = [_label(settings, varying | set(unusual)) for settings, _, unusual in combinations]
    kinds = list(dict.fromkeys(_kind(settings) for settings, _, _ in combinations))
    layers: dict[tuple[Any, ...], set[int]] = {kind: set() for kind in kinds}
    for settings, chosen, _ in combinations:
        layers[_kind(settings)] |= set(chosen)
    inversions = _Inversions(
        model, common, {source.digest for source in contents}, {source.digest for source in styles}
    )
    results = []
    for content, style in product(contents, styles):
        for (settings, _, _), label in zip(combinations, labels, strict=True):
            kind = _kind(settings)
            pair = [inversions.of(source, kind, tuple(sorted(layers[kind]))) for source in (content, style)]
            every = settings | _columns(common)
            key = inversions.hash(every | {"content": content.digest, "style": style.digest, "what": "result"})
            results.append(Result(key, pair[0], pair[1], every, label, kinds.index(kind)))
    return Plan(tuple(results))


def largest(results: Sequence[Result], size: Callable[[Inverting], float]) -> tuple[float, float]:
    """The bytes of the largest inversion of a content, and of a style."""
    contents, styles = ({getattr(result, of).key: getattr(result, of) for result in results} for of in ROLES)
    return max(map(size, contents.values()), default=0), max(map(size, styles.values()), default=0)


def in_blocks(results: Sequence[Result], size: Callable[[Inverting], float], room: float) -> list[list[Result]]:
    """The results in an order that needs few inversions at a time: in blocks of so many contents that there is room for all
    of them and, with one to spare, for the styles that are worked with. A block is made style by style, and is of one kind
    of inversion."""
    query, keys = largest(results, size)
    count = max(1, (room - (STYLES + 1) * keys) // query) if query else len(results)
    numbers: dict[int, dict[str, int]] = {}  # the contents of each kind, numbered
    blocks: dict[tuple[int, float], dict[str, list[Result]]] = {}
    for result in results:
        own = numbers.setdefault(result.group, {})
        number = own.setdefault(result.content.key, len(own))
        block = blocks.setdefault((result.group, number // count), {})
        block.setdefault(result.style.key, []).append(result)
    return [[result for column in blocks[place].values() for result in column] for place in sorted(blocks)]


def _combinations(model: Model, grid: Grid) -> Iterator[tuple[Row, tuple[int, ...], list[str]]]:
    """Every combination's settings, its layers as numbers, and the axes whose value is not the usual one."""
    recommended: Row = {**PAPER, **model.recommended}
    usual: Row = PLAIN | {name: rate_text(name, recommended[name]) for name in PAPER}
    usual["seed"] = default_seed(model, None)
    seeds = dict.fromkeys(default_seed(model, seed) for seed in grid.seed)
    for steps, schedule, seed in product(grid.steps, grid.schedule, seeds):
        own = default_layers(model, _core.schedule(model.engine, schedule, steps))
        inner = product(grid.layers, grid.gamma, grid.temperature, grid.initials, grid.inject, grid.strength)
        for layers, gamma, temperature, initial, inject, strength in inner:
            chosen = checked_layers(own if layers is None else layers, model.attention_layers)
            settings: Row = {"gamma": gamma or usual["gamma"], "temperature": temperature or usual["temperature"]}
            for name in PAPER:
                per_step_and_layer(name, parse_rate(settings[name]), steps, model.layer_count)
            settings |= {"initial": initial, "layers": layer_text(chosen), "inject": inject, "strength": strength}
            settings |= {"steps": steps, "schedule": schedule, "seed": seed}
            unusual = [axis for axis in AXES if axis != "layers" and settings[axis] != usual[axis]]
            yield settings, chosen, unusual + ["layers"] * (chosen != tuple(sorted(own)))


def _kind(settings: Row) -> tuple[Any, ...]:
    """The settings that inversions depend on."""
    return settings["steps"], settings["schedule"], settings["seed"]


def _columns(common: Common) -> Row:
    """The common settings that results depend on."""
    names = "prompt", "negative_prompt", "guidance", "refine"
    return {name: getattr(common, name) for name in names}


def _label(settings: Row, named: Collection[str]) -> str:
    """The named axes: "gamma 0.3, layers 7-8"."""
    return ", ".join(f"{axis} {_value(settings[axis])}" for axis in AXES if axis in named)


def _value(value: object) -> str:
    """None is the mean of the posterior, the only setting that may be None."""
    return {"None": "mean", "True": "qkv", "False": "nothing"}.get(
        str(value), f"{value:g}" if isinstance(value, float) else str(value)
    )


def file_label(label: str) -> str:
    """A label as a part of a file's name. Long labels are cut, because the key that follows tells results apart."""
    text = label.replace(", ", "_").replace(" ", "").replace(":", "-").replace(",", "+")
    return text[:100]


class _Inversions:
    """Makes each inversion of a plan once."""

    def __init__(self, model: Model, common: Common, contents: set[str], styles: set[str]) -> None:
        self._model, self._common, self._contents, self._styles = model, common, contents, styles
        self._prompt = prompt_of(model, Text(), common.prompt)
        self._made: dict[tuple[Any, ...], Inverting] = {}
        self._base = key_of(np.empty(0, np.uint8), model, {"feature_dtype": common.feature_dtype})

    def hash(self, settings: Row) -> str:
        """A hash of the settings, and of the version, the model and how it computes."""
        return hashlib.sha256(json.dumps([self._base, settings], sort_keys=True).encode()).hexdigest()

    def of(self, source: Source, kind: tuple[Any, ...], layers: tuple[int, ...]) -> Inverting:
        """The inversion of an image: queries for contents, keys and values for styles."""
        place = (source.digest, *kind)
        if place not in self._made:
            content, style = source.digest in self._contents, source.digest in self._styles
            keep = "both" if content and style else "query" if content else "keys"
            steps, schedule, seed = kind
            recipe = plan_inversion(
                self._model, Steps(steps, schedule), layers, self._prompt, self._common.chosen(seed), Hooks()
            )
            key = key_of(np.asarray(source.pixels), self._model, recipe.settings(keep))
            self._made[place] = Inverting(key, source, keep, steps, schedule, layers, seed, self._common)
        return self._made[place]
