"""Everything that only hardware can answer, in one run of a few minutes without a network:
python -m benchmarks.gpu [--minutes 9] [--out FOLDER] [--cpu] [PART ...]

Correctness first, then speed beside PyTorch. Each part runs in a process of its own with its own time limit, and its answers are
written when it ends, so that a run that is cut off has kept what it found: FOLDER/results.json, FOLDER/results.md. --cpu: the same for
a server's CPU: its highest instruction set, AMX where it has it, with all cores."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.parts import CPU, GPU


def run_part(name, seconds, folder, model):
    """What the part found: {"rows": [...]}, or what kept it from finding anything."""
    answer = folder / f"{name}.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.parts", name, str(answer), str(model or "")]
    start = time.perf_counter()
    with open(folder / f"{name}.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            code = f"the time of {seconds:.0f} s is over"
    rows = json.loads(answer.read_text()) if answer.is_file() else []
    return {"part": name, "seconds": round(time.perf_counter() - start, 1), "end": code, "rows": rows}


def table(result):
    lines = [
        f"## {result['part']}: {result['seconds']} s" + ("" if result["end"] == 0 else f", ended with {result['end']}"),
        "",
    ]
    lines += [f"- {row['what']}: {row['found']}" for row in result["rows"]]
    return "\n".join([*lines, ""])


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{' '.join(GPU)}; with --cpu {' '.join(CPU)}")
    parser.add_argument("--minutes", type=float, default=9, help="for all parts together (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--cpu", action="store_true", help="the CPU instead of the GPU")
    parser.add_argument(
        "--model", type=Path, help="a model's folder in place of one of SD 1.x's size with random weights"
    )
    options = parser.parse_args()
    parts = CPU if options.cpu else GPU
    if unknown := set(options.parts) - parts.keys():
        parser.error(f"unknown part {min(unknown)}, expected {', '.join(parts)}")
    options.out.mkdir(parents=True, exist_ok=True)
    end, results = time.monotonic() + 60 * options.minutes, []
    for name in options.parts or parts:
        limit = min(parts[name].seconds * options.minutes / 9, end - time.monotonic())
        if limit < 1:
            break
        results.append(run_part(name, limit, options.out, options.model))
        print(table(results[-1]), flush=True)
        (options.out / "results.json").write_text(json.dumps(results, indent=1))
        (options.out / "results.md").write_text("\n".join(map(table, results)))
    return int(any(result["end"] != 0 for result in results))


if __name__ == "__main__":
    sys.exit(main())
