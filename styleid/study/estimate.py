"""Estimates what a sweep will cost: its steps are played through with times that were measured on this machine."""

from __future__ import annotations

import heapq
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from styleid import _core
from styleid.metrics import evaluate
from styleid.models.model import Model
from styleid.study.dispatch import AT_ONCE, Dispatcher, Step
from styleid.study.plan import Inverting, Result

WORKERS = 1, 8, 64, 512
NETWORK = 1e9  # bytes a second between two workers, as 10 Gbit/s give
SCHEDULER = 1e9  # bytes a second of results through the scheduler to the client
TASK = 1e-3  # seconds of the scheduler and the client for a task
WRITE = 5e-3  # seconds of the client to write a result
LARGEST = 200_000  # results times workers that are played through; of more there is the least time alone


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes, as `measure_costs` finds them."""

    evaluation: float  # of the UNet
    encode: float
    decode: float
    measures: float
    result: float  # bytes of a result's PNG, at most

    def of(self, step: Step, dispatcher: Dispatcher) -> float:
        """Seconds of a computing step."""
        if step.kind == "invert":
            return self.invert(dispatcher.inversions[step.key])
        return self.sample(dispatcher.results[step.key])

    def invert(self, task: Inverting) -> float:
        """Seconds of an inversion."""
        return self.encode + self.evaluation * task.steps * (1 + task.common.refine)

    def sample(self, task: Result) -> float:
        """Seconds of a sampling with its measures."""
        guided = 2 if task.settings["guidance"] != 1 else 1
        recomputed = 2 if task.content.common.features == "recompute" else 0
        evaluations = task.content.steps * float(task.settings["strength"]) * (guided + recomputed)
        return evaluations * self.evaluation + self.decode + self.measures


@dataclass(frozen=True)
class Estimate:
    """What a sweep takes with a number of workers.

    Attributes:
        workers: how many
        seconds: of wall time
        steps: how many there are of each kind
        moved: bytes between workers
        sent: bytes of results through the scheduler
        busy: the part of its time that a worker computes
        limit: what is used most, and so saturates first
    """

    workers: int
    seconds: float
    steps: Counter[str]
    moved: float
    sent: float
    busy: float
    limit: str


def measure_costs(model: Model, size: tuple[int, int]) -> Costs:
    """The times of one evaluation, of the VAE and of the measures, at (height, width) pixels on this machine."""
    height, width = (-(-side // model.image_multiple) * model.image_multiple for side in size)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    latent = model.encode(image)
    return Costs(
        _seconds(lambda: model.predict_noise(latent, 1)),
        _seconds(lambda: model.encode(image)),
        _seconds(lambda: model.decode(latent)),
        _seconds(lambda: evaluate(image, image, image)),
        image.nbytes,
    )


def _seconds(run: Callable[[], object]) -> float:
    """The seconds of the second call; the first call of a size also prepares the engine."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class _Disk:
    """The inversions of a worker, which removes the ones that were used least recently."""

    def __init__(self, room: float) -> None:
        self.room = room
        self.held: OrderedDict[str, int] = OrderedDict()
        self.bytes = 0

    def use(self, step: Step, dispatcher: Dispatcher, size: Callable[[Inverting], int]) -> list[str]:
        """Notes the inversions that a finished step uses or brings. Returns those that had to go for them."""
        keys = [step.key]
        if step.kind == "sample":
            result = dispatcher.results[step.key]
            keys = [result.content.key, result.style.key]
        for key in keys:
            if key not in self.held:
                self.held[key] = size(dispatcher.inversions[key])
                self.bytes += self.held[key]
            self.held.move_to_end(key)
        gone = []
        while self.bytes > self.room and len(self.held) > len(keys):
            key, amount = self.held.popitem(last=False)
            self.bytes -= amount
            gone.append(key)
        return gone


