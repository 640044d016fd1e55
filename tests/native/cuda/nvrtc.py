"""The real NVRTC, where its wheel is installed (nvidia-cuda-nvrtc): it needs neither a GPU nor a driver."""

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from importlib.metadata import PackageNotFoundError, files

from .direct import KERNELS

HEADERS = ("sid.cuh", "params.h", "attention.cuh")
LEAST_ARCHITECTURE = 75


@cache
def library():
    for distribution in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        try:
            for file in files(distribution) or ():
                if file.name.startswith("libnvrtc.so."):
                    return ctypes.CDLL(str(file.locate()))
        except PackageNotFoundError:
            continue
    return None


def found():
    return library() is not None


def architectures():
    """From sm_75 on; none without NVRTC."""
    if not found():
        return []
    count = c_int()
    library().nvrtcGetNumSupportedArchs(byref(count))
    numbers = (c_int * count.value)()
    library().nvrtcGetSupportedArchs(numbers)
    return [number for number in numbers if number >= LEAST_ARCHITECTURE]


def strings(values):
    return (c_char_p * len(values))(*(value.encode() for value in values))


def compile_kernels(architecture, file, dtype, options=()):
    """What NVRTC and its assembler say; raises where they fail. The cubin is dropped."""
    program, size = c_void_p(), c_size_t()
    source = (KERNELS / f"{file}.cu").read_text()
    headers = strings([(KERNELS / name).read_text() for name in HEADERS])
    library().nvrtcCreateProgram(
        byref(program), source.encode(), f"{file}.cu".encode(), len(HEADERS), headers, strings(HEADERS)
    )
    arguments = [
        f"--gpu-architecture=sm_{architecture}",
        "-std=c++17",
        f"-DSID_T={dtype}",
        f"-DSID_ARCH={architecture}",
    ]
    arguments = strings([*arguments, "--ptxas-options=-v", *options])
    failed = library().nvrtcCompileProgram(program, len(arguments), arguments)
    library().nvrtcGetProgramLogSize(program, byref(size))
    log = ctypes.create_string_buffer(size.value)
    library().nvrtcGetProgramLog(program, log)
    library().nvrtcDestroyProgram(byref(program))
    if failed:
        raise RuntimeError(f"{file}, sm_{architecture}: {log.value.decode()}")
    return log.value.decode()
