"""Every notebook runs."""

import sys
from pathlib import Path

import pytest

for name in "nbclient", "nbformat", "matplotlib", "diffusers", "transformers":
    pytest.importorskip(name)

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from notebooks.__main__ import execute

pytestmark = pytest.mark.torch

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    notebook = execute(path)
    figures = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert figures


def test_there_are_notebooks():
    assert NOTEBOOKS
