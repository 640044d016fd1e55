"""A sweep carried out by the workers of a Dask cluster.

The client plans, gives out steps, a few at a time to each worker, and writes results as they come, with the same bytes,
names and manifest as a sweep in one process. A worker that disappears, hangs or has a full disk costs nothing but the step
that it was at. The module needs `pip install "styleid[cluster]"`.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from styleid.models.model import Model
from styleid.progress import Report, bars
from styleid.study.dispatch import Dispatcher, Step
from styleid.study.inputs import plain_stem
from styleid.study.plan import Inverting, Row

if TYPE_CHECKING:
    from styleid.study.sweeps import Study
    from styleid.study.worker import Order, Reply

Say = Callable[[str], None]
Client = Any  # Dask's client, whose methods have no types
Future = Any

LOOK = 0.5  # seconds between looks at the workers
SILENCE = 60.0  # seconds without a heartbeat after which a worker counts as hanging
ABSENCE = 600.0  # seconds that a scheduler, or the last worker, may be away


def say_line(line: str) -> None:
    """Writes a line on standard error without breaking a progress bar."""
    bars().write(f"styleid: {line}", file=sys.stderr)


class ClusterError(OSError):
    """The cluster cannot be reached, or has no worker that can be used."""


@dataclass
class Timings:
    """What the workers did: the number, seconds and bytes of steps, by worker and kind of step."""

    steps: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(lambda: [0, 0.0, 0]))
    memory: dict[str, int] = field(default_factory=dict)  # the most bytes in memory, by worker
    hosts: dict[str, str] = field(default_factory=dict)

    def add(self, worker: str, kind: str, reply: Reply) -> None:
        """Counts a step that is done."""
        entry = self.steps[worker, kind]
        entry[0] += 1
        entry[1] += reply.get("seconds", 0.0)
        entry[2] += reply.get("bytes", 0)

    def __str__(self) -> str:
        lines = [f"{'worker':40} {'step':7} {'number':>7} {'seconds':>9} {'MB':>9}  peak memory"]
        for (worker, kind), (number, seconds, size) in sorted(self.steps.items()):
            peak = f"{self.memory.get(worker, 0) / 1e9:.2f} GB"
            where = f"{worker} {self.hosts.get(worker, '')}"[:40]
            lines.append(f"{where:40} {kind:7} {number:7.0f} {seconds:9.1f} {size / 1e6:9.1f}  {peak}")
        return "\n".join(lines)


def parse_cluster(text: str) -> tuple[str, int | None]:
    """A `--cluster` argument: ("local", N), ("address", None) or ("file", None). ValueError for anything else."""
    name, colon, number = text.partition(":")
    if name == "local":
        if colon and not (number.isdecimal() and 1 <= int(number) <= 1024):
            raise ValueError(f"cluster: expected local or local:N, got {text!r}")
        return "local", int(number) if colon else None
    if "://" in text:
        return "address", None
    if not Path(text).is_file():
        raise ValueError(f"cluster: expected tcp://HOST:PORT, local, local:N or a scheduler file, got {text!r}")
    return "file", None


class Connection:
    """A client of the cluster, which comes back when the scheduler does. A given client is used, and not closed."""

    def __init__(self, cluster: str | os.PathLike[str] | Client, say: Say) -> None:
        try:
            import distributed
        except ImportError:
            raise ImportError("a cluster needs Dask: pip install 'styleid[cluster]'") from None
        self._cluster, self._say = cluster, say
        self._local: Any = None
        self._own = not isinstance(cluster, distributed.Client)
        if isinstance(cluster, (str, os.PathLike)):
            kind, workers = parse_cluster(os.fspath(cluster))
            if kind == "local":
                cpus = len(os.sched_getaffinity(0))
                workers = workers or max(1, cpus // 4)
                make: Any = distributed.LocalCluster
                self._local = make(
                    n_workers=workers, threads_per_worker=max(1, cpus // workers), processes=True, memory_limit=0,
                    dashboard_address=None,
                )  # fmt: skip
            self.client = self._connect()
        elif self._own:
            raise TypeError(f"cluster: expected a distributed.Client or an address, got {type(cluster).__name__}")
        else:
            self.client = cluster

    def _connect(self) -> Client:
        import distributed

        make: Any = distributed.Client

        if self._local is not None:
            return make(self._local, set_as_default=False)
        text = os.fspath(self._cluster)
        where = {"address": text} if "://" in text else {"scheduler_file": text}
        try:
            return make(**where, timeout="20s", set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise ClusterError(f"cluster: no scheduler answers at {text}: {error}") from None

    def wait(self) -> None:
        """Waits until the scheduler is back. Raises ClusterError if it stays away."""
        self._say("the scheduler is gone; waiting for it")
        if self._own:
            with suppress(Exception):
                self.client.close(timeout=2)
        end = time.monotonic() + ABSENCE
        while time.monotonic() < end:
            if not self._own and self.client.status == "running":
                return
            if self._own:
                with suppress(ClusterError):
                    self.client = self._connect()
                    self._say("the scheduler is back")
                    return
            time.sleep(LOOK)
        raise ClusterError(f"cluster: the scheduler stayed away for {ABSENCE:g} s; run the sweep again to go on")

    def close(self) -> None:
        """Gives back what was started here."""
        if self._own:
            with suppress(Exception):
                self.client.close(timeout=10)
        if self._local is not None:
            with suppress(Exception):
                self._local.close(timeout=10)


def run_on_cluster(
    study: Study, cluster: str | os.PathLike[str] | Client, report: Report, say: Say = say_line
) -> tuple[list[str], Timings]:
    """Carries out a plan. Returns a line for each result that could not be made, and what took how long.

    Args:
        cluster: a client, an address ("tcp://..."), "local", "local:N", or a scheduler file
        report: called with (results, total)
        say: called with a line when a worker comes, goes or fails
    """
    run = _Run(study, Connection(cluster, say), report, say)
    try:
        run.go()
    finally:
        run.stop()
    return list(dict.fromkeys(run.dispatcher.failed.values())), run.timings


@dataclass
class _Seen:
    """A worker as the scheduler describes it."""

    beat: float  # the scheduler's time of the last heartbeat
    since: float  # our time when that changed
    state: str = "new"  # "greeting", "working", "silent", "refused"
    isa: str = ""


class _Run:
    """One sweep on a cluster."""

    def __init__(self, study: Study, connection: Connection, report: Report, say: Say) -> None:
        self.study, self.connection, self.say, self._report = study, connection, say, report
        folder = study.cache.folder if study.shared else None
        self.order = order_of(study.model, study.storage.features, folder)
        self.dispatcher = Dispatcher(study.open(), study.size_of, study.room(True), study.shared)
        self.timings = Timings()
        self._seen: dict[str, _Seen] = {}
        self._given: dict[Future, tuple[str, Step | None]] = {}  # what was given to workers and is not done
        self._events: queue.SimpleQueue[tuple[Future, Any]] = queue.SimpleQueue()
        self._number = count(1)
        self._total = len({result.key for result in study.plan.results})
        self._looked = 0.0
        self._alone = time.monotonic()  # since when no worker could be used

    def go(self) -> None:
        """Runs until every result is made or has failed."""
        self._tell()
        while self.dispatcher.open:
            if self.connection.client.status != "running":
                self._start_again()
            try:
                if time.monotonic() - self._looked > LOOK:
                    self._look()
                with suppress(queue.Empty):
                    self._take(*self._events.get(timeout=LOOK))
                for given in self.dispatcher.give():
                    self._submit(*given)
            except (OSError, TimeoutError):
                if self.connection.client.status == "running":
                    raise

    def stop(self) -> None:
        """Cancels what is still given out; workers notice it within one evaluation."""
        given, self._given = list(self._given), {}
        with suppress(Exception):
            if given and self.connection.client.status == "running":
                self.connection.client.cancel(given, force=True)
        self.connection.close()

    def _start_again(self) -> None:
        """Forgets all that was given out, because the scheduler was away."""
        self._given = {}
        self.connection.wait()
        for name in list(self.dispatcher.workers):
            self.dispatcher.remove_worker(name)
        self._seen = {}
        self._alone = time.monotonic()

    # ---- workers ----

    def _look(self) -> None:
        """Finds out which workers came, went, fell silent or are back."""
        self._looked = now = time.monotonic()
        client = self.connection.client  # its scheduler_info() has now all workers, now a few, now none
        known = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
        for name in self._seen.keys() - known.keys():
            self._leave(name, "is gone", self._seen.pop(name).state, fell=True)
        for name, facts in known.items():
            seen = self._seen.setdefault(name, _Seen(facts["last_seen"], now))
            if facts["last_seen"] != seen.beat:
                seen.beat, seen.since = facts["last_seen"], now
                if seen.state == "silent":
                    self.say(f"worker {name} answers again")
                    seen.state = "new"
            elif now - seen.since > SILENCE and seen.state in ("working", "greeting"):
                state, seen.state = seen.state, "silent"
                self._leave(name, f"has been silent for {SILENCE:g} s", state)
            if seen.state == "new":
                seen.state = "greeting"
                self._submit(name, None)
        if any(seen.state in ("working", "greeting", "new") for seen in self._seen.values()):
            self._alone = now
        elif now - self._alone > ABSENCE:
            raise ClusterError(f"cluster: no worker could be used for {ABSENCE:g} s; run the sweep again to go on")

    def _leave(self, name: str, why: str, state: str, fell: bool = False) -> None:
        """Drops a worker that does not answer or cannot work, and was in that state; its steps are given to others."""
        if state == "greeting":
            self.say(f"worker {name} {why}; it was loading the model")
        if state != "working":
            return
        steps = len(self.dispatcher.workers[name].steps)
        gone = []
        for future, (worker, step) in list(self._given.items()):
            asking = step is not None and step.peer == name
            if worker == name or asking:
                gone.append(future)
                del self._given[future]
                if step is not None and asking and worker != name:
                    self.dispatcher.again(worker, step)
        failed = self.dispatcher.remove_worker(name, fell)
        self.connection.client.cancel(gone, force=True)
        self.say(f"worker {name} {why}; {steps} steps of it are given to others")
        for reason in failed:
            self.say(f"failed: {reason}")
        self._tell()

    def _welcome(self, name: str, facts: Reply) -> None:
        """Receives a worker that has loaded the model: checks that it fits, and notes what it has."""
        from styleid.study.worker import versions

        seen = self._seen[name]
        ours, theirs = versions(), facts["versions"]
        wrong = [f"{what} {theirs[what]} (here {ours[what]})" for what in ours if theirs[what] != ours[what]]
        if facts["fingerprint"] != self.order.fingerprint:
            wrong.append("another model under the same name")
        if wrong:
            seen.state = "refused"
            self.say(f"worker {name} is not used: it has {', '.join(wrong)}")
            return
        others = {one.isa for one in self._seen.values() if one.state == "working"}
        if others and facts["isa"] not in others:
            self.say(
                f"worker {name} computes with {facts['isa']}, others with {', '.join(sorted(others))}: bytes may differ "
                "between them; the column isa says what made a result"
            )
        seen.state, seen.isa = "working", facts["isa"]
        self.timings.hosts[name] = facts["host"]
        self.dispatcher.add_worker(name, facts["held"])

    # ---- steps ----

    def _submit(self, name: str, step: Step | None, drop: tuple[str, ...] = ()) -> None:
        """Gives a step to a worker; None: to load the model and introduce itself."""
        from styleid.study.worker import carry_out, greet

        number = next(self._number)
        if step is None:
            key, arguments = ("styleid-load", f"{name}-{number}-{self.order.name}"), (greet, self.order)
        else:
            task = self._task(step)
            what = _name(self.dispatcher, step)
            key = (f"styleid-{step.kind}", f"{what}-{number}-{self.order.name}")
            arguments = (carry_out, self.order, step.kind, task, step.peer, drop)  # type: ignore[assignment]
        client = self.connection.client
        future = client.submit(*arguments, key=key, workers=[name], allow_other_workers=False, pure=False, retries=0)
        self._given[future] = name, step
        future.add_done_callback(self._ended)

    def _ended(self, future: Future) -> None:
        """Called in another thread: asks for the reply, without waiting for a worker that may hang."""
        if future.status != "finished":
            self._events.put((future, None))
            return
        client = self.connection.client
        asked = client.gather(future, asynchronous=True)
        answer = asyncio.run_coroutine_threadsafe(asked, client.loop.asyncio_loop)
        answer.add_done_callback(lambda answer: self._events.put((future, answer)))

    def _task(self, step: Step) -> Any:
        """What a step is about, with pixels only where they are needed."""
        if step.kind == "fetch":
            return step.key
        if step.kind == "sample":
            result = self.dispatcher.results[step.key]
            return replace(result, content=_without_pixels(result.content), style=_without_pixels(result.style))
        task = self.dispatcher.inversions[step.key]
        return replace(task, source=replace(task.source, pixels=np.array(task.source.pixels)))

    def _take(self, future: Future, answer: Any) -> None:
        """Takes note of a step that has ended, one way or another."""
        if future not in self._given:
            return
        name, step = self._given.pop(future)
        if step is None and (name not in self._seen or self._seen[name].state != "greeting"):
            return  # the worker went while it loaded the model
        if answer is not None and not answer.cancelled() and answer.exception() is None:
            self._answered(name, step, answer.result())
        elif step is None and future.status == "error":
            self._seen[name].state = "refused"
            self.say(f"worker {name} is not used: {future.exception(timeout=60)}")
        elif step is None:  # its loading was cancelled, as when a worker goes
            self._leave(name, "is gone", self._seen.pop(name).state)
        elif future.status == "error":
            self._failed(name, step, str(future.exception(timeout=60)))
        else:
            self.dispatcher.again(name, step)
        future.release()

    def _answered(self, name: str, step: Step | None, reply: Reply) -> None:
        self.timings.memory[name] = reply["memory"]
        if step is None:
            self._welcome(name, reply)
            return
        if "full" in reply:
            state, self._seen[name].state = self._seen[name].state, "refused"
            self._leave(name, f"cannot keep inversions ({reply['full']})", state)
            return
        if "missing" in reply:
            self.dispatcher.again(name, step, reply["missing"])
        elif "error" in reply:
            self._failed(name, step, reply["error"])
        else:
            self.timings.add(name, step.kind, reply)
            if step.kind == "sample":
                self._keep(reply["row"], reply["data"])
            self.dispatcher.done(name, step)
            self._tell()

    def _failed(self, name: str, step: Step, reason: str) -> None:
        what = _name(self.dispatcher, step)
        for line in self.dispatcher.fail(name, step, f"{what}: {reason}"):
            self.say(f"failed: {line}")
            self._tell()

    def _keep(self, row: Row, data: bytes) -> None:
        """Writes a result, unless another process has made it meanwhile."""
        manifest = self.study.manifest
        with manifest.lock(row["key"]):
            if manifest.finished(row["key"]) is None:
                manifest.add(row, data)

    def _tell(self) -> None:
        done = self._total - self.dispatcher.open
        if self._report and done:
            self._report(done, self._total)


def order_of(model: Model, features: str, folder: Path | None) -> Order:
    """What all steps have in common. TypeError for a model that was not loaded."""
    from styleid.study.worker import Order

    _, (_, settings, fingerprint) = model.__reduce__()  # a pickle says from where, and how, it was loaded
    kept = "recompute" if features == "recompute" else "disk"
    shared = None if folder is None else str(folder.absolute())
    return Order(uuid4().hex[:8], settings | {"dtype": model.dtype}, fingerprint, shared, kept)


def _without_pixels(task: Inverting) -> Inverting:
    return replace(task, source=replace(task.source, pixels=np.empty(0, np.uint8)))


def _name(dispatcher: Dispatcher, step: Step) -> str:
    """The name of a step in the dashboard."""
    if step.kind == "sample":
        return Path(dispatcher.results[step.key].output).stem
    return plain_stem(dispatcher.inversions[step.key].source.path)
