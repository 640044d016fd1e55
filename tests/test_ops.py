"""The table of ops.py on every instruction set that this CPU has, and on AMX with its instructions emulated. Each runs in a
process of its own, because oneDNN is held to its level there; and on the CUDA backend. `make check` has the levels that models use."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import ops
import pytest
from native import building, cuda

from styleid import _core

BEST, USED = _core.info()["isas"][-1], _core.info()["isa"]
LEVELS = [level for level in ops.LEVELS if ops.LEVELS.index(level) <= ops.LEVELS.index(BEST)]
DEVICES = [(level, "float32") for level in LEVELS[:3]]
DEVICES += [(level, "bfloat16") for level in LEVELS[2:]]  # below AVX-512 there is none
# The level that models compute with in a dtype: the highest; `make check` leaves out the others.
OF_MODELS = {dtype: level for level, dtype in DEVICES if ops.LEVELS.index(level) <= ops.LEVELS.index(USED)}
if BEST == "avx512_bf16":
    DEVICES.append(("amx", "bfloat16"))


@cache
def results(level, dtype):
    command = [sys.executable, "-W", "ignore", ops.__file__, "cpu", level, dtype]
    environment = os.environ | {"STYLEID_NATIVE": str(building.FOLDER)}
    folder = Path(ops.__file__).parent
    return answers(command, environment, folder)


@cache
def results_on_fakes(dtype):
    command = [sys.executable, "-W", "ignore", ops.__file__, "cuda", cuda.paths(), dtype]
    return answers(
        command, os.environ | cuda.environment(STYLEID_NATIVE=str(building.FOLDER)), Path(ops.__file__).parent
    )


def answers(command, environment, folder):
    """({case: error}, what the process complained of)"""
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=environment)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["case"]: line["error"] for line in lines}, done.stderr[-2000:]


def parameter(level, dtype):
    return pytest.param(
        (level, dtype), id=f"{level} {dtype}", marks=[pytest.mark.long] if OF_MODELS.get(dtype) != level else []
    )


@pytest.mark.parametrize("case", ops.CASES)
@pytest.mark.parametrize("device", [parameter(*device) for device in DEVICES])
def test_op(device, case):
    found, errors = results(*device)
    assert found.get(case, f"the process ended: {errors}") is None


@pytest.mark.long
@pytest.mark.parametrize("case", ops.CASES)
@pytest.mark.parametrize("dtype", ops.DTYPES)
def test_op_of_the_cuda_backend(dtype, case):
    """On the fakes of NVIDIA's libraries, by the kernels' own sources."""
    found, errors = results_on_fakes(dtype)
    assert found.get(case, f"the process ended: {errors}") is None
