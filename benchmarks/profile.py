"""Where one UNet evaluation's time goes: `python -m benchmarks.profile MODEL [--dtype ...] [--size LATENT]`.

oneDNN reports every convolution and matrix product with its shape and time; what is left are the engine's own kernels:
attention, norms, the passes that only move or scale, and below AVX-512 all matrix products."""

import argparse
import os
import re
import subprocess
import sys
from collections import defaultdict

MEASURED = "evaluation took"


def evaluate(source, dtype, size):
    """Runs in a process of its own: a warm-up, then the evaluation that counts."""
    import time

    import numpy as np

    import styleid

    model = styleid.load_model(source, dtype=dtype)
    latents = np.zeros((1, model.config["unet"]["in_channels"], size, size), np.float32)
    for timestep in (500, 500):
        print(MEASURED, "from here", flush=True)
        start = time.perf_counter()
        model.predict_noise(latents, timestep)
        print(MEASURED, time.perf_counter() - start, flush=True)


def operations(shape, kind):
    """Floating point operations of a shape as oneDNN prints it; 0 where it is not understood."""
    if kind == "matmul":
        sides = [[int(n) for n in side.split("x")] for side in shape.split(":")]
        return 2 * sides[0][-2] * sides[0][-1] * sides[1][-1] * (sides[0][0] if len(sides[0]) == 3 else 1)
    numbers = {name: int(n) for name, n in re.findall(r"([a-z]+)(\d+)", shape)}
    keys = ("mb", "oc", "oh", "ow", "ic", "kh", "kw")
    if not all(key in numbers for key in keys):
        return 0
    product = 2
    for key in keys:
        product *= numbers[key]
    return product


def parse(output):
    """({(kind, implementation, shape): [count, milliseconds]}, whole milliseconds) of the last evaluation."""
    calls, whole = defaultdict(lambda: [0, 0.0]), 0.0
    for line in output.splitlines():
        if line == f"{MEASURED} from here":
            calls.clear()
        elif line.startswith(MEASURED):
            whole = 1000 * float(line.split()[-1])
        elif line.startswith("onednn_verbose,exec"):
            fields = line.split(",")
            if fields[3] in ("convolution", "matmul"):
                entry = calls[fields[3], fields[4], fields[-2]]
                entry[0] += 1
                entry[1] += float(fields[-1])
    return calls, whole


def table(calls, whole):
    lines = ["| operation | shape | implementation | calls | ms | GFLOP/s | share |", "| --- " * 7 + "|"]
    for (kind, implementation, shape), (count, ms) in sorted(calls.items(), key=lambda item: -item[1][1]):
        rate = operations(shape, kind) * count / ms / 1e6 if ms else 0
        cells = kind, shape, implementation, str(count), f"{ms:.1f}", f"{rate:.0f}", f"{100 * ms / whole:.1f} %"
        lines.append("| " + " | ".join(cells) + " |")
    rest = whole - sum(ms for _, ms in calls.values())
    lines.append(f"| own kernels and the rest | | | | {rest:.1f} | | {100 * rest / whole:.1f} % |")
    lines.append(f"| the whole evaluation | | | | {whole:.1f} | | |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--size", type=int, default=64, help="of the latent (default: %(default)s)")
    parser.add_argument("--evaluate", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.evaluate:
        evaluate(options.model, options.dtype, options.size)
        return
    command = [sys.executable, "-m", "benchmarks.profile", *sys.argv[1:], "--evaluate"]
    run = subprocess.run(
        command, env=os.environ | {"ONEDNN_VERBOSE": "1"}, stdout=subprocess.PIPE, text=True, check=True
    )
    print(table(*parse(run.stdout)))


if __name__ == "__main__":
    main()
