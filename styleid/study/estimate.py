"""Estimates what a sweep will cost: its steps are played through with times that were measured on this machine."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from styleid import _core
from styleid.metrics import evaluate
from styleid.models.model import Model
from styleid.study.dispatch import OUTGOING, Dispatcher, Step
from styleid.study.plan import Inverting, Result

if TYPE_CHECKING:
    from styleid.study.sweeps import Study

WORKERS = 1, 8, 64, 512
NETWORK = 1e9  # bytes a second between two workers, as 10 Gbit/s give
SCHEDULER = 1e9  # bytes a second of results through the scheduler to the client
TASK = 1e-3  # seconds of the scheduler and the client for a task
WRITE = 5e-3  # seconds of the client to write a result
DRIVE = 1e9  # bytes a second that a disk reads or writes


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes, as `measure_costs` finds them."""

    evaluation: float  # one of the UNet
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
        seconds: the wall time
        steps: how many there are of each kind
        moved: bytes between workers
        sent: bytes of results through the scheduler
        uses: the part that is used of what there is, by what it is
        tail: the part of their time that workers have at the end, with nothing left for them
    """

    seconds: float
    steps: Counter[str]
    moved: float
    sent: float
    uses: dict[str, float]
    tail: float

    @property
    def limit(self) -> str:
        """What is used most, and so saturates first."""
        return max(self.uses, key=self.uses.__getitem__)


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


def play(
    results: Sequence[Result],
    size: Callable[[Inverting], float],
    costs: Costs,
    workers: int,
    disk: float,
    shared: bool = False,
) -> Estimate:
    """Plays a sweep through on so many equal workers, each with a folder of its own, or all with one.

    What all workers use together may be asked for more than it can do; then the sweep takes as much longer.
    """
    dispatcher = Dispatcher(results, size, disk, shared)
    for number in range(workers):
        dispatcher.add_worker(str(number))
    free = dict.fromkeys(dispatcher.workers, 0.0)  # when a worker has computed what it was given
    events: list[tuple[float, int, str, Step]] = []
    order = count()
    steps: Counter[str] = Counter()
    computed = moved = made = read = now = 0.0
    while True:
        for name, step, _ in dispatcher.give():
            steps[step.kind] += 1
            if step.kind == "fetch":
                moved += dispatcher.size[step.key]
                end = now + dispatcher.size[step.key] * OUTGOING / NETWORK
            else:
                seconds = costs.of(step, dispatcher)
                computed += seconds
                end = free[name] = max(free[name], now) + seconds
            if step.kind == "sample":
                result = dispatcher.results[step.key]
                read += dispatcher.size[result.content.key] + dispatcher.size[result.style.key]
            elif step.kind == "invert":
                made += dispatcher.size[step.key]
            heapq.heappush(events, (end, next(order), name, step))
        if not events:
            break
        now, _, name, step = heapq.heappop(events)
        dispatcher.done(name, step)
    sent = steps["sample"] * costs.result
    needs = {
        "computing": computed / workers,
        "the scheduler's network": sent / SCHEDULER,
        "the scheduler": sum(steps.values()) * TASK,
        "the client's writing": steps["sample"] * WRITE,
    }
    if shared:
        needs["the shared folder"] = (made + read) / NETWORK
    else:
        needs |= {"a worker's network": moved / workers / NETWORK}
        # What is moved is read there and written here.
        needs |= {"a worker's disk": (made + 2 * moved + read) / workers / DRIVE}
    seconds = max(now, *needs.values())
    uses = {what: need / seconds for what, need in needs.items()}
    return Estimate(seconds, steps, moved, sent, uses, 1 - sum(free.values()) / workers / now)


def estimate_text(study: Study) -> str:
    """What a sweep will cost on 1, 8, 64 and 512 workers like this machine."""
    results, model, disk = study.open(), study.model, study.room(True)
    if not results:
        return "nothing is left to do"
    inversions = {one.key: one for result in results for one in (result.content, result.style)}
    largest = max(inversions.values(), key=lambda one: one.source.pixels.size)
    costs = measure_costs(model, largest.source.pixels.shape[:2])
    stored = sum(map(study.size_of, inversions.values()))
    times = f"an evaluation {costs.evaluation:.3f} s, encode {costs.encode:.3f} s, decode {costs.decode:.3f} s"
    rates = f"{NETWORK / 1e9:g} GB/s between workers, {DRIVE / 1e9:g} GB/s of a disk"
    where = "for all workers" if study.shared else "a worker"
    titles = (
        f"{'workers':>7}  {'wall time':>9}  {'inversions':>10}  {'moved':>10}  {'results':>9}  {'busy':>4}  {'tail':>4}"
    )
    machine = f"{_core.info()['isa']}, {model.threads} threads, {model.dtype}"
    lines = [
        f"{len(results)} results of {len(inversions)} inversions, which take {stored / 1e9:.2f} GB",
        f"measured here ({machine}): {times}, measures {costs.measures:.3f} s",
        f"assumed: {rates}, {TASK * 1e3:g} ms a task, {disk / 1e9:.1f} GB of inversions {where}",
        f"{titles}  saturates first",
    ]
    for workers in WORKERS:
        found = play(results, study.size_of, costs, workers, disk, study.shared)
        lines.append(
            f"{workers:7}  {_duration(found.seconds):>9}  {found.steps['invert']:10}  {found.moved / 1e9:7.1f} GB  "
            f"{found.sent / 1e9:6.2f} GB  {found.uses['computing']:4.0%}  {found.tail:4.0%}  "
            f"{found.limit} ({found.uses[found.limit]:.0%})"
        )
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
