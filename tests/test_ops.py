"""The table of ops.py on every instruction set that this CPU has, and on AMX with its instructions emulated. Each runs in a
process of its own, because oneDNN is held to its level there."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import ops
import pytest
from native import building

from styleid import _core

BEST = _core.info()["isas"][-1]
LEVELS = [level for level in ops.LEVELS if ops.LEVELS.index(level) <= ops.LEVELS.index(BEST)]
DEVICES = [(level, "float32") for level in LEVELS[:3]]
DEVICES += [(level, "bfloat16") for level in LEVELS[2:]]  # below AVX-512 there is none
if BEST == "avx512_bf16":
    DEVICES.append(("amx", "bfloat16"))


@cache
def results(level, dtype):
    command = [sys.executable, "-W", "ignore", ops.__file__, "cpu", level, dtype]
    environment = os.environ | {"STYLEID_NATIVE": str(building.FOLDER)}
    folder = Path(ops.__file__).parent
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=environment)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["case"]: line["error"] for line in lines}, done.stderr[-2000:]


@pytest.mark.parametrize("case", ops.CASES)
@pytest.mark.parametrize("device", DEVICES, ids=" ".join)
def test_op(device, case):
    found, errors = results(*device)
    assert found.get(case, f"the process ended: {errors}") is None
