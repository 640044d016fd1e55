"""Shows images in a notebook, where an array would print its numbers."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from styleid.images import ImageLike, to_array
from styleid.inversions.inversion import Inversion

GAP, TITLE = 4, 14  # pixels


class Shown:
    """An image that a notebook displays. Made by `styleid.show`.

    Attributes:
        image: the PIL image
    """

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def __repr__(self) -> str:
        return f"<styleid.Shown of {self.image.width}x{self.image.height} pixels>"

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.image.save(file, format="PNG")
        return file.getvalue()


def show(
    images: ImageLike | Inversion | Sequence[ImageLike | Inversion], titles: str | Sequence[str] | None = None
) -> Shown:
    """Shows images in a notebook, several of them as a row.

    Args:
        images: an image as `styleid.to_array` takes it (array, PIL image or path), an inversion with a model, or a list
            of them
        titles: a title for each image, written above it; None: no titles

    Raises:
        ValueError: no images, a number of titles that is not that of the images, an inversion that was loaded from a file
        TypeError, OSError: as `styleid.to_array`
    """
    row = list(images) if isinstance(images, (list, tuple)) else [images]
    names = [titles] if isinstance(titles, str) else list(titles or ())
    if not row:
        raise ValueError("images: expected at least one")
    if names and len(names) != len(row):
        raise ValueError(f"titles: expected one for each of {len(row)} images, got {len(names)}")
    panels = [Image.fromarray(_pixels(image)) for image in row]
    top = TITLE if names else 0
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    sheet = Image.new("RGB", (width, top + max(panel.height for panel in panels)), "white")
    left = 0
    for index, panel in enumerate(panels):
        sheet.paste(panel, (left, top))
        if names:
            ImageDraw.Draw(sheet).text((left, 1), names[index], fill="black")
        left += panel.width + GAP
    return Shown(sheet)


def _pixels(image: Any) -> NDArray[np.uint8]:
    if not isinstance(image, Inversion):
        array = to_array(image, "images")
        bytes_: NDArray[np.uint8] = (array if array.dtype == np.uint8 else np.rint(array * 255)).astype(np.uint8)
        return bytes_
    pixels = image.thumbnail()
    if pixels is None:
        raise ValueError("images: an inversion that was loaded from a file has no model: show its reconstruct(model)")
    return pixels
