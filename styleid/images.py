"""Images in and out: what users have becomes arrays of height x width x 3, and results become files.

The rules for all images that come in:
- grey is repeated to three channels; transparent pixels are laid on white; palettes are looked up
- arrays are uint8, uint16 (divided by 65535) or floating point in [0, 1]
- images are resized only where a `size` is given; docs/images.md has the rules of sizes
- Pillow's images are reduced to 8 bits, and turned as their EXIF orientation says; the first frame of an animation
  counts; a colour profile for RGB is applied, so that all numbers mean sRGB
- files with more pixels than `PIL.Image.MAX_IMAGE_PIXELS` are refused before they are unpacked
"""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from styleid.files.disk import check_writable, write_whole
from styleid.metadata import Metadata, prepare, to_srgb
from styleid.numbers import whole

Pixels = NDArray[np.uint8] | NDArray[np.float32]
ImageLike = NDArray[Any] | Image.Image | str | os.PathLike[str]
Size = int | tuple[int, int]
Padded = TypeVar("Padded", bound=NDArray[Any])
BITS = (8, 16)  # of a channel, in files that are written
RESIZE = ("crop", "fit", "stretch")
LARGEST_SIDE = 1 << 16  # pixels
LARGEST_PIPE = 1 << 30  # bytes
TURNS = {  # EXIF's orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Formats of images that neither run programs (as EPS does) nor hold other data.
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


def to_array(image: ImageLike, name: str = "image", size: Size | None = None, resize: str = "crop") -> Pixels:
    """Any image as a C-contiguous (H, W, 3) array: uint8, or float32 in [0, 1].

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
        with np.errstate(all="ignore"):  # the smallest of float64 become 0 in float32; what is no number is refused
            pixels = _from_array(image, name)
            return pixels if box is None else _resize_array(pixels, box, resize)
    if isinstance(image, Image.Image):
        _check_pixels(name, image.width, image.height)
        return np.array(_resize(_to_rgb(image, name), box, resize))
    if isinstance(image, (str, os.PathLike)):
        return load_image(image, size, resize)
    raise TypeError(f"{name}: expected a NumPy array, a PIL.Image or a path, got {type(image).__name__}")


def load_image(
    path: str | bytes | os.PathLike[str], size: Size | None = None, resize: str = "crop"
) -> NDArray[np.uint8]:
    """The image in a file, as (H, W, 3) uint8.

    Args:
        path: a PNG, JPEG, WebP, TIFF, GIF, BMP or another common format; a pipe is read to its end
        size: None: the image's own size; else the side of a square, or (height, width)
        resize: how the image gets that size, by Lanczos's filter:
            - "crop": the largest centred part of these proportions is cut out and resized
            - "fit": the whole image in its own proportions, as large as fits into `size`: one side may be shorter
            - "stretch": the whole image in the proportions of `size`

    Raises:
        ValueError: the file is no image, or it is damaged or too large; a size or `resize` of another kind
        TypeError: a size of another type
        OSError: the file cannot be opened
    """
    box, path = check_resize(size, resize), check_path(path)
    with _open(path) as file:
        with _damage_in(path):
            opened = Image.open(file, formats=[kind for kind in READABLE if kind in _registered()])
        _check_pixels(path, opened.width, opened.height)
        image = _to_rgb(opened, path)
    return np.array(_resize(image, box, resize))


def pad(pixels: Padded, multiple: int) -> Padded:
    """The image, (H, W, ...), mirrored at its right and lower border until both sides are multiples of a number.

    It is mirrored because the image then continues without an edge and with its own statistics, and nothing comes into
    the attention that is not in the image. docs/images.md compares this with other paddings.
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


def save_image(
    path: str | os.PathLike[str], image: NDArray[Any] | Image.Image, metadata: Metadata | None = None, bits: int = 8
) -> None:
    """Writes an image in the format of the path's suffix, whole or not at all.

    Args:
        path: ends with .png, .jpg, .jpeg, .webp, .tif, .tiff or .bmp
        image: (H, W, 3) uint8, or (H, W) grey, or (H, W, 4) where the format has transparency; a PIL.Image becomes RGB as in
            `to_array`. With 16 bits whatever `to_array` takes, such as what `VAE.decode_float` returns
        metadata: what the file says beside its pixels: how it was made, the content's EXIF and colour profile
        bits: of a channel: 8, or in PNG files 16: round(65535 x) of x in [0, 1]. These are always sRGB, which the file
            says, whatever the content's colour profile is

    Raises:
        TypeError: another type or dtype
        ValueError: an unknown suffix, another shape, other bits, or what the format does not hold
        OSError: nothing can be written there
    """
    kind, options = check_format(path, bits)
    if bits == 16:
        _save_16_bits(path, image, metadata or Metadata())
        return
    pixels = _writable(to_array(image) if isinstance(image, Image.Image) else image, kind)
    with write_whole(check_path(path)) as file:
        try:
            written, facts = prepare(Image.fromarray(pixels), metadata or Metadata(), kind)
            written.save(file, format=kind, **options, **facts)
        except Exception as error:
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
                raise  # the operating system's
            height, width = pixels.shape[:2]
            raise ValueError(f"image: {width} x {height} pixels cannot be written as {kind}: {error}") from None


def _save_16_bits(path: str | os.PathLike[str], image: ImageLike, metadata: Metadata) -> None:
    from styleid.files.png import carrier, write_png16

    pixels = to_array(image)
    x = pixels / np.float64(255 if pixels.dtype == np.uint8 else 1)
    described = io.BytesIO()
    written, facts = prepare(carrier(), replace(metadata, icc_profile=None), "PNG")
    written.save(described, format="PNG", **facts)
    with write_whole(check_path(path)) as file:
        write_png16(file, np.rint(65535 * x).astype(np.uint16), described.getvalue())


def _writable(image: object, kind: str) -> NDArray[np.uint8]:
    """The pixels in a form that Pillow writes."""
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image: expected a NumPy array or a PIL.Image, got {type(image).__name__}")
    if image.dtype != np.uint8:
        raise TypeError(f"image: expected uint8 from 0 to 255, got {image.dtype}")
    shape = image.shape
    if image.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        raise ValueError(
            f"image: expected the channels last, (H, W, 3), got {shape}; np.moveaxis(image, 0, -1) puts them there"
        )
    if image.ndim not in (2, 3) or (image.ndim == 3 and shape[2] not in (1, 3, 4)) or not image.size:
        raise ValueError(f"image: expected the shape (H, W, 3), (H, W) or (H, W, 4), got {shape}")
    if image.ndim == 3 and shape[2] == 4 and kind in ("JPEG", "BMP"):
        raise ValueError(f"image: {kind} files hold no transparency; expected (H, W, 3), got {shape}")
    return np.ascontiguousarray(image[..., 0] if image.ndim == 3 and shape[2] == 1 else image)


def check_output(path: str | os.PathLike[str], bits: int = 8) -> None:
    """Raises TypeError, ValueError or OSError now if `save_image` would fail later: an unknown suffix, bits that the format
    does not hold, an unwritable place."""
    check_format(path, bits)
    check_writable(check_path(path))


def check_path(path: object) -> str:
    """The path as text; TypeError or ValueError where it is none."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"path: expected the path of a file, not {type(path).__name__}")
    text = os.fsdecode(path)
    if "\0" in text:
        raise ValueError(f"path: no file has a name with a zero byte: {text[:80]!r}")
    return text


def check_resize(size: Size | None, resize: str) -> tuple[int, int] | None:
    """(height, width), None where no size is given; TypeError or ValueError if an argument is not as `load_image` takes it."""
    if resize not in RESIZE:
        raise ValueError(f"resize: expected one of {list(RESIZE)}, got {resize!r}")
    return None if size is None else check_size(size)


def check_size(size: Size) -> tuple[int, int]:
    """(height, width) of a size given as one number or two; TypeError or ValueError otherwise."""
    sides = (
        tuple(size) if isinstance(size, (tuple, list)) or (isinstance(size, np.ndarray) and size.ndim) else (size, size)
    )
    if len(sides) != 2:
        raise TypeError(f"size: expected a whole number or (height, width), got {size!r}")
    height, width = (whole("size", side, 1, LARGEST_SIDE) for side in sides)
    return height, width


def _from_array(image: NDArray[Any], name: str) -> Pixels:
    if isinstance(image, np.ma.MaskedArray) and np.ma.is_masked(image):
        raise ValueError(f"{name}: some of its pixels are masked")
    array = np.asarray(image)  # a matrix, or another kind of array that has rules of its own
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"{name}: expected the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}")
    _check_pixels(name, array.shape[1], array.shape[0])
    pixels = _numbers(array.reshape(*array.shape[:2], -1), name)
    if pixels.shape[2] == 4:
        pixels = _on_white(pixels)
    elif pixels.shape[2] == 1:
        pixels = cast(Pixels, np.repeat(pixels, 3, axis=2))
    return cast(Pixels, np.ascontiguousarray(pixels))


def _numbers(array: NDArray[Any], name: str) -> Pixels:
    """Numbers of uint8 as they are, all others as float32 in [0, 1]."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
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
    """A file that gives what it has when it is asked for more, because Pillow asks for as much as a damaged header says."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self._size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


@contextmanager
def _damage_in(name: object) -> Iterator[None]:
    """Turns the many exceptions of Pillow's readers over damaged files into ValueErrors."""
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(f"{name}: not an image, or in no format that is read here") from None
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)):
            raise  # the operating system's: a disk that fails; but a seek to where no file reaches is the image's fault
        raise ValueError(f"{name}: not usable as an image: {error}") from None


