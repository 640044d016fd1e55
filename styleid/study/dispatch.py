"""The order in which the workers of a cluster carry out a plan.

The results of a sweep are a table of contents by styles. Each worker has a tile of it to itself, so that an inversion is
copied only to a worker that makes results of it; who has nothing left to do takes half of the largest tile there is.
Every inversion is made once, by the first who needs it, and the others fetch it. A tile has no more contents than fit
onto the worker's disk, where they stay, while its styles, whose keys and values are large, pass through. It is also
said here what goes to make room for the next inversion: nothing that a step given out needs.

This module knows nothing of processes or networks: `styleid.study.cluster` carries the steps out, `styleid.study.estimate`
plays them through. To find a step takes no longer than to look through one tile's contents and styles, and mostly far less.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from styleid.study.plan import STYLES, Inverting, Result, in_blocks, largest

AT_ONCE = 2  # steps of a worker: one that computes, and one that is a transfer or waits for its turn
OUTGOING = 2  # transfers that a worker serves at once
TRIES = 2  # how often a step that fails is tried, by another worker where one is free
FALLS = 3  # workers that went down with a step before it counts as failed


class Step(NamedTuple):
    """What a worker does: "invert", "fetch" (an inversion from the worker `peer`) or "sample"."""

    kind: str
    key: str  # the key of the inversion or of the result
    peer: str = ""


class Given(NamedTuple):
    """A step for a worker. drop: inversions to be removed from its folder before."""

    worker: str
    step: Step
    drop: tuple[str, ...]


class Tile:
    """Results that are not given out: by style and content, in the order in which a worker makes them."""

    def __init__(self, results: Iterable[Result] = ()) -> None:
        self.open: dict[str, dict[str, deque[Result]]] = {}
        self.contents: Counter[str] = Counter()  # how many results each has
        self.count = 0
        for result in results:
            self.put(result)

    def put(self, result: Result) -> None:
        """Adds a result."""
        self.open.setdefault(result.style.key, {}).setdefault(result.content.key, deque()).append(result)
        self.contents[result.content.key] += 1
        self.count += 1

    def take(self, result: Result) -> None:
        """Removes a result."""
        style, content = result.style.key, result.content.key
        self.open[style][content].remove(result)
        self.contents[content] -= 1
        self.count -= 1
        if not self.contents[content]:
            del self.contents[content]
        if not self.open[style][content]:
            del self.open[style][content]
            if not self.open[style]:
                del self.open[style]

    def needs(self, key: str) -> bool:
        """Whether there is a result of that inversion."""
        return key in self.open or key in self.contents

    @property
    def results(self) -> list[Result]:
        """All results of the tile."""
        return [result for contents in self.open.values() for results in contents.values() for result in results]

    def cut(self, part: float, query: float, keys: float) -> Tile:
        """Takes about this part of two or more results away, from the end: styles or contents, whichever are more bytes."""
        styles, contents = list(self.open), list(self.contents)
        if len(styles) > 1 and (len(contents) == 1 or len(styles) * keys >= len(contents) * query):
            moved = [r for style in _tail(styles, part) for results in self.open[style].values() for r in results]
        elif len(contents) > 1:
            chosen = _tail(contents, part)
            moved = [r for row in self.open.values() for content in chosen for r in row.get(content, ())]
        else:
            moved = _tail(self.results, part)
        for result in moved:
            self.take(result)
        return Tile(moved)


def _tail(values: list[Any], part: float) -> list[Any]:
    return values[-min(len(values) - 1, max(1, round(len(values) * part))) :]


def _first(names: dict[str, None]) -> str:
    """Removes the first name and returns it."""
    name = next(iter(names))
    del names[name]
    return name


class Store:
    """The inversions in a folder, which has so much room and is a worker's own or that of all workers."""

    def __init__(self, room: float) -> None:
        self.room, self.bytes = room, 0.0
        self.held: dict[str, float] = {}  # bytes of each; what was used last is last
        self.coming: dict[str, float] = {}  # what is being made or fetched
        self.used: Counter[str] = Counter()  # how many steps that are given out read each
        self.waiting: dict[str, None] = {}  # workers that found no room

    def move(self, key: str, source: dict[str, float] | None, target: dict[str, float] | None, size: float = 0) -> None:
        """Moves an inversion into or out of `held` and `coming`."""
        if source is not None:
            self.bytes -= source.pop(key, 0.0)
        if target is not None and key not in target:
            target[key] = size
            self.bytes += size

    def surplus(self, size: float, rank: Callable[[str], int]) -> tuple[str, ...] | None:
        """What has to go for so many bytes: the lowest rank first, and of one rank what was not used for longest. None: there is
        no room now."""
        gone: list[str] = []
        excess = self.bytes + size - self.room
        for key in sorted((key for key in self.held if not self.used[key]), key=rank) if excess > 0 else ():
            gone.append(key)
            excess -= self.held[key]
            if excess <= 0:
                break
        alone = len(gone) == len(self.held) and not self.coming  # what is alone may be larger than the room
        return tuple(gone) if excess <= 0 or alone else None

    def use(self, keys: Iterable[str], count: int) -> None:
        """Counts a step that reads these inversions and begins (1) or ends (-1)."""
        for key in keys:
            self.used[key] += count
            if key in self.held:
                self.held[key] = self.held.pop(key)


