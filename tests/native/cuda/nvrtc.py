"""The real NVRTC of CUDA 12 and 13, where its wheel is installed or `make test-cuda` has fetched it: it needs neither a GPU nor
a driver."""

import ctypes
import os
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import ops

from .direct import KERNELS, ROOT

HEADERS = ("sid.cuh", "params.h", "attention.cuh")
LEAST_ARCHITECTURE = 75
WHEELS = Path(os.environ.get("STYLEID_NVIDIA_WHEELS", ROOT / ".nvidia"))


def path_of(major):
    """The path of a version's library, or None if it is not installed."""
    distribution = "nvidia-cuda-nvrtc" + ("-cu12" if major == 12 else "")
    try:
        found = [file.locate() for file in files(distribution) or ()]
    except PackageNotFoundError:
        found = []
    found += WHEELS.glob(f"cu{major}/nvidia/**/libnvrtc.so.*")
    return next((str(path) for path in found if path.name == f"libnvrtc.so.{major}"), None)


@cache
def library(major):
    path = path_of(major)
    return ctypes.CDLL(path) if path else None


@cache
def architectures():
    """Every (version, architecture) from sm_75 on."""
    pairs, count = [], c_int()
    for major in (13, 12):
        if library(major):
            library(major).nvrtcGetNumSupportedArchs(byref(count))
            numbers = (c_int * count.value)()
            library(major).nvrtcGetSupportedArchs(numbers)
            pairs += [(major, number) for number in numbers if number >= LEAST_ARCHITECTURE]
    return pairs


def strings(values):
    return (c_char_p * len(values))(*(value.encode() for value in values))


def compile_kernels(major, architecture, file, dtype, options=()):
    """The messages of NVRTC and its assembler; raises if they fail. The cubin is dropped."""
    nvrtc, program, size = library(major), c_void_p(), c_size_t()
    source = (KERNELS / f"{file}.cu").read_text()
    headers = strings([(KERNELS / name).read_text() for name in HEADERS])
    nvrtc.nvrtcCreateProgram(
        byref(program), source.encode(), f"{file}.cu".encode(), len(HEADERS), headers, strings(HEADERS)
    )
    arguments = [
        f"--gpu-architecture=sm_{architecture}",
        "-std=c++17",
        f"-DSID_T={ops.DTYPES.index(dtype)}",
        f"-DSID_ARCH={architecture}",
    ]
    arguments = strings([*arguments, "--ptxas-options=-v", *options])
    failed = nvrtc.nvrtcCompileProgram(program, len(arguments), arguments)
    nvrtc.nvrtcGetProgramLogSize(program, byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(byref(program))
    if failed:
        raise RuntimeError(f"{file}, sm_{architecture}: {log.value.decode()}")
    return log.value.decode()