def _open(path: str) -> BinaryIO:
    """A file to read an image from."""
    raw = io.FileIO(path)
    kind = os.fstat(raw.fileno()).st_mode
    if stat.S_ISREG(kind):
        return cast(BinaryIO, _Bounded(raw))
    with raw:
        if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
            raise ValueError(f"{path}: neither a file nor a pipe")
        data = io.BufferedReader(raw).read(LARGEST_PIPE + 1)
    if len(data) > LARGEST_PIPE:
        raise ValueError(f"{path}: more than {LARGEST_PIPE >> 20} MiB came through the pipe")
    return io.BytesIO(data)


def _to_rgb(image: Image.Image, name: object) -> Image.Image:
    """The image as upright 8-bit RGB, on white."""
    with _damage_in(name):
        image.load()
    image = _upright(image)
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return _to_8_bits(image, name)
    with _damage_in(name):
        if image.mode in ("RGBa", "La"):  # colours are multiplied by the opacity
            image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
        if image.mode.endswith("A") or "transparency" in image.info:
            image = _with_key(image).convert("RGBA")
            profile = image.info.get("icc_profile")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image.info["icc_profile"] = profile
        return to_srgb(image.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as the EXIF orientation says, or as it is where the orientation cannot be read."""
    try:
        orientation = image.getexif().get(0x0112)
        return image.transpose(TURNS[orientation]) if orientation in TURNS else image
    except Exception:  # noqa: BLE001  Pillow's readers stumble over damaged EXIF in many ways
        return image


def _with_key(image: Image.Image) -> Image.Image:
    """PNGs of 16 bits give the colour that stands for transparency in 16 bits; Pillow keeps the upper 8 of the pixels'."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _to_8_bits(image: Image.Image, name: object) -> Image.Image:
    """Grey of 16 bits, also where Pillow holds it in 32, or of floating point in [0, 1]; a transparent grey becomes white."""
    grey = np.asarray(image)
    factor = 255.0 if image.mode == "F" else 255 / 65535
    low, high = grey.min(), grey.max()
    if not (low >= 0 and high * factor <= 255):
        raise ValueError(f"{name}: grey levels from {low} to {high}; expected 16 bits, or floating point in [0, 1]")
    levels = np.rint(grey * factor).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        levels[grey == key] = 255
    return Image.fromarray(levels).convert("RGB")


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
    if not width or not height:
        raise ValueError(f"{name}: the image is empty: {width} x {height} pixels")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(
            f"{name}: {width} x {height} pixels; accepted are {limit} at most (PIL.Image.MAX_IMAGE_PIXELS)"
        )


def _registered() -> set[str]:
    Image.init()
    return set(Image.OPEN)


def check_format(path: str | os.PathLike[str], bits: int = 8) -> tuple[str, dict[str, Any]]:
    """The format of the path's suffix by Pillow's name, and the options that it is written with. ValueError where the suffix
    is unknown, or the format does not hold so many bits."""
    suffix = Path(check_path(path)).suffix.lower()
    if suffix not in WRITABLE:
        raise ValueError(f"{path}: unknown image format {suffix!r}; expected one of {', '.join(WRITABLE)}")
    if bits not in BITS:
        raise ValueError(f"bits: expected 8 or 16, got {bits!r}")
    if bits == 16 and suffix != ".png":
        raise ValueError(f"bits: 16 are written to .png files only, got {path}")
    return WRITABLE[suffix]
