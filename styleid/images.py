"""Pictures in and out: what users have becomes height x width x 3 arrays, and results become files.

The rules, for whatever comes in:
- grey is repeated to three channels; what is transparent is laid on white; palettes are looked up
- arrays are uint8, uint16 (divided by 65535) or floating point in [0, 1]
- only what a `size` asks for is resized; docs/pictures.md has the rules of sizes
- pictures of Pillow's are reduced to 8 bits, and turned as their EXIF orientation says; of an animation the first
  frame counts; colour profiles are not applied: the numbers are taken as sRGB
- files are refused beyond `PIL.Image.MAX_IMAGE_PIXELS`, before they are unpacked
"""

import errno
import io
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from styleid.files.disk import check_writable, write_whole

Pixels = NDArray[np.uint8] | NDArray[np.float32]
Picture = NDArray[Any] | Image.Image | str | os.PathLike[str]
Size = int | tuple[int, int]
Padded = TypeVar("Padded", bound=NDArray[Any])
RESIZE = ("crop", "fit", "stretch")

# Formats of pictures, and of nothing that runs programs (EPS) or holds other data.
READABLE = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
WRITABLE: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
    ".bmp": ("BMP", {}),
}


def to_array(image: Picture, name: str = "image", size: Size | None = None, resize: str = "crop") -> Pixels:
    """Any picture as a C-contiguous (H, W, 3) array: uint8, or float32 in [0, 1].

    Args:
        image: an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), a PIL.Image, or the path of a file
        name: the argument's name in error messages
        size, resize: see `load_image`; floating-point pixels are cut to [0, 1] after resizing

    Raises:
        TypeError: the type or dtype is none of the above
        ValueError: the shape is none of the above, the array is empty, or a number is NaN or outside [0, 1]
        OSError: a file cannot be opened
    """
    box = check_resize(size, resize)
    if isinstance(image, np.ndarray):
        pixels = _from_array(image, name)
        return pixels if box is None else _resize_array(pixels, box, resize)
    if isinstance(image, Image.Image):
        _check_pixels(name, image.width, image.height)
        return np.array(_resize(_to_rgb(image, name), box, resize))
    if isinstance(image, (str, os.PathLike)):
        return load_image(image, size, resize)
    raise TypeError(f"{name}: expected a NumPy array, a PIL.Image or a path, got {type(image).__name__}")


def load_image(path: str | os.PathLike[str], size: Size | None = None, resize: str = "crop") -> NDArray[np.uint8]:
    """The picture in a file, as (H, W, 3) uint8.

    Args:
        path: a PNG, JPEG, WebP, TIFF, GIF, BMP or another common format
        size: None: the picture's own; else the side of a square, or (height, width)
        resize: how it gets that size, by Lanczos's filter:
            - "crop": the largest centred part of these proportions is cut out and resized
            - "fit": the whole picture in its own proportions, as large as fits into `size`: one side may be shorter
            - "stretch": the whole picture in the proportions of `size`

    Raises:
        ValueError: the file is no picture, damaged or too large; a size or `resize` of another kind
        TypeError: a size of another type
        OSError: the file cannot be opened
    """
    box = check_resize(size, resize)
    with _Bounded(io.FileIO(os.fspath(path))) as file:
        with _damage_in(path):
            opened = Image.open(file, formats=[kind for kind in READABLE if kind in _registered()])
        _check_pixels(path, opened.width, opened.height)
        image = _to_rgb(opened, path)
    return np.array(_resize(image, box, resize))


def pad(pixels: Padded, multiple: int) -> Padded:
    """The picture, (H, W, ...), mirrored at its right and lower border until both sides are multiples of a number.

    Mirrored, because what is there continues without an edge, has the picture's own statistics, and brings nothing
    into the attention that is not in the picture. docs/pictures.md compares it with other paddings.
    """
    height, width = padded_size(pixels.shape[:2], multiple)
    if (height, width) == pixels.shape[:2]:
        return pixels
    margins = [(0, height - pixels.shape[0]), (0, width - pixels.shape[1])] + [(0, 0)] * (pixels.ndim - 2)
    return cast(Padded, np.pad(pixels, margins, mode="reflect"))


def padded_size(size: tuple[int, ...], multiple: int) -> tuple[int, int]:
    """(height, width), each raised to a multiple of a number."""
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def save_image(path: str | os.PathLike[str], image: NDArray[np.uint8]) -> None:
    """Writes `image`, (H, W, 3) uint8, in the format of the path's suffix, whole or not at all.

    ValueError for an unknown suffix, OSError where nothing can be written.
    """
    kind, options = _format(path)
    picture = Image.fromarray(np.ascontiguousarray(image))
    with write_whole(path) as file:
        picture.save(file, format=kind, **options)


def check_output(path: str | os.PathLike[str]) -> None:
    """Raises ValueError or OSError now if `save_image` would fail later: an unknown suffix, an unwritable place."""
    _format(path)
    check_writable(path)


def check_resize(size: Size | None, resize: str) -> tuple[int, int] | None:
    """(height, width), None where no size is given; TypeError or ValueError if an argument is not as `load_image` takes it."""
    if resize not in RESIZE:
        raise ValueError(f"resize: expected one of {list(RESIZE)}, got {resize!r}")
    return None if size is None else check_size(size)


