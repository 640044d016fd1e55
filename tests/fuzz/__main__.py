"""Fuzzes all entry points for some seconds, or one for a number of inputs."""

import argparse
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.runner import ENTRIES, run

parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
parser.add_argument("entries", nargs="*", metavar="ENTRY", help=f"one of {', '.join(ENTRIES)} (all)")
parser.add_argument("--seconds", type=float, default=180, help="for all entries together (180)")
parser.add_argument("--inputs", type=int, default=10**12, help="the most inputs of each entry")
parser.add_argument("--first", type=int, default=0, help="the number of the first input (0)")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument(
    "--folder",
    type=Path,
    default="/dev/shm/styleid-fuzz",
    help="the folder for files; if the process dies, its last input is there",
)
options = parser.parse_args()
chosen = options.entries or list(ENTRIES)
end = time.monotonic() + options.seconds
print("entry point              first    inputs  per second  accepted  kinds of refusal  slowest  memory", flush=True)
for i, name in enumerate(chosen):
    share = (end - time.monotonic()) / (len(chosen) - i)
    place = options.folder / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    done = run(name, place, options.first, options.inputs, share, options.seed)
    shutil.rmtree(place)
    print(
        f"{name:20} {options.first:9} {done.inputs:9} {done.inputs / done.seconds:11.0f} {done.accepted:9} "
        f"{done.refusals:17} {done.slowest:6.2f} s {done.grown >> 20:4} MB",
        flush=True,
    )
