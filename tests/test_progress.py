"""The progress of a run: bars of terminals and notebooks, functions, and what is neither."""

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import styleid
from styleid import progress

ROOT = Path(styleid.__file__).parents[1]


class NotebookBar:
    """As tqdm's bar of a notebook: a widget that begins full, since it knows of no end, and learns of one in `reset` only."""

    shown: ClassVar[list] = []

    def __init__(self, desc, unit):
        self.total, self.n, self.largest, self.disable, self.start_t = None, 0, 1, False, 17.0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def reset(self, total):
        self.total, self.n, self.largest, self.start_t = total, 0, total, 99.0

    def update(self, count):
        self.n += count
        self.shown.append((self.n / self.largest, self.start_t))


def test_a_notebooks_bar(monkeypatch):
    monkeypatch.setattr(progress, "bars", lambda: NotebookBar)
    NotebookBar.shown.clear()
    with progress.reporter(True, "inversion") as report:
        for step in (1, 2, 3, 4):
            report(step, 4)
    assert NotebookBar.shown == [(step / 4, 17.0) for step in (1, 2, 3, 4)]  # and the time since the beginning


def test_a_terminals_bar(capsys):
    with progress.reporter(True, "inversion") as report:
        for step in (1, 2, 3):
            report(step, 3)
    last = capsys.readouterr().err.split("\r")[-1]
    assert last.startswith("inversion: 100%") and "3/3" in last and "evaluation" in last


def test_bars_that_are_switched_off(monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    program = "from styleid.progress import reporter\nwith reporter(True, 'x') as report: report(1, 3)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize("given", [False, np.False_])
def test_no_progress(given):
    with progress.reporter(given, "x") as report:
        assert report is None


@pytest.mark.parametrize("given", [1, 0, "yes", [], np.array([True])])
def test_what_is_no_progress(given):
    with pytest.raises(TypeError, match="^progress: expected True, False or a function"), progress.reporter(given, "x"):
        pass


@pytest.mark.parametrize("looking", [True, False])
def test_a_bar_where_a_person_looks(monkeypatch, looking):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: looking, raising=False)
    with progress.reporter(None, "x") as report:
        assert (report is not None) == looking


def test_a_bar_in_a_notebook(monkeypatch):
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    with progress.reporter(None, "x") as report:
        assert report is not None


def test_importing_warns_of_nothing():
    """In a notebook's kernel without ipywidgets tqdm warns where its bars are imported."""
    program = """
import sys, types, warnings
warnings.simplefilter("always")  # tqdm catches its own where it is an error
ipython = types.ModuleType("IPython")
class Shell:
    config = {"IPKernelApp": {}}
ipython.get_ipython = Shell
sys.modules["IPython"] = ipython
sys.modules["ipywidgets"] = None
sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")  # by which tqdm knows a notebook
import styleid
from styleid.progress import reporter
from styleid.study.cluster import say_line
with reporter(True, "x") as report:
    report(1, 2)
say_line("a worker has joined")
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    assert done.stderr.endswith("styleid: a worker has joined\n")


def test_a_configuration_prints_in_a_few_lines(model):
    for text in repr(model.config), str(model.config), f"{model.config}":
        assert len(text) < 1500 and "alphas" in text and "..." in text
    assert isinstance(model.config, dict) and model.config["alphas"].shape == (1000,)
