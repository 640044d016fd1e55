"""One sweep by one process of two threads, and by one and by two Dask workers of one thread each, on this machine:
`python -m benchmarks.cluster CONTENTS STYLES [--model NAME] [--steps N] [--rounds N]`.

Needs `pip install styleid[cluster]`. Each round runs the three in turn, and prints seconds and the peak memory of scheduler and
workers; the model is loaded by each worker, which counts.
"""

import argparse
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextmanager
def dask(folder, workers):
    """The address of a scheduler with so many workers, and a function that says how much memory each process took at most."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    module = [sys.executable, "-m"]
    commands = [["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]]
    commands += [
        ["distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1",
         "--local-directory", str(folder / f"worker{number}")]
        for number in range(workers)
    ]  # fmt: skip
    processes = [subprocess.Popen([*module, *command], **quiet) for command in commands]

    def peaks():
        lines = [Path(f"/proc/{process.pid}/status").read_text().splitlines() for process in processes]
        return [int(line.split()[1]) >> 10 for text in lines for line in text if line.startswith("VmHWM:")]

    try:
        yield address, peaks
    finally:
        for process in processes:
            process.kill()
            process.wait()


def sweep(arguments, output, *options):
    """Seconds of one sweep."""
    command = [sys.executable, "-m", "styleid", "sweep", arguments.contents, arguments.styles, "-o", str(output)]
    command += ["--model", arguments.model, "--steps", str(arguments.steps), "--thumbnail", "0", "--quiet", *options]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def run(arguments, name, folder):
    if name == "process":
        seconds = sweep(arguments, folder / "out", "--threads", "2")
        return seconds, [resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10]
    with dask(folder, int(name[0])) as (address, peaks):
        seconds = sweep(arguments, folder / "out", "--cluster", address, "--threads", "1")
        return seconds, peaks()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("contents")
    parser.add_argument("styles")
    parser.add_argument("--model", default="default")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    times = {"process": [], "1 worker": [], "2 workers": []}
    for number in range(arguments.rounds):
        for name, seconds in times.items():
            folder = Path(tempfile.mkdtemp(prefix="styleid-benchmark-"))
            took, memory = run(arguments, name, folder)
            seconds.append(took)
            print(f"round {number + 1}: {name}: {took:.1f} s, peaks {', '.join(map(str, memory))} MB", flush=True)
            shutil.rmtree(folder)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(*(f"{name}: median {median:.1f} s" for name, median in medians.items()), sep="\n")
    print(f"two workers take {medians['2 workers'] / medians['1 worker']:.2f} of one worker's time")


if __name__ == "__main__":
    main()
