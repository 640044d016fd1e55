"""The device and the type that a model computes with, from the arguments `device` and `dtype`."""

from __future__ import annotations

from typing import NamedTuple

from styleid import _core, _cuda
from styleid.memory import check_weights, item_size

DTYPES = ("auto", *_core.DTYPES)
CPU = -1


class Placement(NamedTuple):
    device: int  # a GPU's number, or CPU
    dtype: str


def place(device: str, dtype: str, numbers: int = 0) -> Placement:
    """The device and the type for a model of so many weights.

    Raises:
        TypeError, ValueError: not a device or type, or one that this machine does not have
        MemoryError: the weights do not fit
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {list(DTYPES)}, got {dtype!r}")
    on_gpu = "float16" if dtype == "auto" else dtype
    choice = _cuda.choose(device, numbers * item_size(on_gpu), on_gpu)
    if choice.device is not None:
        return Placement(choice.device, on_gpu)
    if dtype == "float16":
        raise ValueError(f"dtype: float16 is computed on GPUs only; use float32 or bfloat16 ({choice.reason})")
    native = "bfloat16" if _core.info()["native_bfloat16"] else "float32"
    on_cpu = native if dtype == "auto" else dtype
    check_weights(numbers, on_cpu)
    return Placement(CPU, on_cpu)