def play(
    results: Sequence[Result], size: Callable[[Inverting], int], costs: Costs, workers: int, disk: float
) -> Estimate:
    """Plays a sweep through on so many equal workers, each with a disk of its own."""
    dispatcher = Dispatcher(results, size, disk)
    disks = {str(number): _Disk(disk) for number in range(workers)}
    free = dict.fromkeys(disks, 0.0)  # when a worker has computed what it was given
    hungry = dict.fromkeys(disks)  # workers that could do more
    asked = list(disks)  # those of them that may find something
    events: list[tuple[float, int, str, Step]] = []
    order = count()
    steps: Counter[str] = Counter()
    computed = moved = now = 0.0
    for name in disks:
        dispatcher.add_worker(name)
    while True:
        for name in asked:
            while (step := dispatcher.next_step(name)) is not None:
                steps[step.kind] += 1
                if step.kind == "fetch":
                    amount = size(dispatcher.inversions[step.key])
                    moved += amount
                    heapq.heappush(events, (now + amount / NETWORK, next(order), name, step))
                    continue
                seconds = costs.of(step, dispatcher)
                computed += seconds
                free[name] = max(free[name], now) + seconds
                heapq.heappush(events, (free[name], next(order), name, step))
            if len(dispatcher.workers[name].steps) == AT_ONCE:
                hungry.pop(name, None)
        if not events:
            break
        now, _, name, step = heapq.heappop(events)
        dispatcher.done(name, step, disks[name].use(step, dispatcher, size))
        hungry[name] = None
        asked = [name] if step.kind == "sample" else list(hungry)
    sent = steps["sample"] * costs.result
    uses = {
        "computing": computed / workers / now,
        "the network of a worker": moved / workers / NETWORK / now,
        "the scheduler's network": sent / SCHEDULER / now,
        "the scheduler": sum(steps.values()) * TASK / now,
        "the client's writing": steps["sample"] * WRITE / now,
    }
    limit = max(uses, key=uses.__getitem__)
    return Estimate(workers, now, steps, moved, sent, uses["computing"], f"{limit} ({uses[limit]:.0%})")


def estimate_text(results: Sequence[Result], model: Model, size: Callable[[Inverting], int], disk: float) -> str:
    """The text that says what a sweep will cost on 1, 8, 64 and 512 workers like this machine."""
    if not results:
        return "nothing is left to do"
    inversions = {one.key: one for result in results for one in (result.content, result.style)}
    largest = max(inversions.values(), key=lambda one: one.source.pixels.size)
    costs = measure_costs(model, largest.source.pixels.shape[:2])
    stored = sum(size(one) for one in inversions.values())
    times = f"an evaluation {costs.evaluation:.3f} s, encode {costs.encode:.3f} s, decode {costs.decode:.3f} s"
    rates = f"{NETWORK / 1e9:g} GB/s between workers, {SCHEDULER / 1e9:g} GB/s through the scheduler"
    titles = f"{'workers':>7}  {'wall time':>10}  {'inversions':>10}  {'moved':>10}  {'results':>9}  {'busy':>5}"
    machine = f"{_core.info()['isa']}, {model.threads} threads, {model.dtype}"
    lines = [
        f"{len(results)} results of {len(inversions)} inversions, which take {stored / 1e9:.2f} GB",
        f"measured here ({machine}): {times}, measures {costs.measures:.3f} s",
        f"assumed: {rates}, {TASK * 1e3:g} ms a task, {disk / 1e9:.1f} GB of inversions a worker",
        f"{titles}  saturates first",
    ]
    least = sum(map(costs.invert, inversions.values())) + sum(map(costs.sample, results))
    for workers in WORKERS:
        if len(results) * workers > LARGEST:
            lines.append(f"{workers:7}  {_duration(least / workers):>10}  at least: too many steps to play through")
            continue
        found = play(results, size, costs, workers, disk)
        lines.append(
            f"{workers:7}  {_duration(found.seconds):>10}  {found.steps['invert']:10}  {found.moved / 1e9:7.1f} GB  "
            f"{found.sent / 1e9:6.2f} GB  {found.busy:5.0%}  {found.limit}"
        )
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
