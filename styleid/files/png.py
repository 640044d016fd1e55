"""PNG files of 16 bits a channel, which Pillow does not write. pypng does."""

import io
from typing import BinaryIO

import numpy as np
import png  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray
from PIL import Image

OF_THE_PIXELS = (b"IHDR", b"IDAT", b"IEND")
SRGB = (b"sRGB", b"\0")  # what the numbers mean; rendered perceptually


def write_png16(file: BinaryIO, pixels: NDArray[np.uint16], described: bytes) -> None:
    """Writes (H, W, 3) uint16 as a PNG file.

    Args:
        described: a PNG file of any image, whose texts, EXIF and so on this one gets as well; no colour profile
    """
    height, width = pixels.shape[:2]
    body = io.BytesIO()
    rows = pixels.astype(">u2").reshape(height, -1)
    png.Writer(width, height, greyscale=False, bitdepth=16).write_packed(body, map(bytes, rows))
    head, *data = _chunks(body.getvalue())
    told = [chunk for chunk in _chunks(described) if chunk[0] not in OF_THE_PIXELS]
    png.write_chunks(file, [head, SRGB, *told, *data])


def carrier() -> Image.Image:
    """An image of one pixel, to be written with what `write_png16` is to take over."""
    return Image.new("RGB", (1, 1))


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    return list(png.Reader(bytes=data).chunks())
