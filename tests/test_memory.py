"""What a run takes, what is free, and that too large a wish is an error before work starts."""

import re
import resource
import subprocess
import sys

import numpy as np
import pytest
from conftest import random_image

import styleid
from styleid import memory
from styleid.cli import main as cli

STEPS = 3


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Writes files of /proc and /sys/fs/cgroup; there are none at first, and no limit of the address space."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return write


def available(gigabytes):
    return {
        "proc/meminfo": f"MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable:   {gigabytes * 10**9 // 1024} kB\nSwapFree: 9 kB"
    }


# ---- what is free ----


def test_nothing_is_known(system):
    assert styleid.free_memory()[0] == float("inf")


def test_of_the_machine(system):
    system(available(8))
    free, whose = styleid.free_memory()
    assert free == pytest.approx(8e9, abs=1024) and "machine" in whose


STAT = "anon 5\ninactive_file 100\nactive_file 20\nfile 7"
V1_STAT = "cache 5\ninactive_file 1\ntotal_inactive_file 100\ntotal_active_file 20"
VERSION_2 = {
    "proc/self/cgroup": "0::/system/job",
    "cgroup/system/job/memory.max": 1000, "cgroup/system/job/memory.current": 400, "cgroup/system/job/memory.stat": STAT,
}  # fmt: skip
VERSION_1 = {
    "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/job\n0::/",
    "cgroup/memory/job/memory.limit_in_bytes": 1000, "cgroup/memory/job/memory.usage_in_bytes": 400,
    "cgroup/memory/job/memory.stat": V1_STAT,
    "cgroup/memory/memory.limit_in_bytes": 9223372036854771712, "cgroup/memory/memory.usage_in_bytes": 10**10,
}  # fmt: skip


@pytest.mark.parametrize(
    "files, free",
    [
        (VERSION_2, 720),
        (VERSION_2 | {"cgroup/system/job/memory.max": "max"}, None),
        (VERSION_2 | {"cgroup/system/memory.max": 2000, "cgroup/system/memory.current": 1500}, 500),
        (VERSION_2 | {"cgroup/system/memory.max": 2000, "cgroup/system/memory.current": 2500}, 0),
        (VERSION_1, 720),
        (
            VERSION_1
            | {"proc/self/cgroup": "4:memory:/not/visible/here", "cgroup/memory/memory.limit_in_bytes": 10**10 + 7},
            7,
        ),
        (VERSION_1 | {"proc/self/cgroup": "4:cpu:/job"}, None),
        ({"proc/self/cgroup": "0::/"}, None),
    ],
)
def test_of_control_groups(system, files, free):
    """Usage, less what is cached, from the limit: the least of the group and all above it."""
    system(available(8) | files)
    found, whose = styleid.free_memory()
    if free is None:
        assert "machine" in whose
    else:
        assert found == free and "control group" in whose


def test_of_the_address_space(system, monkeypatch):
    system(available(8) | {"proc/self/statm": "100 50 20 1 0 30 0"})
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**7, 10**8))
    free, whose = styleid.free_memory()
    assert free == 10**7 - 100 * resource.getpagesize() and "ulimit" in whose


# ---- what is needed ----


@pytest.mark.parametrize("height, width", [(16, 16), (20, 33)])
@pytest.mark.parametrize("keep, kinds", [("both", 3), ("query", 1), ("keys", 2), ("none", 0)])
def test_features_are_predicted_to_the_byte(model, height, width, keep, kinds):
    inversion = styleid.invert(random_image(0, height, width), model, steps=STEPS, keep=keep, layers=(4, 5, 6, 7))
    kept = sum(array.nbytes for layers in inversion.features.values() for array in layers.values())
    assert memory.of_inversion(model, (height, width), STEPS, (4, 5, 6, 7), kinds, "float32").features == kept
    assert memory.of_inversion(model, (height, width), STEPS, (4, 5, 6, 7), kinds, "bfloat16").features == kept // 2


def test_prediction_of_a_transfer(model):
    need = styleid.predict_memory(model, steps=STEPS)
    assert need == styleid.predict_memory(
        model, 16, (16, 16), steps=STEPS, layers=(6, 7), options=styleid.Storage(dtype="float32")
    )
    assert need.scratch == max(model.scratch(2, 16, 16), model.engine.vae_scratch(16, 16))
    assert need.total == need.scratch + need.features + need.arrays
    more = styleid.predict_memory(model, 16, [16, (32, 20)], steps=STEPS)
    assert more.features > need.features and more.arrays > need.arrays
    assert styleid.predict_memory(model, (30, 20), steps=STEPS) == styleid.predict_memory(model, 32, steps=STEPS)
    with pytest.raises(TypeError, match="size"):
        styleid.predict_memory(model, "16")
    with pytest.raises(ValueError, match="steps"):
        styleid.predict_memory(model, steps=1)


PEAK = """
import sys
import numpy as np, styleid
def resident(name):  # not getrusage, whose peak begins with the parent's
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))
model = styleid.load_model(sys.argv[1], dtype="float32", threads=1)
small = np.zeros((16, 16, 3), np.uint8)
styleid.transfer(small, small, model, steps=2)
image = np.zeros((192, 160, 3), np.uint8)
styleid.transfer(image, image, model, steps=2)  # prepares the primitives of this size
before = resident("VmRSS:") - model.engine.idle  # what is kept of the scratch belongs to the run
styleid.transfer(image, image, model, steps=2)
print(resident("VmHWM:") - before, styleid.predict_memory(model, image.shape[:2], steps=2).total)
"""


