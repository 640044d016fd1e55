"""The images of a study: found in folders, decoded once, and kept where they take no memory."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from styleid.images import READABLE, Size, load_image

Place = str | os.PathLike[str]
NAME_BYTES = 40  # the most that a result's name takes from an image's name


@lru_cache(maxsize=1)
def suffixes() -> frozenset[str]:
    """The suffixes of all files that `styleid.load_image` reads."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in READABLE)


def list_images(places: Place | Iterable[Place], name: str) -> list[Path]:
    """The given files, and the images directly in given folders, sorted by name, each once.

    Hidden files and folders in a folder are no images. Raises TypeError for anything but paths, FileNotFoundError for
    paths that do not exist, and ValueError if there are no images; all messages begin with `name`.
    """
    given = [places] if isinstance(places, (str, bytes, os.PathLike)) else places
    if not hasattr(given, "__iter__"):
        raise TypeError(f"{name}: expected paths of files or folders, got {type(given).__name__}")
    found: dict[Path, None] = {}
    for place in given:
        if not isinstance(place, (str, bytes, os.PathLike)):
            raise TypeError(f"{name}: expected paths of files or folders, got {type(place).__name__}")
        path = Path(os.fsdecode(place))
        if not path.exists():
            raise FileNotFoundError(f"{name}: {path}: no such file or folder")
        found |= dict.fromkeys(_inside(path) if path.is_dir() else [path])
    if not found:
        raise ValueError(f"{name}: expected at least one image, found none")
    return list(found)


def _inside(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in suffixes() and not file.name.startswith(".") and file.is_file()
    )


@dataclass(frozen=True, eq=False)
class Source:
    """An image of a study: where it was, its pixels as they are computed with, (H, W, 3) uint8, and their hash."""

    path: Path
    digest: str
    pixels: NDArray[Any]


def read_images(
    folder: Path, places: Mapping[str, Sequence[Path]], size: Size | None, resize: str
) -> tuple[list[list[Source]], list[str]]:
    """Decodes each image once. The pixels lie in one nameless file, mapped, so that they take disk and no memory.

    Args:
        folder: a folder on the file system that the file goes to
        places: the images of each argument, under its name
        size, resize: as for `styleid.load_image`

    Returns:
        of each argument those that can be read, and a line for each file that cannot

    Raises:
        ValueError: none of an argument's images can be read
    """
    failures: list[str] = []
    found: dict[Path, tuple[str, int, tuple[int, ...]]] = {}  # the pixels' hash, place in the file and shape
    with TemporaryFile(prefix=".styleid-", dir=folder) as file:
        for path in dict.fromkeys(path for paths in places.values() for path in paths):
            try:
                pixels = load_image(path, size, resize)
            except (ValueError, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                failures.append(f"{printable(path)}: {reason.removeprefix(f'{path}: ')}")
                continue
            digest = hashlib.sha256(f"{pixels.shape} ".encode() + pixels.tobytes()).hexdigest()
            found[path] = digest, file.tell(), pixels.shape
            file.write(pixels.data)
        for name, paths in places.items():
            if not any(path in found for path in paths):
                raise ValueError(f"{name}: none of the {len(paths)} images can be read; {failures[-1]}")
        file.flush()
        mapped = np.memmap(file, np.uint8, "r")
    sources = {
        path: Source(path, digest, mapped[start : start + math.prod(shape)].reshape(shape))
        for path, (digest, start, shape) in found.items()
    }
    return [[sources[path] for path in paths if path in sources] for paths in places.values()], failures


def printable(path: Place) -> str:
    """A name of any bytes as text that every terminal, table and font takes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def plain_stem(path: Path) -> str:
    """The file's name without suffix, safe as a part of a file's name everywhere and at most 40 bytes long."""
    text = os.fsencode(path.stem).decode("utf-8", "replace")
    kept = "".join(char if char.isalnum() or char in "-._+" else "-" for char in text).strip("-.")
    return kept.encode()[:NAME_BYTES].decode("utf-8", "ignore").strip("-.") or "image"
