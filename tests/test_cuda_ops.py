"""The table of ops.py on the CUDA backend, with the fakes of the driver and of NVIDIA's libraries in tests/native/cuda.

`python tests/test_cuda_ops.py DTYPE` writes a JSON line {"case", "error"} for each case: a process of its own, which may stop
where host code touches the device's memory."""

import json
import os
import subprocess
import sys
from ctypes import c_char_p, c_int, c_void_p
from functools import cache
from pathlib import Path

import ops
import pytest
from native import building, cuda


class Device(ops.Device):
    """Attention's power of 2 is right to 2 units in the last place. Biases are of the backend's dtype, and activation, factor
    and residual follow a product that was rounded to it: two roundings, where PyTorch has three."""

    TOLERANCES = ops.Device.TOLERANCES | {"attention": (1e-5, 8e-3), "norm": (1e-5, 4e-3), "product": (4e-6, 8e-3)}
    slow = True


def device(dtype):
    sources = building.layer("core", "cuda") + [ops.NATIVE / "ops.c", cuda.HERE / "ops.c"]
    loaded = ops.prepare(building.build("cuda_ops", sources))
    loaded.ops_cuda_open.argtypes = [c_void_p, c_void_p, c_int, c_int]
    folder = Path(os.environ["STYLEID_CUDA_LIBRARIES"])
    paths = (c_char_p * 4)(*(str(folder / name).encode() for name in cuda.LIBRARIES))

    def open_backend(handle, threads):
        return loaded.ops_cuda_open(handle, paths, ops.DTYPES.index(dtype), threads)

    return Device(loaded, open_backend, dtype)


@cache
def results(dtype):
    command = [sys.executable, "-W", "ignore", __file__, dtype]
    environment = os.environ | cuda.environment(STYLEID_NATIVE=str(building.FOLDER))
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["case"]: line["error"] for line in lines}, done.stderr[-2000:]


@pytest.mark.long
@pytest.mark.parametrize("case", ops.CASES)
@pytest.mark.parametrize("dtype", ops.DTYPES)
def test_op(dtype, case):
    found, errors = results(dtype)
    assert found.get(case, f"the process ended: {errors}") is None


if __name__ == "__main__":
    for name, error in ops.run(device(sys.argv[1]), *sys.argv[2:3]):
        print(json.dumps({"case": name, "error": error}), flush=True)
