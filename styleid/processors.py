"""How many threads a process may really use: a container's share of a machine is not the number of its processors."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from styleid import memory

CPUS = Path("/sys/devices/system/cpu")
MOST = 1024  # threads that a model may have


def default_threads() -> tuple[int, str]:
    """The number of threads that a model computes with unless another one is given, and where the number comes from.

    It is what OMP_NUM_THREADS says; else the least of the physical cores that the process may run on (its affinity, which
    cpusets, taskset and job schedulers set) and of the CPU quotas of its control groups, versions 1 and 2, and of their
    parents, rounded up.
    """
    wish = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list is per nesting level
    if wish.isdecimal() and 1 <= int(wish) <= MOST:
        return int(wish), "OMP_NUM_THREADS"
    cores = _cores(os.sched_getaffinity(0))
    quota = min(_quotas(), default=math.inf)
    if quota < cores:
        return max(1, math.ceil(quota)), f"its control group's quota of {quota:.4g} CPUs"
    return min(cores, MOST), f"{cores} physical core{'s' * (cores > 1)} that it may run on"


def _cores(processors: set[int]) -> int:
    """The number of physical cores of some processors: those that share a core, by simultaneous multithreading, count once."""
    cores = set()
    for processor in processors:
        siblings = "".join(memory.lines(CPUS / f"cpu{processor}/topology/thread_siblings_list"))
        cores.add(siblings or str(processor))
    return len(cores)


def _quotas() -> Iterator[float]:
    """The CPU quota of each control group, in CPUs."""
    for folder, version in memory.control_groups("cpu"):
        if version == 2:
            limit, *period = "".join(memory.lines(folder / "cpu.max")).split() or ["max"]
        else:
            limit, *period = ("".join(memory.lines(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        numbers = [limit, *(period or ["100000"])]
        if all(number.isdecimal() and int(number) > 0 for number in numbers):  # "max" and -1: no limit
            yield int(numbers[0]) / int(numbers[1])
