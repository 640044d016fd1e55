"""Finds NVIDIA's driver and libraries, and the GPU that a model is loaded on. Nothing is opened before it is needed.

The libraries come from the first of these places that has all of them: the folder that the environment variable
STYLEID_CUDA_LIBRARIES names; the wheels of the extras styleid[cuda] and styleid[cuda12]; the system's. A library that the
process has loaded already, as torch does, is preferred.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

from styleid import _core

ENVIRONMENT = "STYLEID_CUDA_LIBRARIES"
DRIVER = "libcuda.so.1"
# Of each major version of CUDA: the libraries' names, and the distributions that bring them.
LIBRARIES = {
    13: {
        "libnvrtc.so.13": "nvidia-cuda-nvrtc",
        "libcublasLt.so.13": "nvidia-cublas",
        "libcudnn.so.9": "nvidia-cudnn-cu13",
    },
    12: {
        "libnvrtc.so.12": "nvidia-cuda-nvrtc-cu12",
        "libcublasLt.so.12": "nvidia-cublas-cu12",
        "libcudnn.so.9": "nvidia-cudnn-cu12",
    },
}
LEAST, BFLOAT16 = 75, 80  # architectures: for a model at all, and in bfloat16
SPARE = 1 << 30  # bytes beside a model's weights: libraries, scratch, the features of a small transfer


class Choice(NamedTuple):
    """The device that a model is loaded on."""

    device: int | None  # a GPU's number; None: the CPU
    reason: str


def open_driver() -> int:
    """The latest CUDA that the driver supports, as 1000 * major + 10 * minor. Raises ValueError where there is no driver."""
    folder = os.environ.get(ENVIRONMENT)
    return _core.cuda_driver(str(Path(folder, DRIVER)) if folder else DRIVER)


def open_libraries() -> dict[str, str]:
    """Opens driver and libraries, and returns their versions by name. Raises a ValueError that says what to install or
    update."""
    driver = open_driver()
    problem = None
    for paths in _candidates(driver):
        try:
            return _core.cuda_libraries(*paths)
        except ValueError as error:
            if "cannot open" not in str(error):  # there, and not usable: of more interest than what is not there
                problem = problem or error
    extra = "cuda" if driver >= 13000 else "cuda12"
    raise problem or ValueError(
        f"the CUDA libraries are not installed (NVRTC, cuBLASLt, cuDNN): pip install 'styleid[{extra}]'"
    )


def _candidates(driver: int) -> list[list[str]]:
    """The paths of the three libraries, the best first: those of the latest CUDA that the driver supports."""
    majors = sorted(LIBRARIES, key=lambda major: (major * 1000 <= driver, major), reverse=True)
    if folder := os.environ.get(ENVIRONMENT):
        return [[str(Path(folder, name)) for name in LIBRARIES[major]] for major in majors]
    wheels = [paths for major in majors if (paths := _wheels(major))]
    return [*wheels, *(list(LIBRARIES[major]) for major in majors)]


def _wheels(major: int) -> list[str]:
    """The libraries in the wheels of a CUDA version; none where one is missing."""
    paths = []
    for name, distribution in LIBRARIES[major].items():
        try:
            found = next((file for file in files(distribution) or [] if file.name == name), None)
        except PackageNotFoundError:
            found = None
        if found is None:
            return []
        paths.append(str(found.locate()))
    return paths


def parse(device: str) -> int | str:
    """A GPU's number, "cpu" or "auto". Raises ValueError or TypeError for anything else."""
    if not isinstance(device, str):
        raise TypeError(f"device: expected a string, got {type(device).__name__}")
    if device in ("auto", "cpu"):
        return device
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
    if match is None:
        raise ValueError(f"device: expected 'auto', 'cpu', 'cuda' or such as 'cuda:1', got {device!r}")
    return int(match[1] or 0)


def choose(device: str, weights: int, dtype: str = "float16") -> Choice:
    """The device for a model whose weights take that many bytes, to compute in this type. For "auto" it is the first GPU, if
    that can be used, else the CPU.

    Raises:
        ValueError: a GPU was asked for, and cannot be used; says what to install or change
        MemoryError: it has too little memory
    """
    wanted = parse(device)
    if wanted == "cpu":
        return Choice(None, "it was asked for")
    if wanted == "auto":
        return automatic(weights, dtype)
    assert isinstance(wanted, int)
    try:
        open_libraries()
    except ValueError as error:
        raise ValueError(f"device: {device}: {error}") from None
    if short := _too_small(wanted, weights):
        raise MemoryError(f"{short}; use device='cpu'")
    return Choice(wanted, "it was asked for")


def automatic(weights: int = 0, dtype: str = "float16") -> Choice:
    """The device that "auto" takes, and the reason."""
    try:
        open_libraries()
        devices = _core.cuda_devices()
    except ValueError as error:
        return Choice(None, str(error))
    if not devices:
        return Choice(None, "this machine has no NVIDIA GPU")
    architecture, least = devices[0]["architecture"], BFLOAT16 if dtype == "bfloat16" else LEAST
    if architecture < least:
        return Choice(
            None, f"{describe(0)} has compute capability {architecture / 10:.1f}, and {least / 10:.1f} is needed"
        )
    short = _too_small(0, weights)
    return Choice(None, short) if short else Choice(0, f"{describe(0)} can be used")


def describe(device: int) -> str:
    """A device as errors name it: cuda:0 (Tesla T4)."""
    return f"cuda:{device} ({_core.cuda_devices()[device]['name']})"


def _too_small(device: int, weights: int) -> str:
    """Says what is wrong where the weights do not fit into the free memory; says nothing where they fit."""
    devices = _core.cuda_devices()
    if device >= len(devices):
        raise ValueError(f"device: cuda:{device}: this machine has {len(devices)}")
    free, total = _core.cuda_free_memory(device), devices[device]["total"]
    if weights + SPARE <= free:
        return ""
    return f"{describe(device)}: the model takes {(weights + SPARE) / 1e9:.2f} GB, {free / 1e9:.2f} of {total / 1e9:.1f} GB are free"


def report() -> list[str]:
    """The text of `styleid info` about GPUs: driver, libraries, devices, and what "auto" takes and why."""
    lines = []
    try:
        driver = open_driver()
        lines.append(f"NVIDIA driver: for CUDA {driver // 1000}.{driver % 1000 // 10}")
        lines += [_describe_fully(device) for device in range(len(_core.cuda_devices()))]
        lines.append("CUDA libraries: " + ", ".join(f"{name} {version}" for name, version in open_libraries().items()))
    except ValueError:
        pass  # it is the reason below
    choice = automatic()
    taken = "the CPU" if choice.device is None else f"cuda:{choice.device}"
    return [*lines, f'device "auto": {taken} ({choice.reason})']


def _describe_fully(device: int) -> str:
    facts = _core.cuda_devices()[device]
    memory = f"{_core.cuda_free_memory(device) / 1e9:.2f} of {facts['total'] / 1e9:.1f} GB are free"
    return f"cuda:{device}: {facts['name']}, compute capability {facts['architecture'] / 10:.1f}, {memory}"
