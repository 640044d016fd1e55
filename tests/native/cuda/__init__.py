"""Fakes of NVIDIA's driver and libraries, on which the CUDA backend runs on machines without a GPU."""

import os
import subprocess
import tempfile
import zlib
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CSRC = ROOT / "csrc"
LIBRARIES = ("libcuda.so.1", "libnvrtc.so.13", "libcublasLt.so.13", "libcudnn.so.9")
FLAGS = [
    "-std=c11",
    "-O3",
    "-march=native",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-D_GNU_SOURCE",
]


def build(folder):
    """Builds one library with the functions of all four that are used, and links it under their names."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libfake.so"
    emulation = f'-DSID_EMULATION="{HERE / "emu.h"}"'
    sources = sorted(map(str, HERE.glob("fake_*.c")))
    compiler = os.environ.get("CC", "cc").split()
    subprocess.run(
        [
            *compiler,
            *FLAGS,
            f"-I{CSRC}",
            f"-I{HERE}",
            emulation,
            *sources,
            "-o",
            str(library),
            "-lpthread",
            "-ldl",
            "-lm",
        ],
        check=True,
    )
    for name in LIBRARIES:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(library.name)
    return folder


_folder = tempfile.TemporaryDirectory(prefix="styleid-fake-")


@cache
def folder():
    """The fakes, built once for this process."""
    return build(_folder.name)


def paths():
    """The paths of the four, separated by commas."""
    return ",".join(str(folder() / name) for name in LIBRARIES)


def environment(**changes):
    """Variables that make styleid use the fakes and keep kernels in the project's build folder. Each state of the emulation
    has a folder of its own, because the kernels' names do not depend on it."""
    version = zlib.crc32((HERE / "emu.h").read_bytes() + (HERE / "fake_nvrtc.c").read_bytes())
    cache = ROOT / "build" / f"kernels-{version:08x}"
    return {"STYLEID_CUDA_LIBRARIES": str(folder()), "XDG_CACHE_HOME": str(cache), **changes}
