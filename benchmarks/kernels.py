"""Times the CPU's own kernels, every level against plain C and, where it is importable, against PyTorch.

python -m benchmarks.kernels [--threads N] [--rounds N] [--only TEXT]
"""

import argparse
import os
import time

# PyTorch brings an OpenMP of its own, whose idle threads would spin on the cores that the other one's need.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

from tests import native
from tests.native import AVX512, AVX512_BF16, GENERIC, Kernels, Problem, Source, floats, to_bfloat16

try:
    import torch
except ImportError:
    torch = None

DTYPES = {"float32": np.float32, "bfloat16": np.uint16}

# queries, keys, heads, head size: what Stable Diffusion 1.x computes at 512x512.
ATTENTION = {
    "self-attention, 1/8": (4096, 4096, 8, 40),
    "self-attention, 1/16": (1024, 1024, 8, 80),
    "self-attention, 1/32": (256, 256, 8, 160),
    "cross-attention, 1/8": (4096, 77, 8, 40),
    "cross-attention, 1/16": (1024, 77, 8, 80),
    "VAE": (4096, 4096, 1, 512),
}
PRODUCTS = {"4096 x 320 x 1280": (4096, 320, 1280), "256 x 1280 x 5120": (256, 1280, 5120)}  # rows, in, out
NORM = {"64 x 64 x 320": (64, 320), "32 x 32 x 1280": (32, 1280), "256 x 256 x 256": (256, 256)}  # side, channels

WINOGRAD = {"64 x 64 x 320": (64, 320), "256 x 256 x 128": (256, 128)}  # side, channels
TILES = 256  # at a time, as the engine does, so that they stay in the cache


def levels(dtype):
    """Those whose kernels for this dtype are their own."""
    own = range(native.best_level() + 1) if dtype == "bfloat16" else range(min(native.best_level(), AVX512) + 1)
    return [Kernels(level) for level in own]


def noise(seed, *shape, dtype):
    x = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return to_bfloat16(x) if dtype == "bfloat16" else x


def as_torch(x):
    return torch.from_numpy(floats(x)).to(torch.bfloat16 if x.dtype == np.uint16 else torch.float32)


def best_times(candidates, rounds, clock):
    """Seconds of each candidate, the best of some rounds in turn, so that all meet the same disturbances."""
    best = {name: float("inf") for name in candidates}
    for i in range(rounds):
        for name, run in candidates.items():
            if i > 0 and best[name] > 1:
                continue
            start = clock()
            run()
            best[name] = min(best[name], clock() - start)
    return best


def attention(shape, dtype, threads):
    queries, keys, heads, size = shape
    q, k, v = (noise(i, n, heads * size, dtype=dtype) for i, n in enumerate((queries, keys, keys)))
    candidates = {}
    for kernels in levels(dtype):
        prepared = kernels.prepare([Problem(q, [Source(k, v)], heads, size**-0.5, dst=np.empty_like(q))])
        candidates[repr(kernels)] = lambda kernels=kernels, prepared=prepared: kernels.attention_prepared(
            prepared, threads
        )
    if torch:
        split = [as_torch(x).view(1, -1, heads, size).transpose(1, 2) for x in (q, k, v)]
        candidates["torch"] = lambda: torch.nn.functional.scaled_dot_product_attention(*split)
    return candidates, 4 * queries * keys * heads * size / 1e9, "GFLOP/s"


def group_norm(shape, dtype, threads):
    side, channels = shape
    x = noise(0, 1, side, side, channels, dtype=dtype)
    scale, shift = noise(1, channels, dtype="float32"), noise(2, channels, dtype="float32")
    dst = np.empty_like(x)
    candidates = {
        repr(kernels): lambda kernels=kernels: kernels.group_norm(
            x, None, None, scale, shift, 32, 1e-5, True, threads=threads, dst=dst
        )
        for kernels in levels(dtype)
    }
    if torch:
        image, weight, bias = as_torch(x).permute(0, 3, 1, 2), *(as_torch(p) for p in (scale, shift))
        weight, bias = weight.to(image.dtype), bias.to(image.dtype)
        candidates["torch"] = lambda: torch.nn.functional.silu(
            torch.nn.functional.group_norm(image, 32, weight, bias, 1e-5)
        )
    return candidates, 3 * x.nbytes / 1e9, "GB/s"