def check_size(size: Size) -> tuple[int, int]:
    """(height, width) of a size given as one number or two; TypeError or ValueError otherwise."""
    sides = size if isinstance(size, (tuple, list)) else (size, size)
    try:
        height, width = map(operator.index, sides)
    except (TypeError, ValueError):
        raise TypeError(f"size: expected a whole number or (height, width), got {size!r}") from None
    if not (1 <= height <= 1 << 16 and 1 <= width <= 1 << 16):
        raise ValueError(f"size: expected 1 to 65536 pixels, got {height}x{width}")
    return height, width


def _from_array(array: NDArray[Any], name: str) -> Pixels:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"{name}: expected the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name}: the array is empty: {array.shape}")
    _check_pixels(name, array.shape[1], array.shape[0])
    pixels = _numbers(array.reshape(*array.shape[:2], -1), name)
    if pixels.shape[2] == 4:
        pixels = _on_white(pixels)
    elif pixels.shape[2] == 1:
        pixels = cast(Pixels, np.repeat(pixels, 3, axis=2))
    return cast(Pixels, np.ascontiguousarray(pixels))


def _numbers(array: NDArray[Any], name: str) -> Pixels:
    """uint8 as it is, all else as float32 in [0, 1]."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        scaled: NDArray[np.float32] = array.astype(np.float32) / np.float32(65535)
        return scaled
    if array.dtype.kind != "f":
        raise TypeError(f"{name}: expected uint8, uint16 or floating point in [0, 1], got {array.dtype}")
    low, high = array.min(), array.max()  # NaN if there is one
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{name}: floating-point pixels must lie in [0, 1], found {low} to {high}")
    return array.astype(np.float32)


def _on_white(pixels: Pixels) -> Pixels:
    """Colour over white by the fourth channel; stays uint8 where nothing is transparent."""
    colour, opacity = pixels[..., :3], pixels[..., 3:]
    if pixels.dtype == np.uint8:
        if opacity.min() == 255:
            return colour
        colour, opacity = (part.astype(np.float32) / np.float32(255) for part in (colour, opacity))
    return 1 - (1 - colour) * opacity


class _Bounded(io.BufferedReader):
    """A file that gives what it has when it is asked for more: Pillow asks for as much as a damaged header says."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self._size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


@contextmanager
def _damage_in(name: object) -> Iterator[None]:
    """Pillow's readers stumble over damaged files with exceptions of all kinds; here they become ValueErrors."""
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(f"{name}: not a picture, or in no format that is read here") from None
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)):
            raise  # the operating system's: a disk that fails; but a seek to where no file reaches is the picture's fault
        raise ValueError(f"{name}: not usable as a picture: {error}") from None


def _to_rgb(image: Image.Image, name: object) -> Image.Image:
    """8-bit RGB, upright, on white."""
    with _damage_in(name):
        image = ImageOps.exif_transpose(image)  # unpacks the file
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        image = _to_8_bits(image, name)
    with _damage_in(name):
        if image.mode.endswith("A") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def _to_8_bits(image: Image.Image, name: object) -> Image.Image:
    """Grey of 16 bits, also where Pillow holds it in 32, or of floating point in [0, 1]."""
    grey = np.asarray(image)
    factor = 255.0 if image.mode == "F" else 255 / 65535
    low, high = grey.min(), grey.max()
    if not (low >= 0 and high * factor <= 255):
        raise ValueError(f"{name}: grey levels from {low} to {high}; expected 16 bits, or floating point in [0, 1]")
    return Image.fromarray(np.rint(grey * factor).astype(np.uint8))


def _resize(image: Image.Image, box: tuple[int, int] | None, resize: str) -> Image.Image:
    """See `load_image`; box: (height, width)."""
    if box is None:
        return image
    height, width = box
    across, down = image.width / width, image.height / height
    if resize == "crop":
        scale = min(across, down)
        part_width, part_height = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = round((image.width - part_width) / 2), round((image.height - part_height) / 2)
        image = image.crop((left, top, left + part_width, top + part_height))
    elif resize == "fit":
        scale = max(across, down)
        height, width = max(1, round(image.height / scale)), max(1, round(image.width / scale))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _resize_array(pixels: Pixels, box: tuple[int, int], resize: str) -> Pixels:
    if pixels.dtype == np.uint8:
        return np.array(_resize(Image.fromarray(pixels), box, resize))
    planes = [np.asarray(_resize(Image.fromarray(pixels[..., i]), box, resize)) for i in range(3)]
    return np.stack(planes, axis=2).clip(0, 1)


def _check_pixels(name: object, width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(
            f"{name}: {width} x {height} pixels; accepted are {limit} at most (PIL.Image.MAX_IMAGE_PIXELS)"
        )


def _registered() -> set[str]:
    Image.init()
    return set(Image.OPEN)


def _format(path: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    suffix = Path(path).suffix.lower()
    if suffix not in WRITABLE:
        raise ValueError(f"{path}: unknown picture format {suffix!r}; expected one of {', '.join(WRITABLE)}")
    return WRITABLE[suffix]
