"""Sweeps on a cluster: real schedulers and workers in processes of their own, and what happens when some of them end."""

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import random_image
from PIL import Image

import styleid
from styleid.cli.main import main
from styleid.method.options import Resize, Storage
from styleid.study import cluster as clusters
from styleid.study import dispatch, estimate
from styleid.study.dispatch import Dispatcher
from styleid.study.grid import Grid
from styleid.study.manifest import Manifest
from styleid.study.sweeps import sweep

distributed = pytest.importorskip("distributed")

ROOT = Path(styleid.__file__).parents[1]
GRID = Grid(gamma=[0.3, 0.9], steps=20)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """A scheduler and workers that a test may kill and stop."""

    def __init__(self, folder):
        self.folder, self.processes = folder, []
        self.log = open(folder / "log.txt", "ab")  # noqa: SIM115  closed with the cluster
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.scheduler = None
        self.workers = []

    def start(self, *arguments, **options):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=environment, cwd=self.folder, stdout=subprocess.DEVNULL,
            stderr=self.log, **options,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def start_scheduler(self):
        port = self.address.rpartition(":")[2]
        self.scheduler = self.start(
            "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard",
            "--scheduler-file", str(self.folder / "scheduler.json"),
        )  # fmt: skip

    def start_worker(self, **options):
        worker = self.start(
            "distributed.cli.dask_worker", self.address, "--no-nanny", "--nthreads", "1", "--no-dashboard",
            "--host", "127.0.0.1", "--local-directory", str(self.folder / f"worker{len(self.workers)}"), **options,
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait(timeout=60)
        self.log.close()


@pytest.fixture
def started(tmp_path):
    folder = tmp_path / "cluster"
    folder.mkdir()
    cluster = Cluster(folder)
    cluster.start_scheduler()
    yield cluster
    cluster.close()


@pytest.fixture
def place(tmp_path):
    for number in range(3):
        for which in "contents", "styles":
            (tmp_path / which).mkdir(exist_ok=True)
            seed = number + 10 * (which == "styles")
            Image.fromarray(random_image(seed)).save(tmp_path / which / f"{which[0]}{number}.png")
    return tmp_path


def run(place, model, name="out", grid=GRID, options=(), **others):
    return sweep(
        place / "contents", place / "styles", place / name, model, grid=grid, options=[Resize(16), *options], **others
    )


def same(place, model, rows, name="out", **others):
    """Whether a folder has what a sweep in this process makes."""
    expected = run(place, model, "local", **others)
    assert rows == expected
    assert len({row["key"] for row in rows}) == len(rows)
    for row in rows:
        assert (place / name / row["output"]).read_bytes() == (place / "local" / row["output"]).read_bytes()
    assert (place / name / "table.csv").read_bytes() == (place / "local/table.csv").read_bytes()
    lines = (place / name / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == len(rows)  # nothing twice


def once(action, at):
    """A progress function that does something when so many results are there."""
    done = []

    def report(number, total):
        if number >= at and not done:
            done.append(number)
            action()

    return report


# ---- the same results ----


def test_equals_a_sweep_in_one_process(place, model, started, monkeypatch):
    for _ in range(2):
        started.start_worker()
    timings = []
    real = clusters.run_on_cluster
    monkeypatch.setattr(clusters, "run_on_cluster", lambda *arguments: timings.append(real(*arguments)) or timings[-1])
    calls = []
    rows = run(place, model, cluster=started.address, progress=lambda *call: calls.append(call))
    same(place, model, rows)
    assert calls == [(number, 18) for number in range(1, 19)] or calls[-1] == (18, 18)
    steps = timings[0][1].steps
    counts = {kind: sum(entry[0] for (_, each), entry in steps.items() if each == kind) for _, kind in steps}
    assert counts["invert"] == 6 and counts["sample"] == 18  # every image once
    assert "peak memory" in str(timings[0][1]) and all(size > 1e6 for size in timings[0][1].memory.values())
    # more gammas: the inversions are still where they were made
    timings.clear()
    more = run(place, model, grid=Grid(gamma=[0.3, 0.5], steps=20), cluster=str(started.folder / "scheduler.json"))
    assert len(more) == 18
    steps = timings[0][1].steps
    assert not [key for key in steps if key[1] == "invert"]
    assert sum(entry[0] for (_, kind), entry in steps.items() if kind == "sample") == 9


@pytest.mark.parametrize("features", ["disk", "recompute"])
def test_a_shared_folder(place, model, started, features):
    for _ in range(2):
        started.start_worker()
    storage = Storage(features=features, cache=place / "inversions")
    with distributed.Client(started.address, set_as_default=False) as client:
        rows = run(place, model, options=[storage], cluster=client)
        assert client.status == "running"
    same(place, model, rows)
    assert len(list((place / "inversions").glob("*.safetensors"))) == 6


def test_a_small_disk_is_kept_to(place, model, started):
    """Of 6 inversions, each worker has room for 4: contents are taken in blocks."""
    for _ in range(2):
        started.start_worker()
    rows = run(place, model, cluster=started.address)
    size = max(path.stat().st_size for path in started.folder.rglob("*.safetensors"))
    again = run(place, model, "small", grid=Grid(gamma=0.4, steps=21), cluster=started.address, disk=4 * size)
    assert len(again) == 9 and len(rows) == 18
    for worker in started.folder.glob("worker*"):
        assert sum(path.stat().st_size for path in worker.rglob("*.safetensors")) <= 4 * size


def test_here(place, model):
    same(place, model, run(place, model, cluster="local:2"))


# ---- faults ----


def test_a_worker_is_killed(place, model, started, capsys):
    for _ in range(2):
        started.start_worker()
    rows = run(place, model, cluster=started.address, progress=once(started.workers[0].kill, 3))
    same(place, model, rows)
    assert "is gone" in capsys.readouterr().err


def test_a_worker_hangs(place, model, started, monkeypatch, capsys):
    monkeypatch.setattr(clusters, "SILENCE", 3.0)
    for _ in range(2):
        started.start_worker()
    stop = once(lambda: os.kill(started.workers[0].pid, signal.SIGSTOP), 3)
    rows = run(place, model, cluster=started.address, progress=stop)
    os.kill(started.workers[0].pid, signal.SIGCONT)
    same(place, model, rows)
    assert "silent for 3 s" in capsys.readouterr().err


def test_the_scheduler_is_restarted(place, model, started, capsys):
    started.start_worker()

    def restart():
        for process in (started.scheduler, *started.workers):
            process.kill()
            process.wait()
        started.start_scheduler()
        started.start_worker()

    rows = run(place, model, cluster=started.address, progress=once(restart, 3))
    same(place, model, rows)
    assert "scheduler is back" in capsys.readouterr().err


def full(bytes_):
    """Before a worker starts: its files may not grow beyond so many bytes."""
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))}


