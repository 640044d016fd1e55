"""One sweep by one process of two threads, and by one and by two Dask workers of one thread each, on this machine:
`python -m benchmarks.cluster [--model NAME] [--images N] [--size N] [--steps N] [--rounds N]`.

Needs `pip install styleid[cluster]`. The images are crops of the demo's two, N contents with N styles. Each round runs the three
in turn, and prints seconds and the peak memory of the process, or of scheduler and workers. Each worker loads the model, which
counts; the workers themselves are started before.
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

import distributed

import styleid

DEMO = Path(styleid.__file__).parent / "data/demo"


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
        with distributed.Client(address, timeout="60s", set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)
        yield address, peaks
    finally:
        for process in processes:
            process.kill()
            process.wait()


def write_images(arguments, root):
    """Crops of the demo's images, each at another place."""
    for which in "content", "style":
        (root / which).mkdir()
        image = styleid.load_image(DEMO / f"{which}.jpg")
        height, width = (side - arguments.size for side in image.shape[:2])
        for number in range(arguments.images):
            top, left = (side * number // max(1, arguments.images - 1) for side in (height, width))
            crop = image[top : top + arguments.size, left : left + arguments.size]
            styleid.save_image(root / which / f"{number}.png", crop)


def sweep(arguments, root, output, *options):
    """Seconds of one sweep."""
    command = [sys.executable, "-m", "styleid", "sweep", str(root / "content"), str(root / "style"), "-o", str(output)]
    command += ["--model", arguments.model, "--size", str(arguments.size), "--steps", str(arguments.steps)]
    command += ["--thumbnail", "0", "--quiet", *options]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def run(arguments, root, name, folder):
    if name == "process":
        seconds = sweep(arguments, root, folder / "out", "--threads", "2")
        return seconds, [resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10]  # of the largest so far
    with dask(folder, int(name[0])) as (address, peaks):
        seconds = sweep(arguments, root, folder / "out", "--cluster", address, "--threads", "1")
        return seconds, peaks()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="default")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    times = {"process": [], "1 worker": [], "2 workers": []}
    with tempfile.TemporaryDirectory(prefix="styleid-benchmark-") as place:
        root = Path(place)
        write_images(arguments, root)
        for number in range(arguments.rounds):
            for name, seconds in times.items():
                folder = Path(tempfile.mkdtemp(dir=root))
                took, memory = run(arguments, root, name, folder)
                seconds.append(took)
                print(f"round {number + 1}: {name}: {took:.1f} s, peaks {', '.join(map(str, memory))} MB", flush=True)
                shutil.rmtree(folder)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(*(f"{name}: median {median:.1f} s" for name, median in medians.items()), sep="\n")
    print(f"two workers take {medians['2 workers'] / medians['1 worker']:.2f} of one worker's time")


if __name__ == "__main__":
    main()