@dataclass
class Worker:
    """What is known of a worker."""

    name: str
    store: Store
    tile: Tile = field(default_factory=Tile)
    styles: dict[str, None] = field(default_factory=dict)  # those of the tile that are here or on their way
    steps: dict[Step, dict[str, float]] = field(default_factory=dict)  # given and not done, with what goes for each

    @property
    def computes(self) -> bool:
        """Whether one of its steps is no transfer."""
        return any(step.kind != "fetch" for step in self.steps)


class Dispatcher:
    """Gives out the steps of a plan.

    Args:
        results: those that are to be made
        size: the bytes of an inversion, at most
        disk: bytes of inversions in the folder of each worker, or in that of all; they are kept to, if there is room for
            one content and three styles
        shared: all workers have one folder of inversions, so nothing is fetched
    """

    def __init__(
        self, results: Sequence[Result], size: Callable[[Inverting], float], disk: float, shared: bool = False
    ) -> None:
        self.results = {result.key: result for result in results}
        self.inversions = {one.key: one for result in results for one in (result.content, result.style)}
        self.size = {key: size(one) for key, one in self.inversions.items()}
        self.workers: dict[str, Worker] = {}
        self.failed: dict[str, str] = {}  # why it failed, by the key of an inversion or a result
        self.open = self._left = len(self.results)  # how many are not made; and not given out either
        self._query, self._keys = largest(results, size)
        self._room = max(disk, self._query + (STYLES + 1) * self._keys)
        self._shared = Store(self._room) if shared else None
        # Workers that share a folder may be in two blocks at a time, and their styles are there as well.
        blocks = in_blocks(results, size, self._room / 3 + (STYLES + 1) * self._keys if shared else self._room)
        self._pool = [Tile(block) for block in reversed(blocks)]  # tiles that are nobody's; the first one is last
        self._uses = Counter(one.key for result in results for one in (result.content, result.style))
        self._places: dict[str, dict[str, None]] = {}  # the workers that have an inversion
        self._making: set[str] = set()
        self._serving: Counter[str] = Counter()
        self._tries: Counter[Step] = Counter()
        self._wanted: dict[str, dict[str, None]] = {}  # the workers that wait for an inversion
        self._idle: dict[str, None] = {}  # workers that found no tile
        self._asking: dict[str, None] = {}  # workers that may find something
        self._offering: dict[str, None] = {}  # workers from which others may fetch something
        self._given: list[Given] = []

    @property
    def at_a_time(self) -> float:
        """How many workers there is room for in the folder that they share."""
        return math.inf if self._shared is None else max(1, self._room / 3 // (STYLES * self._keys))

    # ---- what happens ----

    def add_worker(self, name: str, held: Mapping[str, float] | None = None) -> None:
        """Adds a worker, with the bytes of each inversion in its folder, of whatever sweep it is."""
        self.workers[name] = Worker(name, self._shared or Store(self._room))
        for key, size in (held or {}).items():
            self._arrived(self.workers[name], key, size)
        self._asking[name] = None

    def remove_worker(self, name: str, fell: bool = False) -> list[str]:
        """Removes a worker that is gone, with the inversions that it had; its steps are given out again.

        fell: it may have gone because of them, so that a step which took several workers down has failed. Returns the reasons
        of what failed.
        """
        worker = self.workers[name]
        reasons = []
        for step in list(worker.steps):
            if fell and step.kind != "fetch":
                reasons += self.fail(name, step, "workers go down with it", FALLS)
            else:
                self.again(name, step)
        if worker.tile.count:
            self._pool.append(worker.tile)
        if self._shared is None:
            for key in list(worker.store.held):
                self._lost(worker, key)
        del self.workers[name]
        self._asking = dict.fromkeys(self.workers)
        return reasons

    def done(self, name: str, step: Step) -> None:
        """Takes note of a step that is done."""
        worker = self.workers[name]
        self._end(worker, step)
        self._asking[name] = None
        if step.kind == "sample":
            self._close(self.results[step.key])
        else:
            self._arrived(worker, step.key, self.size[step.key])
            self._asking |= dict.fromkeys(list(self._idle)[:1])  # somebody may have something to give away now

    def again(self, name: str, step: Step, missing: Iterable[str] = ()) -> None:
        """Gives a step out again that was not done, maybe because inversions are missing where they should be."""
        worker = self.workers[name]
        for key, size in self._end(worker, step).items():
            self._arrived(worker, key, size)  # it may still be there, and then takes room
        if step.kind == "sample":
            self._pool.append(Tile([self.results[step.key]]))
            self._left += 1
        place = self.workers.get(step.peer or name)
        if place is not None:
            for key in missing:
                self._lost(place, key)
        self._asking = dict.fromkeys(self.workers)

    def fail(self, name: str, step: Step, reason: str, tries: int = TRIES) -> list[str]:
        """Gives a step out again that failed, unless it failed that often; then its reason is returned."""
        self._tries[step] += 1
        final = self._tries[step] >= tries
        self.again(name, step, [step.key] if final and step.kind == "fetch" else ())
        if not final or step.kind == "fetch":
            return []
        self.failed[step.key] = reason
        for tile in (*self._pool, *(worker.tile for worker in self.workers.values())):
            for result in tile.results if step.key in self.results or tile.needs(step.key) else ():
                if step.key in (result.key, result.content.key, result.style.key):
                    tile.take(result)
                    self._left -= 1
                    self._close(result)
        return [reason]

    def give(self) -> list[Given]:
        """The steps that can be done now and were not given out."""
        while self._asking or self._offering:
            while self._asking:
                self._ask(_first(self._asking))
            while self._offering:
                self._offer(_first(self._offering))
        given, self._given = self._given, []
        return given

    # ---- what a worker does next ----

    def _ask(self, name: str) -> None:
        """Gives a worker all that it can do."""
        worker = self.workers.get(name)
        while worker is not None and len(worker.steps) < AT_ONCE:
            step = self._choose(worker)
            drop = None if step is None else self._room_for(worker, step)
            if step is None or drop is None:
                break
            self._begin(worker, step, drop)

    def _offer(self, name: str) -> None:
        """Asks the workers that wait for an inversion of this one, as far as it may serve them."""
        held = self.workers[name].store.held if name in self.workers else {}
        for key in [key for key in held if key in self._wanted]:
            while key in held and self._serving[name] < OUTGOING and (waiting := self._wanted.get(key)):
                self._ask(_first(waiting))

    def _choose(self, worker: Worker) -> Step | None:
        computes = worker.computes
        ahead = not computes or self._left > len(self.workers)  # the last results are for whoever is free first
        if not worker.tile.count and ahead:
            worker.tile = self._claim(worker)
            worker.styles = dict.fromkeys(style for style in worker.tile.open if style in worker.store.held)
        step = self._sampling(worker) if ahead else None
        return step or self._bringing(worker, computes)

    def _claim(self, worker: Worker) -> Tile:
        """A tile for a worker: a fair part of what is nobody's, else half of the largest tile of all."""
        self._idle.pop(worker.name, None)
        busy = [other for other in self.workers.values() if other.tile.count]
        if len(busy) < self.at_a_time:
            if self._pool:
                tile = self._pool.pop()
                fair = math.ceil(
                    (sum(each.count for each in self._pool) + tile.count) / (len(self.workers) - len(busy))
                )
                while tile.count > fair:
                    parts = max(2, round(tile.count / fair))
                    self._pool.append(tile.cut((parts - parts // 2) / parts, self._query, self._keys))
                return tile
            victim = max(busy, key=lambda other: other.tile.count, default=worker)
            if victim.tile.count > 1:
                return victim.tile.cut(0.5, self._query, self._keys)
            if victim.tile.count and self._gives_away(victim):
                tile, victim.tile = victim.tile, Tile()
                return tile
        self._idle[worker.name] = None
        return Tile()

    def _gives_away(self, worker: Worker) -> bool:
        """Whether another worker may be sooner with the only result of its tile: this one makes something else, or there is
        an inversion to make for each of the two."""
        (result,) = worker.tile.results
        made = self._places.keys() | self._making
        kinds = [step.kind for step in worker.steps]
        return kinds == ["sample"] or kinds == ["invert"] and not {result.content.key, result.style.key} <= made

    def _sampling(self, worker: Worker) -> Step | None:
        """A sampling of two inversions that are here."""
        held = worker.store.held
        for style in list(worker.styles):
            if style not in worker.tile.open:
                del worker.styles[style]
            elif style in held:
                for content, results in worker.tile.open[style].items():
                    if content in held:
                        return Step("sample", results[0].key)
        return None

    def _bringing(self, worker: Worker, computes: bool) -> Step | None:
        """A step that brings an inversion which the tile needs: it is made, if nobody has begun to and this worker is free,
        and else fetched.

        Those of contents come first, for styles that are here or on their way, and then those of styles.
        """
        tile, store = worker.tile, worker.store
        keys = dict.fromkeys(content for style in worker.styles for content in tile.open.get(style, ()))
        if len(worker.styles) < STYLES:
            keys |= dict.fromkeys(tile.open)
        missing = [key for key in keys if key not in store.held]
        if not computes:
            for key in chain(missing, tile.contents):
                if key not in self._places and key not in self._making:
                    return Step("invert", key)
        for key in missing:
            places = self._places.get(key, {})
            if places and key in store.coming:
                continue
            if places:
                peer = min(places, key=self._serving.__getitem__)
                if self._serving[peer] < OUTGOING:
                    return Step("fetch", key, peer)
            if places or key in self._making:
                self._wanted.setdefault(key, {})[worker.name] = None
        return None

    def _room_for(self, worker: Worker, step: Step) -> tuple[str, ...] | None:
        """The inversions that go for that of a step. None: there is no room now."""
        if step.kind == "sample":
            return ()

        def rank(key: str) -> int:
            return 0 if not self._uses[key] else 1 if self._shared or not worker.tile.needs(key) else 2

        drop = worker.store.surplus(self.size[step.key], rank)
        if drop is None:
            worker.store.waiting[worker.name] = None
        return drop

    # ---- bookkeeping ----

    def _begin(self, worker: Worker, step: Step, drop: tuple[str, ...]) -> None:
        worker.steps[step] = {key: worker.store.held[key] for key in drop}
        for key in drop:
            self._lost(worker, key)
        if step.kind == "sample":
            result = self.results[step.key]
            worker.tile.take(result)
            self._left -= 1
            worker.store.use((result.content.key, result.style.key), 1)
        else:
            worker.store.move(step.key, None, worker.store.coming, self.size[step.key])
            if step.key in worker.tile.open:
                worker.styles[step.key] = None
            if step.kind == "invert":
                self._making.add(step.key)
            else:
                self._serving[step.peer] += 1
                self.workers[step.peer].store.use([step.key], 1)
        self._given.append(Given(worker.name, step, drop))

    def _end(self, worker: Worker, step: Step) -> dict[str, float]:
        """Takes back a step that was given out. Returns what went for it."""
        stores = [worker.store]
        if step.kind == "sample":
            result = self.results[step.key]
            worker.store.use((result.content.key, result.style.key), -1)
        else:
            worker.store.move(step.key, worker.store.coming, None)
            worker.styles.pop(step.key, None)
            if step.kind == "invert":
                self._making.discard(step.key)
            else:
                self._serving[step.peer] -= 1
                if step.peer in self.workers:
                    self._offering[step.peer] = None
                    stores.append(self.workers[step.peer].store)
                    stores[1].use([step.key], -1)
        for store in stores:
            self._asking |= store.waiting
            store.waiting = {}
        return worker.steps.pop(step)

    def _arrived(self, worker: Worker, key: str, size: float) -> None:
        worker.store.move(key, None, worker.store.held, size)
        if key in self.inversions:
            self._places.setdefault(key, {})[worker.name] = None
            self._offering[worker.name] = None
        for other in [worker] if self._shared is None else self.workers.values():
            if key in other.tile.open:
                other.styles[key] = None

    def _lost(self, worker: Worker, key: str) -> None:
        worker.store.move(key, worker.store.held, None)
        for other in [worker] if self._shared is None else self.workers.values():
            other.styles.pop(key, None)
        places = self._places.get(key, {})
        places.pop(worker.name, None)
        if not places or self._shared is not None:
            self._places.pop(key, None)
            self._asking |= self._wanted.pop(key, {})

    def _close(self, result: Result) -> None:
        """Closes a result that is made, or never will be."""
        self.open -= 1
        self._uses[result.content.key] -= 1
        self._uses[result.style.key] -= 1
