"""The benchmarks run, and write what they promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from native import cuda


@pytest.mark.long
def test_parts_without_peers(shared_folder, tmp_path):
    command = [sys.executable, "-m", "benchmarks", "vae", "load", "transfer", "--programs", "styleid", "--steps", "2"]
    command += ["--dtype", "float32", "--repeats", "2", "--model", shared_folder, "-o", tmp_path]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True, stdout=subprocess.DEVNULL)
    report = json.loads((tmp_path / "results.json").read_text())
    assert {"CPU", "instruction set", "oneDNN", "styleid"} <= report["machine"].keys()
    runs = {(s["part"], row["label"]): row["runs"]["styleid"] for s in report["sections"] for row in s["rows"]}
    assert len(runs) == 6
    assert len(runs["vae", "decode"]) == 2 and len(runs["transfer", "whole"]) == 1
    assert all(run["seconds"] > 0 and run["megabytes"] > 10 for answers in runs.values() for run in answers)
    assert "| decode | " in (tmp_path / "results.md").read_text()


@pytest.mark.long
def test_what_a_gpu_is_to_answer(shared_folder, tmp_path):
    """On the fakes: every part ends and has found something."""
    parts = ["machine", "kernels", "networks", "unet", "vae", "transfers", "sanitizer"]
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        *parts,
        "--minutes",
        "60",
        "--out",
        tmp_path,
        "--model",
        shared_folder,
    ]
    subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | cuda.environment(),
    )
    results = {result["part"]: result for result in json.loads((tmp_path / "results.json").read_text())}
    assert list(results) == parts and all(result["end"] == 0 and result["rows"] for result in results.values())
    found = {row["what"]: row["found"] for result in results.values() for row in result["rows"]}
    assert float(found["UNet in float32, relative error"]) < 1e-5 and found["UNet in float16, same bytes again"]
    assert {"recorded, batch of 2", "decode", "transfer of 50 steps in float16, second"} <= found.keys()
    assert "## unet: " in (tmp_path / "results.md").read_text()