@pytest.mark.long
def test_the_prediction_is_what_a_run_takes(shared_folder):
    """A second run's: the first also prepares primitives, which are larger the more a CPU can do."""
    run = subprocess.run([sys.executable, "-c", PEAK, shared_folder], capture_output=True, text=True, check=True)
    taken, predicted = map(int, run.stdout.split())
    assert 0.85 * predicted < taken < predicted + (2 << 20), (taken, predicted)


# ---- too much ----


@pytest.fixture
def scarce(system, model):
    """As much as transfers of 16 x 16 images need, and no more."""
    need = styleid.predict_memory(model, steps=STEPS).total
    system({"proc/meminfo": f"MemAvailable: {need // 1024 + 1} kB"})


def test_too_large_a_wish_is_refused_before_work_starts(model, scarce):
    calls = []
    small, large = random_image(0), random_image(0, 64, 64)
    styleid.transfer(small, small, model, steps=STEPS)
    inversion = styleid.invert(small, model, steps=STEPS)
    styleid.inject_styles(inversion, inversion)
    advice = r"\d GB \(scratch .* are free in this machine; try a smaller size, .*keep='query'"
    for content, style in (large, small), (small, large), (small, [small, large]):
        with pytest.raises(MemoryError, match="^this transfer needs .*" + advice):
            styleid.transfer(content, style, model, steps=STEPS, progress=lambda *call: calls.append(call))
    with pytest.raises(MemoryError, match="^this inversion needs .*" + advice):
        styleid.invert(large, model, steps=STEPS, progress=lambda *call: calls.append(call))
    assert not calls


def test_sampling_is_checked_too(model, system):
    inversion = styleid.invert(random_image(0, 64, 64), model, steps=STEPS)
    system({"proc/meminfo": "MemAvailable: 1 kB"})
    with pytest.raises(MemoryError, match="^this sampling needs"):
        styleid.inject_styles(inversion, inversion)


def test_scratch_that_is_there_already_is_not_counted_twice(shared_folder, system):
    model = styleid.load_model(shared_folder, dtype="float32", threads=1)
    assert model.engine.idle == 0 or model.engine.idle < model.engine.vae_scratch(64, 64)
    need = styleid.predict_memory(model, 64, steps=STEPS)
    system({"proc/meminfo": f"MemAvailable: {(need.total - need.scratch) // 1024 + 1} kB"})
    image = random_image(0, 64, 64)
    with pytest.raises(MemoryError):
        styleid.transfer(image, image, model, steps=STEPS)
    model.engine.encode(image[np.newaxis])
    model.engine.decode(np.zeros((1, 4, 32, 32), np.float32))
    model.predict_noise(np.zeros((2, 4, 32, 32)), 1)
    assert model.engine.idle >= need.scratch
    styleid.transfer(image, image, model, steps=STEPS)


def test_a_buffer_that_is_too_small_is_not_kept_beside_the_larger_one(shared_folder):
    model = styleid.load_model(shared_folder, dtype="float32", threads=1)
    for side in 16, 64, 32:
        model.decode(np.zeros((1, 4, side // 2, side // 2), np.float32))
    assert model.engine.idle == pytest.approx(model.engine.vae_scratch(64, 64), rel=0.5)


def test_models_that_are_too_large(shared_folder, system):
    system({"proc/meminfo": "MemAvailable: 9 kB"})
    with pytest.raises(MemoryError, match="weights need at least .* in float32, but 0.00 GB are free in this machine"):
        styleid.load_model(shared_folder, dtype="float32")


def test_command_line(shared_folder, tmp_path, monkeypatch, capsys, system):
    styleid.save_image(tmp_path / "a.png", random_image())
    paths = [str(tmp_path / "a.png")] * 2
    system(available(4))
    assert cli.main(["info", "--model", str(shared_folder), "--dtype", "float32", "--steps", "3"]) == 0
    out = capsys.readouterr().out
    assert "a transfer with 3 steps takes" in out and "4.00 GB are free in this machine" in out
    assert (
        cli.main(["transfer", *paths, "-o", str(tmp_path / "b.png"), "--model", str(shared_folder), "--size", "4096"])
        == 2
    )
    assert "this transfer needs" in capsys.readouterr().err


LIMITED = """
import resource, sys
import numpy as np, styleid
model = styleid.load_model(sys.argv[1], dtype="float32", threads=1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[2]) << 20), resource.RLIM_INFINITY))
image = np.zeros((2048, 2048, 3), np.uint8)
try:
    styleid.transfer(image, image, model, steps=2)
except MemoryError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "megabytes, message", [(400, "this transfer needs .* address space"), (16, "out of memory|needs")]
)
def test_a_true_limit(shared_folder, megabytes, message):
    """Also where not even the primitives can be made that would be measured."""
    command = [sys.executable, "-c", LIMITED, shared_folder, str(megabytes)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(message, run.stdout)