def matmul(shape, dtype, threads):
    """With bias, GELU and gate, as in the feed-forward networks. From AVX-512 on there are none of our own."""
    rows, depth, columns = shape
    own = [kernels for kernels in levels(dtype) if kernels.level < AVX512] if dtype == "float32" else []
    x, weights, bias = (
        noise(0, rows, depth, dtype="float32"),
        noise(1, depth, columns, dtype="float32"),
        noise(2, columns, dtype="float32"),
    )
    factor, dst = noise(3, rows, columns, dtype="float32"), np.empty((rows, columns), np.float32)
    panels = np.ascontiguousarray(weights.reshape(depth, -1, 16).transpose(1, 0, 2))
    product = {"src": x, "weights": panels, "bias": bias, "factor": factor, "dst": dst, "activation": 1}
    candidates = {repr(kernels): lambda kernels=kernels: kernels.matmul([product], threads) for kernels in own}
    if torch and own:
        layer = torch.nn.Linear(depth, columns).requires_grad_(False)
        tensor, gate = as_torch(x), as_torch(factor)
        candidates["torch"] = lambda: torch.nn.functional.gelu(layer(tensor)) * gate
    return candidates, 2 * rows * depth * columns / 1e9, "GFLOP/s"


def winograd(shape, dtype, threads):
    """Both transforms: to F(4x4, 3x3) in float32, to F(2x2, 3x3) in bfloat16."""
    side, channels = shape
    output = 4 if dtype == "float32" else 2
    own = [kernels for kernels in levels(dtype) if output == 4 or kernels.level in (GENERIC, AVX512_BF16)]
    x, bias = noise(0, 1, side, side, channels, dtype=dtype), noise(1, channels, dtype="float32")
    dst, m = np.empty_like(x), noise(2, (output + 2) ** 2, TILES, channels, dtype="float32")

    def run(kernels):
        kernels.winograd_input(x, 0, TILES, output, threads)
        kernels.winograd_output(dst, m, bias, None, False, 0, output, threads)

    candidates = {repr(kernels): lambda kernels=kernels: run(kernels) for kernels in own}
    maps = 2 * TILES * output**2 * channels * x.itemsize
    return candidates, (maps + m.size * (x.itemsize + 4)) / 1e9, "GB/s"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--cpu-time", action="store_true", help="of one thread: for a machine that is busy otherwise")
    options = parser.parse_args()
    clock = time.perf_counter
    if options.cpu_time:
        options.threads, clock = 1, time.process_time
    if torch:
        torch.set_num_threads(options.threads)
    cases = [(f"attention, {name}", attention, shape) for name, shape in ATTENTION.items()]
    cases += [(f"product with GELU and gate, {name}", matmul, shape) for name, shape in PRODUCTS.items()]
    cases += [(f"group norm + SiLU, {name}", group_norm, shape) for name, shape in NORM.items()]
    cases += [(f"Winograd's transforms, {name}", winograd, shape) for name, shape in WINOGRAD.items()]

    print(f"{options.threads} threads; best of {options.rounds}; the ratios are of speed\n")
    print("| case | dtype | kernel | ms | rate | to plain C | to torch |\n| --- | --- | --- | --- | --- | --- | --- |")
    for title, make, shape in cases:
        for dtype in DTYPES:
            if options.only not in f"{title}, {dtype}":
                continue
            candidates, work, unit = make(shape, dtype, options.threads)
            if not candidates:
                continue
            times = best_times(candidates, options.rounds, clock)
            plain, peer = times[native.NAMES[GENERIC]], times.get("torch", float("nan"))
            for name, seconds in times.items():
                print(
                    f"| {title} | {dtype} | {name} | {1000 * seconds:.2f} | {work / seconds:.0f} {unit} "
                    f"| {plain / seconds:.1f} | {peer / seconds:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
