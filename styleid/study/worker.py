"""What runs in a worker of a Dask cluster: one model, inversions in a folder, one computation at a time.

A worker computes with as many threads as Dask says it has (`nthreads`), one step after the other. Its inversions are files
in a folder of its own, or in one that all workers share; other workers fetch them in chunks, so that no more than a chunk
of a transfer is ever in memory.
"""

from __future__ import annotations

import asyncio
import errno
import platform
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from distributed import get_worker, secede
from distributed.utils import sync
from distributed.worker import Worker

from styleid import _core
from styleid._core import __version__
from styleid.files.disk import locked, write_whole
from styleid.inversions.cache import Cache
from styleid.inversions.inversion import Inversion
from styleid.models.loading import load_model
from styleid.models.model import Model
from styleid.progress import Report
from styleid.study.plan import Inverting, Result
from styleid.study.work import make_inversion, make_result

Reply = dict[str, Any]

CHUNK = 16 << 20  # bytes that are transferred at a time
OPENED = 4  # inversions that are mapped at a time
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # a disk that takes no more


@dataclass(frozen=True)
class Order:
    """What all steps of a sweep have in common.

    Attributes:
        name: the sweep's
        settings: the model's, as for `styleid.load_model`
        fingerprint: the model's, which the worker's must have
        folder: the one of all workers' inversions; None: each has one of its own
        features: "disk" or "recompute"
    """

    name: str
    settings: dict[str, Any]
    fingerprint: str
    folder: str | None
    features: str


class Cancelled(RuntimeError):
    """The client has cancelled this step."""


class Missing(Exception):
    """Inversions that are not in the folder."""


class Site:
    """What a worker has for a sweep."""

    def __init__(self, order: Order, worker: Worker, model: Model | None) -> None:
        self.order = order
        self.model = model or load_model(**order.settings | {"threads": worker.state.nthreads})
        own = Path(worker.local_directory) / "styleid-inversions"
        self.cache = Cache(order.folder or own, sys.maxsize)  # the client says what goes
        self.computing = threading.Lock()
        self._opened: OrderedDict[tuple[str, int], Inversion] = OrderedDict()  # by the key and the file's number
        worker.handlers["styleid_entry"] = self.entry
        worker.handlers["styleid_read"] = self.read

    def path(self, key: str) -> Path:
        """The file of an inversion."""
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise ValueError(f"not the key of an inversion: {key[:80]!r}")
        return self.cache.folder / f"{key}.safetensors"

    def companion(self, key: str) -> Path | None:
        """The file of the image's pixels, whose name says the instruction set that the inversion was computed with."""
        return next(self.path(key).parent.glob(f"{key}.*.npy"), None)

    @property
    def held(self) -> dict[str, int]:
        """The bytes of all inversions that are here, by their keys."""
        sizes = {}
        for path in self.cache.folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another worker has removed it
                sizes[path.stem] = path.stat().st_size
        return sizes

    # ---- steps ----

    def invert(self, task: Inverting, report: Report) -> Reply:
        """Makes an inversion, or finds it here."""
        companion = self.companion(task.key) or self.cache.folder / f"{task.key}.{_core.info()['isa']}.npy"
        with write_whole(companion) as file:
            np.save(file, task.source.pixels)
        make_inversion(task, self.model, self.cache, self.order.features, report)
        return {"bytes": self.path(task.key).stat().st_size}

    def sample(self, task: Result, report: Report) -> Reply:
        """Makes a result."""
        missing = [one.key for one in (task.content, task.style) if self.companion(one.key) is None]
        if missing:
            raise Missing(*missing)
        sources = [self._inversion(one) for one in (task.content, task.style)]
        isas = [companion.name.split(".")[1] for _, companion, _ in sources]
        light = replace(task, content=sources[0][2], style=sources[1][2])
        row, data = make_result(light, sources[0][0], sources[1][0], self.model, isas, report)
        return {"row": row, "data": data, "bytes": len(data)}

    def fetch(self, key: str, peer: str, worker: Worker, alive: Callable[[], None]) -> Reply:
        """Copies an inversion from another worker."""

        def ask(name: str, **arguments: Any) -> Any:
            return sync(worker.loop, _unless_cancelled, getattr(worker.rpc(peer), name), arguments, alive)

        found = ask("styleid_entry", key=key)
        if found is None:
            raise Missing(key)
        path = self.path(key)
        with locked(path.with_name(f".{key}.lock")), write_whole(path) as file:
            while (offset := file.tell()) < found["size"]:
                chunk = ask("styleid_read", key=key, offset=offset)
                if not chunk:
                    raise Missing(key)
                file.write(chunk)
        with write_whole(self.cache.folder / found["name"]) as file:
            file.write(found["pixels"])
        return {"bytes": found["size"]}

    def drop(self, keys: Iterable[str]) -> None:
        """Removes inversions, to make room."""
        for key in keys:
            companion = self.companion(key)
            for path in (self.path(key), *([] if companion is None else [companion])):
                path.unlink(missing_ok=True)
            for opened in [opened for opened in self._opened if opened[0] == key]:
                self._opened.pop(opened, None)

    def _inversion(self, task: Inverting) -> tuple[Inversion, Path, Inverting]:
        """An inversion that should be here, and its task with pixels. Missing where it is not, or is damaged."""
        path, companion = self.path(task.key), self.companion(task.key)
        try:
            if companion is None:
                raise FileNotFoundError
            place = task.key, path.stat().st_ino
            if place not in self._opened:
                inversion = Inversion.load(path, mapped=self.order.features == "disk")
                self._opened[place] = replace(inversion, model=self.model)
            source = replace(task.source, pixels=np.load(companion, allow_pickle=False))
        except (ValueError, FileNotFoundError):
            path.unlink(missing_ok=True)
            raise Missing(task.key) from None
        self._opened.move_to_end(place)
        while len(self._opened) > OPENED:
            self._opened.popitem(last=False)
        return self._opened[place], companion, replace(task, source=source)

    # ---- for other workers ----

    async def entry(self, key: str) -> Reply | None:
        """What other workers need to know of an inversion to fetch it."""
        companion = self.companion(key)
        if companion is None or not self.path(key).is_file():
            return None
        return {"size": self.path(key).stat().st_size, "name": companion.name, "pixels": companion.read_bytes()}

    async def read(self, key: str, offset: int) -> bytes:
        """A part of an inversion's file; nothing where it is gone."""

        def chunk() -> bytes:
            with suppress(FileNotFoundError), open(self.path(key), "rb") as file:
                file.seek(offset)
                return file.read(CHUNK)
            return b""

        return await asyncio.to_thread(chunk)


