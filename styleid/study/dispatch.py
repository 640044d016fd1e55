"""The order in which the workers of a cluster carry out a plan.

Every inversion is made once and stays where it was made; a sampling goes to a worker that has both of its inversions.
Workers share the styles out among themselves, whose keys and values are large, and fetch the contents' queries from
each other. Contents are taken in blocks that fit into a worker's disk together with the styles at hand. This module
knows nothing of processes or networks: `styleid.study.cluster` carries the steps out, `styleid.study.estimate` plays
them through.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from styleid.study.plan import Inverting, Result

AT_ONCE = 2  # steps of a worker: one that computes, and the next one, which may be a transfer
STYLES = 2  # whose results a worker makes at a time
OUTGOING = 2  # transfers that a worker serves at once
TRIES = 2  # of a step that fails, on another worker where there is one
FALLS = 3  # workers that went down with a step before it counts as failed


class Step(NamedTuple):
    """What a worker does: "invert", "fetch" (an inversion from the worker `peer`) or "sample"."""

    kind: str
    key: str  # of the inversion or the result
    peer: str = ""


@dataclass
class Worker:
    """What is known of a worker. `held` has the inversions there in the order of their arrival."""

    held: dict[str, None]
    coming: set[str] = field(default_factory=set)  # those that it makes or fetches
    steps: list[Step] = field(default_factory=list)  # given to it and not done


class Stage:
    """The results of a block of contents with all styles that are not given out, by style and content."""

    def __init__(self, results: Iterable[Result]) -> None:
        self.open: dict[str, dict[str, deque[str]]] = {}
        for result in results:
            self.put(result)

    def put(self, result: Result) -> None:
        """Adds a result."""
        self.open.setdefault(result.style.key, {}).setdefault(result.content.key, deque()).append(result.key)

    def take(self, result: Result) -> None:
        """Removes a result."""
        contents = self.open[result.style.key]
        contents[result.content.key].remove(result.key)
        if not contents[result.content.key]:
            del contents[result.content.key]
            if not contents:
                del self.open[result.style.key]


class Dispatcher:
    """Gives out the steps of a plan.

    Args:
        results: those that are to be made
        size: the bytes of an inversion
        disk: bytes that each worker has for inversions
        shared: all workers have one folder of inversions, so nothing is fetched
    """

    def __init__(
        self, results: Sequence[Result], size: Callable[[Inverting], int], disk: float, shared: bool = False
    ) -> None:
        self.results = {result.key: result for result in results}
        self.inversions = {one.key: one for result in results for one in (result.content, result.style)}
        self.workers: dict[str, Worker] = {}
        self.failed: dict[str, str] = {}  # by the key of an inversion or a result: why
        self.open = len(self.results)
        self._shared: dict[str, None] | None = {} if shared else None
        self._places: dict[str, set[str]] = {}  # of inversions: the workers that have them
        self._making: set[str] = set()
        self._serving: Counter[str] = Counter()
        self._tries: Counter[Step] = Counter()
        self._stages: list[Stage] = []
        self._stage_of: dict[str, Stage] = {}
        for block in _blocks(results, size, disk):
            self._stages.append(Stage(block))
            self._stage_of |= {result.key: self._stages[-1] for result in block}

    def add_worker(self, name: str, held: Iterable[str] = ()) -> None:
        """Adds a worker, with the inversions that it has already."""
        self.workers[name] = Worker({} if self._shared is None else self._shared)
        for key in held:
            if key in self.inversions:
                self._arrived(name, key)

    def remove_worker(self, name: str, fell: bool = False) -> list[str]:
        """Removes a worker that is gone, with the inversions that it had; its steps are given out again.

        fell: maybe because of them, so that what took several workers down has failed. Returns the reasons of what failed.
        """
        worker = self.workers[name]
        reasons = []
        for step in list(worker.steps):
            if fell and step.kind != "fetch":
                reasons += self.fail(name, step, "workers go down with it", FALLS)
            else:
                self.again(name, step)
        if self._shared is None:
            for key in list(worker.held):
                self._lost(name, key)
        del self.workers[name]
        return reasons

    def next_step(self, name: str) -> Step | None:
        """The step that a worker is to do next; None: nothing at present."""
        worker = self.workers[name]
        step = self._choose(worker) if len(worker.steps) < AT_ONCE else None
        if step is None:
            return None
        worker.steps.append(step)
        if step.kind == "sample":
            self._stage_of[step.key].take(self.results[step.key])
        else:
            worker.coming.add(step.key)
            self._making |= {step.key} if step.kind == "invert" else set()
            self._serving[step.peer] += step.kind == "fetch"
        return step

    def done(self, name: str, step: Step, dropped: Iterable[str] = ()) -> None:
        """Notes that a step is done. dropped: inversions that the worker removed to stay within its disk."""
        self._end(name, step)
        if step.kind == "sample":
            self.open -= 1
        else:
            self._arrived(name, step.key)
        for key in dropped:
            self._lost(name, key)

    def again(self, name: str, step: Step, missing: Iterable[str] = ()) -> None:
        """Gives out a step again that was not done, maybe because inversions are missing where they should be."""
        self._end(name, step)
        if step.kind == "sample":
            self._stage_of[step.key].put(self.results[step.key])
        for key in missing:
            self._lost(step.peer or name, key)

    def fail(self, name: str, step: Step, reason: str, tries: int = TRIES) -> list[str]:
        """A step failed; it is given out again unless it failed that often, which its reason is returned for."""
        self.again(name, step)
        self._tries[step] += 1
        if self._tries[step] < tries:
            return []
        if step.kind == "sample":
            self._drop(self.results[step.key], step.key, reason)
        else:
            lost = [key for stage in self._stages for key in _keys(stage)]
            for result in map(self.results.__getitem__, lost):
                if step.key in (result.content.key, result.style.key):
                    self._drop(result, step.key, reason)
        return [reason]

    # ---- what a worker does next ----

    def _choose(self, worker: Worker) -> Step | None:
        for stage in self._stages:
            if stage.open:
                for find in (self._sampling, self._content, self._style, self._any_content):
                    step = find(stage, worker)
                    if step is not None:
                        return step
        return None

    def _sampling(self, stage: Stage, worker: Worker) -> Step | None:
        """Of two inversions that are here; of the style that came last first."""
        for style in reversed(worker.held):
            for content, keys in stage.open.get(style, {}).items():
                if content in worker.held:
                    return Step("sample", keys[0])
        return None

    def _content(self, stage: Stage, worker: Worker) -> Step | None:
        """The queries of a content for a style that is here or on its way."""
        for style in (*worker.coming, *reversed(worker.held)):
            for content in stage.open.get(style, ()):
                step = self._get(content, worker)
                if step is not None:
                    return step
        return None

    def _style(self, stage: Stage, worker: Worker) -> Step | None:
        """A style that no worker has, else the style with most work left; not more than two at a time."""
        if self._shared is None and sum(style in stage.open for style in (*worker.coming, *worker.held)) >= STYLES:
            return None
        for style in stage.open:
            if style not in self._places and style not in self._making:
                return self._get(style, worker)
        for style in sorted(stage.open, key=lambda style: -len(stage.open[style])):
            step = self._get(style, worker)
            if step is not None:
                return step
        return None

    def _any_content(self, stage: Stage, worker: Worker) -> Step | None:
        """A content that no worker has inverted."""
        for content in dict.fromkeys(content for contents in stage.open.values() for content in contents):
            if content not in self._places and content not in self._making:
                return self._get(content, worker)
        return None

    def _get(self, key: str, worker: Worker) -> Step | None:
        """The step that brings an inversion here; None if it is here, on its way, or not to be had now."""
        if key in worker.held or key in worker.coming:
            return None
        places = self._places.get(key)
        if not places:
            return None if key in self._making else Step("invert", key)
        peer = min(places, key=self._serving.__getitem__)
        return Step("fetch", key, peer) if self._serving[peer] < OUTGOING else None

    # ---- bookkeeping ----

    def _arrived(self, name: str, key: str) -> None:
        self.workers[name].held[key] = None
        self._places.setdefault(key, set()).add(name)

    def _lost(self, name: str, key: str) -> None:
        if name in self.workers:
            self.workers[name].held.pop(key, None)
        places = self._places.get(key, set())
        places.discard(name)
        if not places or self._shared is not None:
            self._places.pop(key, None)

    def _end(self, name: str, step: Step) -> None:
        worker = self.workers[name]
        worker.steps.remove(step)
        if step.kind != "sample":
            worker.coming.discard(step.key)
            self._making.discard(step.key)
            self._serving[step.peer] -= step.kind == "fetch"

    def _drop(self, result: Result, key: str, reason: str) -> None:
        self._stage_of[result.key].take(result)
        self.open -= 1
        self.failed[key] = reason


def _blocks(results: Sequence[Result], size: Callable[[Inverting], int], disk: float) -> list[list[Result]]:
    """The results in blocks that a worker's disk has room for: one kind of inversion, so many contents, all styles."""
    if not results:
        return []
    query, keys = (max(size(getattr(result, which)) for result in results) for which in ("content", "style"))
    count = max(1, int((disk - (STYLES + 1) * keys) // query)) if disk < math.inf else len(results)
    numbers: dict[tuple[int, str], int] = {}
    blocks: dict[tuple[int, int], list[Result]] = {}
    for result in results:
        number = numbers.setdefault((result.group, result.content.key), len(numbers))
        blocks.setdefault((result.group, number // count), []).append(result)
    return list(blocks.values())


def _keys(stage: Stage) -> list[str]:
    return [key for contents in stage.open.values() for keys in contents.values() for key in keys]
