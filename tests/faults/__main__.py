"""Makes every call of every run fail, or one of every so many."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.runs import RUNS, attempt, count, faults

parser = argparse.ArgumentParser(prog="faults", description=__doc__)
parser.add_argument("runs", nargs="*", metavar="RUN", help=f"one of {', '.join(RUNS)} (all)")
parser.add_argument("--every", type=int, default=1, help="try one of every so many calls (1)")
parser.add_argument("--first", type=int, default=0, help="the first call to try (0)")
options = parser.parse_args()
print("run             calls  places  tried  seconds", flush=True)
for name in options.runs or RUNS:
    places, start = count(name), time.monotonic()
    total = faults().calls
    numbers = range(options.first, total, options.every)
    for number in numbers:
        attempt(name, number)
    print(f"{name:12} {total:8} {len(places):7} {len(numbers):6} {time.monotonic() - start:8.0f}", flush=True)
