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
pytestmark = pytest.mark.long

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


def test_a_worker_is_killed_while_it_loads_the_model(place, model, started, capsys):
    started.start_worker()

    def come_and_go(number, total):
        if number == 1:
            started.start_worker()
            with distributed.Client(started.address, set_as_default=False, timeout="30s") as observer:
                observer.wait_for_workers(2, timeout=60)
            os.kill(started.workers[1].pid, signal.SIGSTOP)
        if number == 3:
            started.workers[1].kill()
        if number in (2, 3):
            time.sleep(2 * clusters.LOOK)  # the next thing is a look at the workers

    rows = run(place, model, cluster=started.address, progress=come_and_go)
    same(place, model, rows)
    assert "is gone; it was loading the model" in capsys.readouterr().err


def test_a_worker_hangs(place, model, started, monkeypatch, capsys):
    monkeypatch.setattr(clusters, "SILENCE", 3.0)
    first = started.start_worker()

    def replace():
        """Stops the only worker, which has work therefore, and starts another."""
        os.kill(first.pid, signal.SIGSTOP)
        started.start_worker()

    rows = run(place, model, cluster=started.address, progress=once(replace, 3))
    os.kill(first.pid, signal.SIGCONT)
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
      options=Resize({size}), cluster={address!r})
"""


def begin(place, folder, cluster, steps=20, size=16):
    names = {"tests": str(ROOT / "tests"), "folder": str(folder), "place": str(place), "address": cluster.address}
    program = PROCESS.format(**names, steps=steps, size=size)
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
    """An inversion that would take much longer ends soon after nobody waits for it."""
    started.start_worker()
    client = begin(place, shared_folder, started, steps=1000, size=96)
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
    """Of 10 steps; contents' inversions are of one byte, styles' of two."""
    common = SimpleNamespace(refine=0, features="disk")
    inversions = {
        f"{which}{number}": SimpleNamespace(key=f"{which}{number}", steps=10, common=common)
        for which, count in (("c", contents), ("s", styles))
        for number in range(count)
    }
    return [
        SimpleNamespace(
            key=f"{c}-{s}-{n}", content=inversions[f"c{c}"], style=inversions[f"s{s}"], group=0,
            settings={"guidance": 1, "strength": 1.0},
        )
        for c in range(contents) for s in range(styles) for n in range(settings)
    ]  # fmt: skip


def size(inversion):
    return 1 if inversion.key.startswith("c") else 2


class Play:
    """Carries steps out in a random order, in folders of which it sees that they keep to their room."""

    def __init__(self, results, disk, shared=False, seed=0):
        self.dispatcher = Dispatcher(results, size, disk, shared)
        self.chance, self.disk, self.shared = random.Random(seed), disk, shared
        self.running, self.folders, self.done = [], {}, []
        self.started, self.spoilt = 0, False

    def add_worker(self, held=()):
        name = str(self.started)
        self.started += 1
        self.folders[name] = self.folders["0"] if self.shared and self.started > 1 else set(held)
        held = {key: size(self.dispatcher.inversions[key]) for key in self.folders[name]}
        self.dispatcher.add_worker(name, held)

    def reads(self, name, step):
        """The inversions that a step reads, and where."""
        if step.kind == "sample":
            result = self.dispatcher.results[step.key]
            return [(name, result.content.key), (name, result.style.key)]
        return [(step.peer, step.key)] if step.kind == "fetch" else []

    def give(self):
        for name, step, drop in self.dispatcher.give():
            read = {(id(self.folders[place]), key) for n, other in self.running for place, key in self.reads(n, other)}
            assert not read & {(id(self.folders[name]), key) for key in drop}, "goes while a step needs it"
            self.folders[name] -= set(drop)
            self.running.append((name, step))
            coming = [s.key for n, s in self.running if s.kind != "sample" and (self.shared or n == name)]
            kept = self.folders[name] | set(coming)
            assert sum(size(self.dispatcher.inversions[key]) for key in kept) <= self.disk
        for name, worker in self.dispatcher.workers.items():
            assert len(worker.steps) <= dispatch.AT_ONCE
            assert sum(n == name for n, _ in self.running) == len(worker.steps)
        outgoing = [step.peer for _, step in self.running if step.kind == "fetch"]
        assert all(outgoing.count(peer) <= dispatch.OUTGOING for peer in outgoing)

    def finish(self, name, step):
        missing = [key for place, key in self.reads(name, step) if key not in self.folders[place]]
        if missing:
            assert self.spoilt
            return self.dispatcher.again(name, step, missing)
        if step.kind != "sample":
            self.folders[name].add(step.key)
        self.done.append((name, step))
        self.dispatcher.done(name, step)

    def spoil(self, name, step):
        """A step, or its worker, fails."""
        fate, self.spoilt = self.chance.randrange(3), True
        if fate == 0:
            for other in [each for each in self.running if each[1].peer == name]:
                self.running.remove(other)
                self.dispatcher.again(*other)
            self.running = [each for each in self.running if each[0] != name]
            self.dispatcher.remove_worker(name, fell=self.chance.random() < 0.5)
            self.add_worker(sorted(self.folders[name])[:1])
        elif fate == 1:
            self.dispatcher.fail(name, step, "chance")
        else:
            missing = [key for _, key in self.reads(name, step)[:1]]
            self.folders[step.peer or name] -= set(missing)
            self.dispatcher.again(name, step, missing)

    def run(self, workers, faults=0.0):
        for _ in range(workers):
            self.add_worker()
        for _ in range(100_000):
            self.give()
            if not self.dispatcher.open:
                assert not self.running
                return
            assert self.running, "nothing goes on"
            name, step = self.running.pop(self.chance.randrange(len(self.running)))
            if self.chance.random() < faults:
                self.spoil(name, step)
            else:
                self.finish(name, step)
        raise AssertionError("no end")

    def keys(self, kind):
        return [step.key for _, step in self.done if step.kind == kind]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("contents", "styles", "workers"),
    [(1, 1, 3), (5, 7, 1), (6, 4, 3), (9, 1, 4), (1, 9, 4), (4, 3, 9), (3, 3, 50)],
)
def test_every_inversion_is_made_once(contents, styles, workers, shared):
    results = make_results(contents, styles, 2)
    play = Play(results, 1e9, shared)
    play.run(workers)
    assert sorted(play.keys("sample")) == sorted(result.key for result in results)
    assert len(play.keys("invert")) == len(set(play.keys("invert"))) == contents + styles
    assert not (shared and play.keys("fetch"))


@pytest.mark.parametrize("workers", [2, 7, 40, 200])
def test_inversions_are_copied_to_who_needs_them(workers):
    """However many workers are idle: but for a result that another one took over, a copy is used where it is."""
    unused = total = 0
    for seed in range(5):
        play = Play(make_results(6, 8), 1e9, seed=seed)
        play.run(workers)
        made = [(name, step) for name, step in play.done if step.kind == "sample"]
        used = {read for name, step in made for read in play.reads(name, step)}
        fetched = {(name, step.key) for name, step in play.done if step.kind == "fetch"}
        total, unused = total + len(fetched), unused + len(fetched - used)
    assert unused <= 0.06 * total


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_room_is_kept(seed, shared):
    """Of 12 contents and 9 styles there is room for a content and three styles, or some more."""
    results = make_results(12, 9, 2)
    play = Play(results, 7 + 2 * (seed % 4), shared, seed)
    play.run(1 + seed % 3)
    assert sorted(play.keys("sample")) == sorted(result.key for result in results)


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_lost_whatever_happens(seed):
    """Steps fail, inversions disappear, workers go and come: every result is made exactly once, or named."""
    results = make_results(5, 6, 2)
    play = Play(results, 9 + seed % 3 * 100, bool(seed % 2), seed)
    play.run(3, faults=0.1)
    samples = play.keys("sample")
    assert len(samples) == len(set(samples))
    lost = {result.key for result in results} - set(samples)
    assert all({key, f"c{key[0]}", f"s{key[2]}"} & play.dispatcher.failed.keys() for key in lost)


# ---- estimates ----

COSTS = estimate.Costs(evaluation=1.0, encode=2.0, decode=3.0, measures=0.5, result=1000)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("workers", [1, 3, 50])
def test_estimate(workers, shared):
    """The time of a sweep that is played through lies between what computing alone takes, and what one worker would take."""
    found = estimate.play(make_results(6, 8), size, COSTS, workers, 1e9, shared)
    assert found.steps["invert"] == 14 and found.steps["sample"] == 48 and found.sent == 48_000
    alone = 14 * 12 + 48 * 13.5
    assert max(alone / workers, 25.5) - 1e-6 <= found.seconds <= alone + 1
    assert (found.moved == 0) == (workers == 1 or shared)
    small = estimate.play(make_results(6, 8), size, COSTS, workers, 8, shared)  # two contents at a time
    assert small.steps["sample"] == 48 and small.steps["invert"] >= 14


def test_estimate_of_known_cases():
    """Two workers share 4 x 4 results evenly: each makes four inversions and eight samplings; and some that cannot share."""
    for workers, seconds in (1, 8 * 12 + 16 * 13.5), (2, 4 * 12 + 8 * 13.5):
        found = estimate.play(make_results(4, 4), size, COSTS, workers, 1e9)
        assert found.seconds == pytest.approx(seconds) and found.uses["computing"] == pytest.approx(1)
    found = estimate.play(make_results(1, 1), size, COSTS, 100, 1e9)
    assert found.seconds == pytest.approx(12 + 13.5, abs=1e-6) and found.steps["fetch"] == 1
    found = estimate.play(
        make_results(1, 2, 4), size, COSTS, 2, 1e9
    )  # the content, then a style each, then 4 results each
    assert found.seconds == pytest.approx(2 * 12 + 4 * 13.5 + 12, abs=13.5)
    slow = estimate.play(make_results(4, 4), size, replace(COSTS, result=1e12), 2, 1e9)
    assert slow.limit == "the scheduler's network" and slow.seconds == pytest.approx(16e12 / estimate.SCHEDULER)


def test_estimate_of_many_workers():
    """Nearly all of 64 workers' time is computing, and copies are few: a tile of 16 x 10 or so each."""
    found = estimate.play(make_results(100, 100), size, COSTS, 64, 1e9)
    assert found.uses["computing"] > 0.95
    assert found.steps["invert"] == 200 and found.steps["fetch"] < 64 * 40


def test_estimate_of_a_sweep(place, shared_folder, capsys):
    command = ["sweep", str(place / "contents"), str(place / "styles"), "-o", str(place / "out"), "--size", "16"]
    command += ["--steps", "3", "--gamma", "0.3,0.9", "--model", str(shared_folder), "--dtype", "float32", "--estimate"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("18 results of 6 inversions") and len(lines) == 8
    assert [line.split()[0] for line in lines[4:]] == ["1", "8", "64", "512"]
    assert not (place / "out/manifest.jsonl").exists()