async def _unless_cancelled(call: Any, arguments: Reply, alive: Callable[[], None]) -> Any:
    """The answer of another worker; raises Cancelled when the step is cancelled, as when that worker hangs."""
    answer = asyncio.ensure_future(call(**arguments))
    try:
        while not (await asyncio.wait({answer}, timeout=0.5))[0]:
            alive()
        return answer.result()
    finally:
        answer.cancel()


_making_site = threading.Lock()


def site_of(order: Order, worker: Worker) -> Site:
    """The worker's site, made by the first step of a sweep; the model stays where it is the same."""
    with _making_site:
        site: Site | None = getattr(worker, "styleid_site", None)
        if site is None or site.order != order:
            same = (
                site is not None
                and site.order.fingerprint == order.fingerprint
                and site.order.settings == order.settings
            )
            site = Site(order, worker, site.model if site is not None and same else None)
            worker.styleid_site = site  # type: ignore[attr-defined]
        return site


def greet(order: Order) -> Reply:
    """Loads the model and says what this worker is."""
    worker = get_worker()
    site = site_of(order, worker)
    return {
        "held": site.held,
        "fingerprint": site.model.fingerprint,
        "versions": versions(),
        "isa": _core.info()["isa"],
        "threads": site.model.threads,
        "host": platform.node(),
        "memory": peak_memory(),
    }


def versions() -> dict[str, str]:
    """The versions of everything that the bytes of results depend on."""
    return {"styleid": __version__, "NumPy": np.__version__, "Pillow": PIL.__version__}


def carry_out(order: Order, kind: str, task: Any, peer: str, drop: Sequence[str]) -> Reply:
    """One step of a plan. What went wrong is in the reply: "missing" inversions, a "full" disk, or another "error".

    drop: inversions that make room for it
    """
    worker = get_worker()
    key = worker.get_current_task()

    def alive(*_: int) -> None:
        state = worker.state.tasks.get(key)
        if state is None or state.state not in ("executing", "long-running"):
            raise Cancelled

    site = site_of(order, worker)
    # A transfer goes on beside a computation, however few threads Dask counts; of computations there is one at a time.
    secede()  # type: ignore[no-untyped-call]
    with _faults() as reply:
        if kind == "fetch":
            start = time.perf_counter()
            site.drop(drop)
            reply |= site.fetch(task, peer, worker, alive)
        else:
            with site.computing:
                alive()
                start = time.perf_counter()
                site.drop(drop)
                reply |= site.invert(task, alive) if kind == "invert" else site.sample(task, alive)
        reply["seconds"] = time.perf_counter() - start
    return reply | {"memory": peak_memory()}


@contextmanager
def _faults() -> Iterator[Reply]:
    """Exceptions as parts of the reply."""
    reply: Reply = {}
    try:
        yield reply
    except Missing as error:
        reply["missing"] = list(error.args)
    except OSError as error:
        reply["full" if error.errno in FULL else "error"] = error.strerror or str(error)
    except Cancelled:
        raise
    except Exception as error:  # noqa: BLE001  whatever it is, the client names it
        reply["error"] = str(error) or type(error).__name__


def peak_memory() -> int:
    """The bytes that this process had in memory at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0
