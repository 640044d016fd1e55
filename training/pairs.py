"""The pairs that results are measured on: chosen once, never trained on."""

import csv
from pathlib import Path

import numpy as np

from training import images

CHOSEN = Path(__file__).with_name("pairs.csv")


def read(table: Path, folder: Path) -> list[tuple[Path, Path]]:
    """The files of the pairs (columns content, style: names without their endings), wherever they are in the folder."""
    files = {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in images.SUFFIXES}
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = sorted({name for row in rows for name in row.values() if name not in files})
    if missing:
        raise SystemExit(f"{folder} has no image called {', '.join(missing)}")
    return [(files[row["content"]], files[row["style"]]) for row in rows]


def squares(pair: tuple[Path, Path], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Content and style as centred squares."""
    content, style = (images.centre_square(images.read_image(path), side) for path in pair)
    return content, style
