"""Kills a sweep with SIGKILL at random moments, and looks after each time whether anything was lost or half-written.

    python tests/kill_sweep.py --kills 200 --seed 0

The sweep runs in a forked child. After every kill, in its folder: each line of the manifest but a last unfinished one is a
result whose file has the written hash and can be read; nothing that was finished is gone or has changed; what has a final name
(images, inversions, tables, contact sheets) is whole. A sweep that comes to its end has the bytes of one that was never
killed, and the next one begins in an empty folder.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

import styleid
from styleid.cli.main import main as styleid_command

RESULTS = 2 * 2 * 4  # contents, styles, settings
LONGEST = 0.5  # seconds from the start of a sweep to the moment it is killed, at most; a whole one takes about as long


def run_sweep(images, folder, model):
    """A whole sweep of the command line, or what is left of one. model: its folder."""
    status = styleid_command(
        ["sweep", str(images / "contents"), str(images / "styles"), "-o", str(folder), "--gamma", "0.3,0.75"]
        + [
            "--temperature",
            "1,1.5",
            "--steps",
            "2",
            "--model",
            str(model),
            "--dtype",
            "float32",
            "--threads",
            "1",
            "--quiet",
        ]
    )
    assert status == 0


def write_images(root, size=16):
    for seed, name in enumerate(("contents/a.png", "contents/b.png", "styles/c.png", "styles/d.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
        styleid.save_image(root / name, image)


def run_and_kill(images, folder, model, delay):
    """Whether the sweep came to its end before it was killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run_sweep(images, folder, model)
            status = 0
        except BaseException:  # noqa: BLE001  the parent shall see it
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "a sweep that continued a killed one failed"
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status == 0


def finished(folder):
    """{key: hash of its file} of the manifest's whole lines; everything that has a final name is looked at."""
    manifest = folder / "manifest.jsonl"
    rows = {}
    lines = manifest.read_bytes().split(b"\n") if manifest.exists() else [b""]
    for place, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError:
            # What was being written when a process was killed: the last line, or one that a later process left as it was.
            assert not line or not line.endswith(b"}"), f"line {place} is damaged"
            continue
        rows[row["key"]] = row["sha256"]
        stored = (folder / row["output"]).read_bytes()
        assert hashlib.sha256(stored).hexdigest() == row["sha256"], f"{row['output']} is not what was written"
    for path in folder.rglob("*"):
        if path.name.startswith("."):
            continue  # what `write_whole` and `locked` of a killed process left, which nobody takes for anything else
        if path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".safetensors":
            styleid.Inversion.load(path)  # checks every byte
        elif path.suffix == ".csv":
            assert path.read_text().count("\n") == RESULTS + 1
    return rows


def results(folder):
    """{file: its bytes} of the images of a finished sweep."""
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def kill_often(root, model, kills, seed=0):
    """How many sweeps were killed and how many came to an end, how much work was left over by kills, files left behind."""
    random, images = Random(seed), root / "images"
    write_images(images)
    run_sweep(images, root / "undisturbed", model)
    expected = results(root / "undisturbed")
    folder, before = root / "killed", {}
    counts = {"killed": 0, "finished": 0, "while half done": 0, "files left behind": 0}
    while counts["killed"] < kills:
        ended = run_and_kill(images, folder, model, random.uniform(0, LONGEST))
        folder.mkdir(exist_ok=True)
        rows = finished(folder)
        assert before.items() <= rows.items(), "a finished result is lost"
        counts["finished" if ended else "killed"] += 1
        counts["while half done"] += not ended and 0 < len(rows) < RESULTS
        before = rows
        if ended:
            assert len(rows) == RESULTS and results(folder) == expected
            counts["files left behind"] += sum(path.name.startswith(".") for path in folder.rglob("*"))
            shutil.rmtree(folder)
            before = {}
    run_sweep(images, folder, model)
    assert results(folder) == expected
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import configuration, write_folder

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_folder(root / "model", configuration())
        print(kill_often(root, root / "model", options.kills, options.seed))


if __name__ == "__main__":
    main()
