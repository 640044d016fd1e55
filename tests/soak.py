"""Thousands of transfers in one process: of several sizes, types and numbers of threads, with runs that are cancelled and
runs that fail between them, and with eight threads on one model. Memory stays, and so does every byte.

`python tests/soak.py` makes 2,000; tests/test_soak.py some of them.
"""

import argparse
import gc
import sys
import tempfile
import threading
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from conftest import configuration, random_image, write_folder

import styleid
from styleid import _core

SIZES = [(16, 16), (16, 32), (32, 16), (24, 40), (33, 17), (48, 48), (5, 64)]
STEPS = 3
THREADS = 8
WRONG = [
    {"layers": [99]}, {"steps": 1}, {"schedule": "other"}, {"gamma": float("nan")}, {"temperature": 0.0},
]  # fmt: skip


class Report(NamedTuple):
    done: int
    cancelled: int
    refused: int
    resident: list[int]  # bytes, after each tenth of the runs


class Cancelled(Exception):
    pass


def resident():
    """The process's own bytes in memory, files that it shares not counted."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


class Soak:
    def __init__(self, folder, seed=0):
        write_folder(folder, configuration())
        self.folder, self.random, self.expected = folder, Random(seed), {}
        self.dtypes = ["float32"] if _core.info()["isa"] in ("generic", "avx2") else ["float32", "bfloat16"]
        self.models = {(dtype, threads): self.load(dtype, threads) for dtype in self.dtypes for threads in (1, 2)}
        self.cancelled = self.refused = 0

    def load(self, dtype, threads):
        """A model that has seen all sizes, alone and in batches of two: what it keeps for them is there."""
        model = styleid.load_model(self.folder, dtype=dtype, threads=threads)
        for size, other in zip(SIZES, SIZES[1:] + SIZES[:1]):
            self.check(model, (size, size))
            self.check(model, (size, other))
        return model

    def transfer(self, model, pair, **options):
        return styleid.transfer(
            random_image(1, *pair[0]), random_image(2, *pair[1]), model, **({"steps": STEPS} | options)
        )

    def check(self, model, pair):
        """The bytes that this pair had at first, with any number of threads."""
        found = self.transfer(model, pair).tobytes()
        assert self.expected.setdefault((model.dtype, pair), found) == found, f"other bytes: {model.dtype}, {pair}"

    def spoil(self, model, pair):
        """A run that is cancelled at one of its steps, or refused."""
        if self.random.random() < 0.5:
            last = self.random.randrange(2 * STEPS)

            def cancel(step, steps):
                if step >= last:
                    raise Cancelled

            try:
                self.transfer(model, pair, progress=cancel)
            except Cancelled:
                self.cancelled += 1
        else:
            try:
                self.transfer(model, pair, **self.random.choice(WRONG))
            except (ValueError, TypeError):
                self.refused += 1

    def together(self, count):
        """So many transfers by eight threads, all on one model."""
        model, errors = self.random.choice(list(self.models.values())), []
        pairs = [(self.random.choice(SIZES), self.random.choice(SIZES)) for _ in range(count)]

        def work(own):
            try:
                for pair in own:
                    self.check(model, pair)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(pairs[i::THREADS],)) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def some(self, count):
        """So many transfers, a third of them with a run before it that comes to nothing; one model is loaded anew."""
        key = self.random.choice(list(self.models))
        self.models[key] = self.load(*key)
        for _ in range(count):
            model, pair = (
                self.random.choice(list(self.models.values())),
                (self.random.choice(SIZES), self.random.choice(SIZES)),
            )
            if self.random.random() < 1 / 3:
                self.spoil(model, pair)
            self.check(model, pair)


def run(folder, count, seed=0, show=lambda *_: None):
    """Of each tenth of the transfers a fourth is made by threads."""
    soak, sizes, tenth = Soak(folder, seed), [], max(count // 10, 2 * THREADS)
    for part in range(10):
        soak.some(tenth * 3 // 4)
        soak.together(tenth - tenth * 3 // 4)
        sizes.append(resident())
        show(part, sizes[-1])
    return Report(10 * tenth, soak.cancelled, soak.refused, sizes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        report = run(
            Path(place) / "model", options.count, options.seed,
            lambda part, size: print(f"{10 * part + 10:3} %  {size / 1e6:7.1f} MB", flush=True),
        )  # fmt: skip
    print(
        f"{report.done} transfers, {report.cancelled} cancelled, {report.refused} refused, {time.monotonic() - start:.0f} s"
    )
