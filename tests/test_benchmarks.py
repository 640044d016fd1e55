"""The benchmarks run, and write what they promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


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
