"""Contact sheets: a grid of contents by styles for every combination of settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from styleid.files.disk import write_whole
from styleid.images import load_image
from styleid.study.inputs import Source, printable
from styleid.study.plan import Row, file_label

LINE = 14  # pixels of a line of text
ROWS, COLUMNS = 40, 40  # the most of one sheet, which so has some thousand pixels a side


def write_sheets(
    folder: Path, contents: Sequence[Source], styles: Sequence[Source], results: Mapping[str, Sequence[Row]], size: int
) -> list[Path]:
    """Writes sheets and returns their paths: sheet.png, or sheet_gamma0.3.png and so on, in parts where they are large.

    Args:
        folder: the folder of the results, which gets the sheets
        contents, styles: the images beside the rows and above the columns
        results: for every label of settings its rows, of some or all pairs
        size: of a thumbnail, in pixels
    """
    paths = []
    for label, rows in results.items():
        outputs = {(row["content"], row["style"]): folder / row["output"] for row in rows}
        blocks = [
            (contents[top : top + ROWS], styles[left : left + COLUMNS])
            for top in range(0, len(contents), ROWS)
            for left in range(0, len(styles), COLUMNS)
        ]
        for number, block in enumerate(blocks, 1):
            stem = "_".join(
                ["sheet", *filter(None, [file_label(label)]), *([f"{number:02}"] if len(blocks) > 1 else [])]
            )
            sheet = _sheet(label, *block, outputs, size)
            with write_whole(folder / f"{stem}.png") as file:
                sheet.save(file, format="PNG")
            paths.append(folder / f"{stem}.png")
    return paths


def _sheet(
    label: str,
    contents: Sequence[Source],
    styles: Sequence[Source],
    outputs: Mapping[tuple[Any, Any], Path],
    size: int,
) -> Image.Image:
    height, top = size + LINE, LINE if label else 0
    sheet = Image.new("RGB", ((len(styles) + 1) * size, top + (len(contents) + 1) * height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((2, 1), _text(label), "black")
    for column, style in enumerate(styles, 1):
        _place(sheet, draw, style.pixels, (column * size, top), style.path.name, size)
    for row, content in enumerate(contents, 1):
        _place(sheet, draw, content.pixels, (0, top + row * height), content.path.name, size)
        for column, style in enumerate(styles, 1):
            path = outputs.get((str(content.path), str(style.path)))
            if path is not None:
                with suppress(OSError):  # the place of a result that someone removed stays white
                    _place(sheet, draw, Image.open(path), (column * size, top + row * height), "", size)
    return sheet


def _place(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    image: Image.Image | NDArray[np.uint8],
    corner: tuple[int, int],
    name: str,
    size: int,
) -> None:
    """A thumbnail with its name above."""
    thumbnail = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    thumbnail.thumbnail((size, size))
    sheet.paste(thumbnail, (corner[0], corner[1] + LINE))
    draw.text((corner[0] + 2, corner[1] + 1), _text(name)[: max(1, size // 6)], "black")


def _text(name: str) -> str:
    """A name with ? in place of what the font does not have."""
    return printable(name).encode("latin-1", "replace").decode("latin-1")


def compare_sheet(titles: Sequence[str], lines: Sequence[Sequence[Path]], size: int) -> Image.Image:
    """Images of files in lines, under the titles of their columns; thumbnails of `size` pixels, cut as squares."""
    sheet = Image.new("RGB", (len(titles) * size, LINE + len(lines) * (size + LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * size + 2, 1), _text(title)[: size // 6], "black")
    for row, line in enumerate(lines):
        for column, path in enumerate(line):
            image = load_image(path, size)
            _place(
                sheet, draw, image, (column * size, LINE + row * (size + LINE)), path.name if column < 2 else "", size
            )
    return sheet
