"""Sheets of images to look at."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

GAP = 4
LABEL = 14


def grid(rows: list[list[np.ndarray | None]], labels: list[list[str]] | None = None) -> Image.Image:
    """Lays out equal uint8 images in a grid; a label goes below its image, None leaves a place empty."""
    side = next(cell for row in rows for cell in row if cell is not None).shape[0]
    below = LABEL if labels else 0
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (side + GAP) + GAP, len(rows) * (side + GAP + below) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            place = (GAP + c * (side + GAP), GAP + r * (side + GAP + below))
            if cell is not None:
                sheet.paste(Image.fromarray(cell), place)
            if labels and labels[r][c]:
                draw.text((place[0] + 2, place[1] + side + 1), labels[r][c], fill="black")
    return sheet


def save(sheet: Image.Image, target: Path) -> None:
    """Writes a sheet whole or not at all."""
    partial = target.with_name("part-" + target.name)
    sheet.save(partial, quality=88)
    os.replace(partial, target)


def reconstructions(originals: list[np.ndarray], output: torch.Tensor, target: Path) -> None:
    """Originals above, reconstructions ((n, 3, h, w) in [0, 1]) below."""
    save(grid([originals, [(image * 255).round().byte().movedim(0, -1).numpy() for image in output]]), target)
