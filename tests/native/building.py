"""Builds csrc's layers with a C shim into a library of its own, which is called by ctypes."""

import ctypes
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import files
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"
FLAGS = ["-std=c11", "-O3", "-fopenmp", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
_temporary = None if "STYLEID_NATIVE" in os.environ else tempfile.TemporaryDirectory(prefix="styleid-native-")
# The folder of what is built. STYLEID_NATIVE names that of another process, whose objects are used again.
FOLDER = Path(_temporary.name if _temporary else os.environ["STYLEID_NATIVE"])


def compile_c(*arguments):
    subprocess.run([*os.environ.get("CC", "cc").split(), *map(str, arguments)], check=True)


def onednn():
    """The (headers, library) that setup.py builds with."""
    root = os.environ.get("ONEDNN_ROOT")
    if root:
        return Path(root, "include"), next(iter(sorted(Path(root).resolve().glob("lib*/libdnnl.so"))))

    def find(distribution, end):
        found = next(file for file in files(distribution) if file.as_posix().endswith(end))
        return Path(found.locate()).resolve()

    header = find("onednn-devel-cpu-gomp", "include/oneapi/dnnl/dnnl_version.h")
    return header.parents[2], find("onednn-cpu-gomp", "/libdnnl.so.3")


@cache
def _object(source, definitions):
    target = FOLDER / f"{source.parent.name}-{source.stem}-{len(definitions)}.o"
    includes = [f"-I{CSRC}", f"-I{onednn()[0]}"]
    if not target.exists():
        compile_c(*FLAGS, *includes, *definitions, "-c", source, "-o", target)
    return target


def build(name, sources, emulate_amx=False):
    """The library of these sources. With emulate_amx, plain C takes the place of AMX's tile instructions."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        flags = [("-DSID_AMX_EMULATED",) if emulate_amx and source.stem == "amx" else () for source in sources]
        objects = list(pool.map(_object, sources, flags))
    path, dnnl = FOLDER / f"{name}{'_emulated' * emulate_amx}.so", onednn()[1]
    if not path.exists():
        compile_c("-shared", "-fopenmp", *objects, "-o", path, dnnl, f"-Wl,-rpath,{dnnl.parent}", "-lm")
    return ctypes.CDLL(str(path))


def layer(*names):
    """The sources of some layers of csrc."""
    return [source for name in names for source in sorted(CSRC.joinpath(name).glob("*.c"))]