def test_a_full_disk(place, model, started, capsys):
    started.start_worker(**full(100_000))
    started.start_worker()
    rows = run(place, model, cluster=started.address)
    same(place, model, rows)
    assert "cannot keep inversions (File too large" in capsys.readouterr().err


def test_all_disks_full(place, model, started, monkeypatch):
    monkeypatch.setattr(clusters, "ABSENCE", 1.0)
    started.start_worker(**full(100_000))
    with pytest.raises(OSError, match="no worker could be used"):
        run(place, model, cluster=started.address)


def test_a_bad_image(place, model, started):
    started.start_worker()
    (place / "contents/bad.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"left out: .*bad.png: not a") as seen:
        rows = run(place, model, cluster=started.address)
    assert len(seen) == 1 and len(rows) == 18


def test_what_fails_is_named(place, model, started, monkeypatch):
    """An inversion that no worker can make: the results of the others are there."""
    started.start_worker()
    real = clusters._Run._task

    def spoilt(self, step):
        task = real(self, step)
        if step.kind == "invert" and task.source.path.name == "c1.png":
            task.__dict__["layers"] = (77,)
        return task

    monkeypatch.setattr(clusters._Run, "_task", spoilt)
    with pytest.raises(ValueError, match=r"6 of 18 results could not be made\nc1: layers: expected"):
        run(place, model, cluster=started.address)
    assert len(Manifest(place / "out").all_finished()) == 12


def test_another_model(place, model, started, monkeypatch, capsys):
    monkeypatch.setattr(clusters, "ABSENCE", 1.0)
    started.start_worker()
    real = clusters.order_of
    monkeypatch.setattr(clusters, "order_of", lambda *arguments: replace(real(*arguments), fingerprint="another"))
    with pytest.raises(OSError, match="no worker could be used"):
        run(place, model, cluster=started.address)
    assert "is not used: it has another model" in capsys.readouterr().err


PROCESS = """
import sys
sys.path.insert(0, {tests!r})
import styleid
from styleid.method.options import Resize
from styleid.study.grid import Grid
from styleid.study.sweeps import sweep

model = styleid.load_model({folder!r}, dtype="float32", threads=1)
print("ready", flush=True)
sweep({place!r} + "/contents", {place!r} + "/styles", {place!r} + "/out", model, grid=Grid(gamma=[0.3, 0.9], steps={steps}),
      options=Resize(16), cluster={address!r})
"""


def begin(place, folder, cluster, steps=20):
    program = PROCESS.format(
        tests=str(ROOT / "tests"), folder=str(folder), place=str(place), address=cluster.address, steps=steps
    )
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def lines(place):
    path = place / "out/manifest.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_client_is_killed_and_comes_back(place, model, shared_folder, started):
    for _ in range(2):
        started.start_worker()
    client = begin(place, shared_folder, started)
    wait_until(lambda: lines(place) >= 3)
    client.kill()
    client.communicate()
    before = lines(place)
    rows = run(place, model, cluster=started.address)
    assert before < 18
    same(place, model, rows)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_stop_with_the_client(place, shared_folder, started, number):
    """An inversion of 1000 steps ends soon after nobody waits for it."""
    started.start_worker()
    client = begin(place, shared_folder, started, steps=1000)
    with distributed.Client(started.address, set_as_default=False, timeout="30s") as observer:

        def running():
            return [key for keys in observer.call_stack().values() for key in keys if "invert" in str(key)]

        wait_until(running)
        client.send_signal(number)
        client.communicate(timeout=60)
        wait_until(lambda: not running(), 10)
    wait_until(lambda: not list(started.folder.rglob("*.safetensors")), 10)


# ---- who does what ----


def make_results(contents, styles, settings=1):
    def inversion(name):
        return SimpleNamespace(key=name)

    return [
        SimpleNamespace(key=f"{c}-{s}-{n}", content=inversion(f"c{c}"), style=inversion(f"s{s}"), group=0)
        for c in range(contents)
        for s in range(styles)
        for n in range(settings)
    ]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("contents", "styles", "workers"), [(1, 1, 3), (5, 7, 1), (6, 4, 3), (9, 1, 4), (1, 9, 4), (4, 3, 9)]
)
def test_every_inversion_is_made_once(contents, styles, workers, shared):
    results = make_results(contents, styles, 2)
    dispatcher = Dispatcher(results, lambda _: 1, 1e9, shared)
    made = play(dispatcher, workers, random.Random(0))
    assert sorted(key for kind, key in made if kind == "sample") == sorted(result.key for result in results)
    inverted = [key for kind, key in made if kind == "invert"]
    assert len(inverted) == len(set(inverted)) == contents + styles
    assert not (shared and any(kind == "fetch" for kind, _ in made))


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_whatever_happens(seed):
    """Steps fail, inversions disappear, workers go and come: every result is made exactly once, or named."""
    chance = random.Random(seed)
    results = make_results(5, 6, 2)
    dispatcher = Dispatcher(results, lambda _: 1, 8, bool(seed % 2))
    made = play(dispatcher, 3, chance, faults=True)
    samples = [key for kind, key in made if kind == "sample"]
    assert len(samples) == len(set(samples))
    lost = {result.key for result in results} - set(samples)
    assert all({key, f"c{key[0]}", f"s{key[2]}"} & dispatcher.failed.keys() for key in lost)


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_estimate(workers):
    """The time of a sweep that is played through lies between what computing alone takes, and what one worker would take."""
    results = make_results(6, 8)
    for result in results:
        result.settings = {"guidance": 1, "strength": 1.0}
        for one in (result.content, result.style):
            one.steps, one.common = 10, SimpleNamespace(refine=0, features="disk")
    costs = estimate.Costs(evaluation=1.0, encode=2.0, decode=3.0, measures=0.5, result=1000)
    found = estimate.play(results, lambda _: 1000, costs, workers, 1e9)
    assert found.steps["invert"] == 14 and found.steps["sample"] == 48 and found.sent == 48_000
    alone = 14 * 12 + 48 * 13.5
    assert alone / workers - 1e-6 <= found.seconds <= alone + 1
    assert found.moved == 1000 * found.steps["fetch"] and (found.moved == 0) == (workers == 1)
    small = estimate.play(results, lambda _: 1000, costs, workers, 5000)  # two contents at a time
    assert small.steps["sample"] == 48 and small.steps["invert"] >= 14


