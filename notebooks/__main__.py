"""python -m notebooks [PATH ...]: runs notebooks, all unless some are named, and keeps their outputs in them."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
CELL_SECONDS = 300  # a cell that takes longer hangs


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", record_timing=False, coalesce_streams=True
    )
    client.execute(cwd=str(FOLDER))
    for cell in notebook.cells:  # warnings and progress bars are of this machine, not of the notebook
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main(names: Sequence[str]) -> None:
    """Runs them and writes each, whole or not at all."""
    for path in map(Path, names) if names else sorted(FOLDER.glob("*.ipynb")):
        start = time.monotonic()
        notebook = execute(path)
        temporary = path.with_suffix(".tmp")
        nbformat.write(notebook, temporary)
        os.replace(temporary, path)
        print(f"{path.name} {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
