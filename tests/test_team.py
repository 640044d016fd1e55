"""OpenMP gives fewer threads than were asked for: the bytes of one thread, at every instruction set of the CPU."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from styleid import _core

pytestmark = pytest.mark.long

LEVELS = _core.info()["isas"]
PLAIN = {
    name: "" for name in ("OMP_DYNAMIC", "OMP_THREAD_LIMIT", "OMP_MAX_ACTIVE_LEVELS", "OMP_NESTED", "OMP_NUM_THREADS")
}
CASES = [(level, "float32") for level in LEVELS] + [
    (level, "bfloat16") for level in LEVELS if level not in ("generic", "avx2")
]
every_level = pytest.mark.parametrize("level, dtype", CASES)


def run(program, level, **environment):
    variables = {name: value for name, value in os.environ.items() if name not in PLAIN}
    process = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{program}"],
        capture_output=True, text=True, env=variables | environment | {"STYLEID_ISA": level}, cwd="/", timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout.split()


@cache
def expected(level, dtype):
    """By one thread."""
    return run(f"import team_program as p; print(p.digest(p.model({dtype!r}, 1)))", level)[0]


@every_level
@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_DYNAMIC": "true"},  # no more threads than the machine has idle cores
        {"OMP_THREAD_LIMIT": "1"},
        {"OMP_THREAD_LIMIT": "3"},
        {"OMP_MAX_ACTIVE_LEVELS": "0"},
        {"OMP_DYNAMIC": "true", "OMP_THREAD_LIMIT": "2", "OMP_NUM_THREADS": "3"},
    ],
    ids=lambda environment: "-".join(environment.values()),
)
def test_settings_of_the_environment(level, dtype, environment):
    found = run(f"import team_program as p; print(p.digest(p.model({dtype!r})))", level, **environment)
    assert found == [expected(level, dtype)]


BY_CALL = """
import threading
import team_program as p
openmp, model = p.OpenMP(), p.model({dtype!r})
print(p.digest(model))

openmp.set_dynamic(1)
before = openmp.settings()
print(p.digest(model), p.digest(p.model({dtype!r})))
assert openmp.settings() == before  # the caller's settings are its own
openmp.set_dynamic(0)

def toggle(step, steps):
    openmp.set_dynamic(step % 2)
    openmp.set_levels(step % 2)
print(p.digest(model, progress=toggle))
openmp.set_dynamic(0)

openmp.set_levels(0)
print(p.digest(model))
openmp.set_levels(1)
print(openmp.inside(lambda: p.digest(model)), openmp.inside(lambda: p.digest(p.model({dtype!r}))))
openmp.set_levels(4)  # regions within regions
print(openmp.inside(lambda: p.digest(model)))

def other():
    openmp.set_levels(0)
    others.append(p.digest(model))
others = []
threads = [threading.Thread(target=other) for _ in range(2)]
[thread.start() for thread in threads]
print(p.digest(model))
[thread.join() for thread in threads]
print(*others)
assert len(others) == 2
"""


@every_level
def test_settings_by_another_library(level, dtype):
    """omp_set_dynamic(1), as OpenCV calls it where it is imported, limits that come and go, regions around a call."""
    assert set(run(BY_CALL.format(dtype=dtype), level)) == {expected(level, dtype)}