def test_estimate_of_a_sweep(place, shared_folder, capsys):
    command = ["sweep", str(place / "contents"), str(place / "styles"), "-o", str(place / "out"), "--size", "16"]
    command += ["--steps", "3", "--gamma", "0.3,0.9", "--model", str(shared_folder), "--dtype", "float32", "--estimate"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("18 results of 6 inversions") and len(lines) == 8
    assert [line.split()[0] for line in lines[4:]] == ["1", "8", "64", "512"]
    assert not (place / "out/manifest.jsonl").exists()


def play(dispatcher, workers, chance, faults=False):
    """Carries the steps out in a random order."""
    made, number = [], workers
    for name in range(workers):
        dispatcher.add_worker(str(name))
    for _ in range(100_000):
        if not dispatcher.open:
            return made
        given = [
            (name, step) for name in dispatcher.workers for step in iter(lambda n=name: dispatcher.next_step(n), None)
        ]
        for worker in dispatcher.workers.values():
            assert len(worker.steps) <= dispatch.AT_ONCE
        running = [(name, step) for name, worker in dispatcher.workers.items() for step in worker.steps]
        assert running or given, "nothing goes on"
        name, step = chance.choice(running)
        held = dispatcher.workers[name].held
        fate = chance.random() if faults else 1
        if fate < 0.03:
            dispatcher.remove_worker(name, fell=chance.random() < 0.5)
            dispatcher.add_worker(str(number), list(held)[:1])
            number += 1
        elif fate < 0.06:
            dispatcher.fail(name, step, "chance")
        elif fate < 0.1:
            dispatcher.again(name, step, [step.key] if step.kind == "fetch" else list(held)[:1])
        else:
            if step.kind == "sample":
                result = dispatcher.results[step.key]
                assert result.content.key in held and result.style.key in held or faults
            made.append((step.kind, step.key))
            dispatcher.done(name, step, [chance.choice(list(held))] if fate < 0.2 and held else ())
    raise AssertionError("no end")
