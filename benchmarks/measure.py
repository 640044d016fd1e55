"""Runs a section: every program in a process of its own, their repeats in turn, so that all meet the same disturbances,
one computing at a time."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.workers import PROGRAMS

PAUSE = 0.2  # seconds in which the last program's threads go to sleep


class Worker:
    def __init__(self, name, dtype, folder, section):
        command = [sys.executable, "-m", "benchmarks.workers", name, dtype, str(folder), str(section.threads)]
        command.append(section.clock)
        environment = os.environ | ({"STYLEID_ISA": section.level} if section.level else {})
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, task, arguments):
        time.sleep(PAUSE)
        self.process.stdin.write(json.dumps([task, arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[3]} ended with {self.process.wait()} at {task} {arguments}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def able(name, row):
    """Whether the program has the task with such arguments."""
    method = getattr(PROGRAMS[name], row.task, None)
    return method is not None and row.arguments.keys() <= set(method.__code__.co_varnames)


def run_command(row):
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([*row.command, str(Path(folder, "result.png"))], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "megabytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 // 10**6}


def run_row(row, section, dtype, folder, names, workers, repeats):
    """{program: [answer, ...]}. A first run warms up, uncounted, unless every run is a process's first."""
    if row.command:
        return {"styleid": [run_command(row) for _ in range(repeats)]}
    answers = {name: [] for name in names if able(name, row)}
    for repeat in range(repeats + (not section.fresh)):
        for name, counted in answers.items():
            worker = Worker(name, dtype, folder, section) if section.fresh else workers[name]
            if section.fresh and row.task != "load":
                worker.run("load", {})
            answer = worker.run(row.task, row.arguments)
            if repeat or section.fresh:
                counted.append(answer)
                print(f"{row.label}, {name}: {answer['seconds']:.3f} s", file=sys.stderr, flush=True)
            if section.fresh:
                worker.close()
    return answers


def run_section(section, dtype, folder, programs, repeats):
    """[(row, {program: [answer, ...]}), ...]"""
    names = [name for name in section.programs if name in programs]
    workers = {}
    if not section.fresh and any(row.task for row in section.rows):
        workers = {name: Worker(name, dtype, folder, section) for name in names}
        for worker in workers.values():
            worker.run("load", {})
    try:
        rows = [
            (row, run_row(row, section, dtype, folder, names, workers, min(repeats, section.most)))
            for row in section.rows
        ]
    finally:
        for worker in workers.values():
            worker.close()
    return rows
