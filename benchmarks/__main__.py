"""Times styleid beside PyTorch with diffusers and OpenVINO: `python -m benchmarks [--dtype ...] [--repeats N] [-o DIR]`.

Every program runs in a process of its own; their repeats take turns, so that all meet the same disturbances, and only
one computes at a time. The table's ratios are other / styleid of the fastest runs."""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import sd
from benchmarks.workers import PROGRAMS, THREADS

TASKS = {
    "unet": "one UNet evaluation",
    "unet_batch_2": "a batch of two",
    "unet_injected": "one evaluation with injection",
    "vae_encode": "VAE encode 512x512",
    "vae_decode": "VAE decode 512x512",
}


class Worker:
    def __init__(self, name, dtype, folder):
        command = [sys.executable, "-m", "benchmarks.workers", name, dtype, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with {self.process.wait()}")
        return json.loads(line)

    def run(self, task):
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def machine():
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    import styleid

    info = styleid._core.info()
    return {
        "cpu": names[0] if names else platform.processor(), "cores": len(names), "isa": info["isa"],
        "onednn": info["onednn"], "python": platform.python_version(), "threads": THREADS,
    }  # fmt: skip


def measure(dtype, programs, tasks, repeats, folder):
    """{task: {program: [seconds, ...]}} and each program's facts. Every first run of a task warms up, uncounted."""
    workers = {name: Worker(name, dtype, folder) for name in programs}
    times = {task: {} for task in tasks}
    for task in tasks:
        able = [name for name in programs if hasattr(PROGRAMS[name], task)]
        for repeat in range(repeats + 1):
            for name in able:
                answer = workers[name].run(task)
                workers[name].facts["megabytes"] = answer["megabytes"]
                if repeat:
                    times[task].setdefault(name, []).append(answer["seconds"])
                time.sleep(0.2)  # the last one's threads go to sleep
    for worker in workers.values():
        worker.close()
    return times, {name: worker.facts for name, worker in workers.items()}


def table(dtype, times, programs):
    """Markdown: fastest (median, slowest) seconds of each program, and how many times styleid's fastest."""
    lines = [f"| {dtype} | " + " | ".join(programs) + " |", "| --- |" + " --- |" * len(programs)]
    for task, by_program in times.items():
        cells = []
        for name in programs:
            seconds = by_program.get(name)
            if not seconds:
                cells.append("-")
                continue
            cell = f"{min(seconds):.3f} s ({statistics.median(seconds):.3f}, {max(seconds):.3f})"
            ours = by_program.get("styleid")
            cells.append(cell if name == "styleid" or not ours else f"{cell}: {min(seconds) / min(ours):.2f} x")
        lines.append(f"| {TASKS[task]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], action="append", help="default: both")
    parser.add_argument("--programs", default=",".join(PROGRAMS), help="default: %(default)s")
    parser.add_argument("--tasks", default=",".join(TASKS), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each task (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="where the random model is kept (default: a temporary folder)")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/benchmarks"), help="default: %(default)s")
    options = parser.parse_args()
    programs = options.programs.split(",")
    report = {"machine": machine(), "results": {}}
    tables = [" / ".join(f"{key} {value}" for key, value in report["machine"].items())]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or Path(temporary)
        sd.write_folder(folder)
        for dtype in options.dtype or ["bfloat16", "float32"]:
            times, facts = measure(dtype, programs, options.tasks.split(","), options.repeats, folder)
            report["results"][dtype] = {"seconds": times, "programs": facts}
            tables.append(table(dtype, times, programs))
            tables.append(", ".join(f"{n} {f['version']}: peak {f['megabytes']} MB" for n, f in facts.items()))
    text = "\n\n".join(tables) + "\n"
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.md").write_text(text)
    (options.output / "results.json").write_text(json.dumps(report, indent=1))
    print(text)


if __name__ == "__main__":
    main()
