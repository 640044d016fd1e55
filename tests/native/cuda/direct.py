"""The CUDA kernels on the CPU, as a device for tests/ops.py: their sources are compiled by the system's C++ compiler, and run
behind the functions of csrc/cuda that launch them, without a driver."""

import ctypes
import os
import subprocess
from ctypes import c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import ops

from native import building

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
KERNELS = building.CSRC / "cuda" / "kernels"
HOST_SOURCES = [
    *building.layer("core"),
    *(building.CSRC / "cuda" / f"{name}.c" for name in ("attention", "norm", "pointwise", "pack")),
    ops.NATIVE / "ops.c",
    HERE / "direct.c",
]
FLAGS = ("-O2", "-std=c++17", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
FIND_LIBRARY = ctypes.CFUNCTYPE(c_size_t, c_char_p, c_char_p)


@cache
def kernel_library(file, dtype, architecture, options, mutant=None):
    """Compiles csrc/cuda/kernels/FILE.cu, or the text of a mutant of it, for a dtype and an architecture. Returns the path."""
    name = f"{os.getpid()}-{len(os.listdir(building.FOLDER))}-{file}"
    source, target = KERNELS / f"{file}.cu", building.FOLDER / f"{name}.so"
    if mutant:
        source = building.FOLDER / f"{name}.cu"
        source.write_text(mutant)
    defines = [f"-DSID_T={ops.DTYPES.index(dtype)}", f"-DSID_ARCH={architecture}", *options.split()]
    compiler = os.environ.get("CXX", "c++").split()
    emulation = ["-DSID_EMULATED", f"-I{KERNELS}", "-include", str(HERE / "emu.h"), "-x", "c++"]
    subprocess.run([*compiler, *FLAGS, *defines, *emulation, str(source), "-o", str(target)], check=True)
    return str(target)


@cache
def host_library():
    library = ops.prepare(building.build("direct", HOST_SOURCES))
    library.direct_open.argtypes = [c_void_p, c_int, c_int, FIND_LIBRARY]
    library.direct_overflow.argtypes = [c_void_p]
    return library


class Device(ops.Device):
    """mutant is the name of a file of kernels and another text for it."""

    TOLERANCES = ops.Device.TOLERANCES | {"attention": (1e-5, 8e-3), "norm": (1e-5, 4e-3)}
    slow = True

    def __init__(self, dtype, architecture=80, mutant=(None, None)):
        self.architecture, self.mutant, self.paths = architecture, mutant, []
        self.find = FIND_LIBRARY(self.find_library)
        self.open_backend, self.dtype, self.label, self.handles = self.open, dtype, f"{dtype}-sm_{architecture}", {}

    @property
    def library(self):
        """The library of the host's code, which is built when it is first used."""
        return host_library()

    def handle(self, threads=2):
        """One backend serves any number of threads."""
        return super().handle(2)

    def open(self, handle, _threads):
        return self.library.direct_open(handle, ops.DTYPES.index(self.dtype), self.architecture, self.find)

    def find_library(self, file, options):
        file = file.decode()
        mutant = self.mutant[1] if self.mutant[0] == file else None
        path = kernel_library(file, self.dtype, self.architecture, options.decode(), mutant)
        self.paths.append(ctypes.create_string_buffer(path.encode()))
        return ctypes.addressof(self.paths[-1])

    def seed(self, number):
        """Selects other schedules for all kernels that were used."""
        for path in self.paths:
            ctypes.CDLL(path.value.decode()).sid_emu_seed(number)
