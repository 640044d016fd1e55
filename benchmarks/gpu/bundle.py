"""Gathers in .gpu what a machine without a network needs beside the tree: python -m benchmarks.gpu.bundle

There: ONEDNN_ROOT=.gpu/onednn python setup.py build_ext --inplace, after xz -d .gpu/onednn/lib/*.xz and, in that folder,
ln -s libdnnl.so.3 libdnnl.so; pip install --no-index --no-deps .gpu/*.whl, where diffusers is not there; then
python -m benchmarks.gpu. PyTorch and NVIDIA's libraries are what such a machine has."""

import lzma
import shutil
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".gpu"
LARGEST = 60e6  # bytes, with the tree


def located(distribution, text):
    return [Path(file.locate()) for file in files(distribution) or [] if text in file.as_posix()]


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "onednn/lib").mkdir(parents=True)
    library = next(path for path in located("onednn-cpu-gomp", "/libdnnl.so.3") if path.is_file())
    stripped = FOLDER / "onednn/lib/libdnnl.so.3"
    subprocess.run(["strip", "--strip-unneeded", "-o", str(stripped), str(library.resolve())], check=True)
    Path(f"{stripped}.xz").write_bytes(lzma.compress(stripped.read_bytes(), preset=9))
    stripped.unlink()
    for header in located("onednn-devel-cpu-gomp", "/include/"):
        target = FOLDER / "onednn/include" / header.as_posix().rpartition("/include/")[2]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(header, target)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(FOLDER), "diffusers"], check=True
    )
    tree = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [ROOT / name for name in tree.split("\0") if name] + [path for path in FOLDER.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in paths)
    print(f"{FOLDER}: with the tree {total / 1e6:.1f} MB")
    return int(total > LARGEST)


if __name__ == "__main__":
    sys.exit(main())
