"""The default number of threads: files of /proc and /sys as machines, containers and job schedulers have them."""

import os
import subprocess
import sys

import pytest
import test_memory

import styleid
from styleid import processors
from styleid.cli import main as cli

system = test_memory.system


@pytest.fixture
def machine(system, tmp_path, monkeypatch):
    """Writes files, and lets the process run on so many processors, numbered from 0, or on those of a list."""
    monkeypatch.setattr(processors, "CPUS", tmp_path / "cpu")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def set_up(allowed, files):
        allowed = set(range(allowed)) if isinstance(allowed, int) else set(allowed)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
        system(files)

    return set_up


def topology(siblings):
    """By processor, those of its core: {0: "0,4", ...}."""
    return {f"cpu/cpu{cpu}/topology/thread_siblings_list": text for cpu, text in siblings.items()}


TWO_PER_CORE = topology({i: f"{i % 4},{i % 4 + 4}" for i in range(8)})
PAIRS = topology({i: f"{i // 2 * 2}-{i // 2 * 2 + 1}" for i in range(8)})  # as some number them


@pytest.mark.parametrize(
    "allowed, files, threads",
    [
        (8, {}, 8),
        (8, TWO_PER_CORE, 4),
        (8, PAIRS, 4),
        ([1], TWO_PER_CORE, 1),
        ([0, 4], TWO_PER_CORE, 1),  # taskset to one core
        ([0, 1, 5], TWO_PER_CORE, 2),
        ([0, 1, 5], PAIRS, 2),
        (8, topology({i: str(i) for i in range(8)}), 8),
        (2000, {}, 1024),
    ],
)
def test_physical_cores(machine, allowed, files, threads):
    machine(allowed, files)
    assert processors.default_threads()[0] == threads
    assert f"{threads} physical core" in processors.default_threads()[1] or threads == 1024


V2 = {"proc/self/cgroup": "0::/kubepods/pod7/app"}
V1 = {"proc/self/cgroup": "11:memory:/job\n4:cpu,cpuacct:/slurm/job/step\n1:name=systemd:/x\n0::/"}


@pytest.mark.parametrize(
    "files, threads, said",
    [
        (V2 | {"cgroup/kubepods/pod7/app/cpu.max": "200000 100000"}, 2, "2"),
        (V2 | {"cgroup/kubepods/pod7/app/cpu.max": "150000 100000"}, 2, "1.5"),
        (V2 | {"cgroup/kubepods/pod7/app/cpu.max": "20000 100000"}, 1, "0.2"),
        (V2 | {"cgroup/kubepods/pod7/app/cpu.max": "30000 10000"}, 3, "3"),
        (V2 | {"cgroup/kubepods/pod7/app/cpu.max": "300000"}, 3, "3"),  # of the usual period
        (V2 | {"cgroup/kubepods/pod7/app/cpu.max": "max 100000"}, 16, None),
        (V2 | {"cgroup/kubepods/pod7/app/cpu.max": "6400000 100000"}, 16, None),  # more than there are
        (
            V2 | {"cgroup/kubepods/pod7/app/cpu.max": "max 100000", "cgroup/kubepods/cpu.max": "500000 100000"},
            5, "5",
        ),
        (
            V2 | {"cgroup/kubepods/pod7/app/cpu.max": "900000 100000", "cgroup/kubepods/pod7/cpu.max": "400000 100000"},
            4, "4",
        ),
        ({"proc/self/cgroup": "0::/", "cgroup/cpu.max": "200000 100000"}, 2, "2"),  # a container's own root
        ({"proc/self/cgroup": "0::/docker/0123", "cgroup/cpu.max": "200000 100000"}, 2, "2"),
        (
            V1 | {"cgroup/cpu/slurm/job/step/cpu.cfs_quota_us": -1, "cgroup/cpu/slurm/job/step/cpu.cfs_period_us": 100000,
                  "cgroup/cpu/slurm/job/cpu.cfs_quota_us": 350000, "cgroup/cpu/slurm/job/cpu.cfs_period_us": 100000},
            4, "3.5",
        ),
        (
            V1 | {"cgroup/cpu,cpuacct/cpu.cfs_quota_us": 200000, "cgroup/cpu,cpuacct/cpu.cfs_period_us": 100000},
            2, "2",
        ),
        (V1 | {"cgroup/cpu/cpu.cfs_quota_us": 50000, "cgroup/cpu/cpu.cfs_period_us": 25000}, 2, "2"),
        (V1 | {"cgroup/cpu/cpu.cfs_quota_us": -1, "cgroup/cpu/cpu.cfs_period_us": 100000}, 16, None),
        (V1 | {"cgroup/cpu/cpu.cfs_quota_us": 200000}, 16, None),
        (V2 | {"cgroup/kubepods/pod7/app/cpu.max": ""}, 16, None),
        (V2 | {"cgroup/kubepods/pod7/app/cpu.max": "0 0"}, 16, None),
        ({"proc/self/cgroup": "0::/gone"}, 16, None),
        ({}, 16, None),
    ],
)  # fmt: skip
def test_quotas_of_control_groups(machine, files, threads, said):
    machine(16, files)
    found, source = processors.default_threads()
    assert found == threads
    assert (f"quota of {said} CPUs" if said else "16 physical cores") in source


def test_what_the_user_says_comes_first(machine, monkeypatch, shared_folder, capsys):
    machine(16, {"proc/self/cgroup": "0::/", "cgroup/cpu.max": "200000 100000"})
    assert styleid.load_model(shared_folder).threads == 2
    cli.main(["info", "--model", str(shared_folder)])
    assert "threads by default: 2 (its control group's quota of 2 CPUs)" in capsys.readouterr().out
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert processors.default_threads() == (3, "OMP_NUM_THREADS")
    assert styleid.load_model(shared_folder).threads == 3
    assert styleid.load_model(shared_folder, threads=1).threads == 1


def test_affinity_of_this_machine():
    """A process that may run on one processor takes one thread."""
    program = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from styleid.processors import default_threads
print(default_threads()[0])
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.split() == ["1"]
