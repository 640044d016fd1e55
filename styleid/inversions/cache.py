"""A cache of inversions: a folder of files that are found by what they were made from.

An entry's name is the SHA-256 of everything that its content depends on, so that two images of one name never
collide and no entry is ever stale. Files appear whole or not at all. Any number of processes may share a folder, and they
wait for an entry that another one is making.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from styleid.files.disk import locked, remove_abandoned, write_whole
from styleid.images import Pixels
from styleid.inversions.inversion import Inversion
from styleid.models.model import Model
from styleid.numbers import number

LIMIT = 20 << 30  # bytes


class Cache:
    """A cache folder, which is made where it does not exist.

    Args:
        folder: the folder of the entries
        limit: the bytes of all entries together; beyond it the least recently used ones are removed
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int = LIMIT) -> None:
        self.folder = Path(os.fsdecode(folder))
        self.limit = number("limit", limit, 1)
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(
        self, key: str, model: Model, make: Callable[[BinaryIO | None], Inversion], mapped: bool = False
    ) -> Inversion:
        """The entry of that key. If there is none, or a damaged one, what `make` returns becomes the entry.

        Args:
            key: the name of the entry, see `key_of`
            model: the model that the inversion gets; the key must depend on it
            make: called with the file to write the inversion to if `mapped`, else with None
            mapped: the features stay in the entry's file; other users of the folder do not disturb them

        A folder that cannot be written to, such as on a full disk, costs a warning and not the inversion; but with
        `mapped`, where the features have no other place, it is an OSError.
        """
        path = self.folder / f"{key}.safetensors"
        with locked(self.folder / f".{key}.lock"):
            inversion = self._find(path, model, mapped)
            if inversion is not None:
                return inversion
            if mapped:
                with write_whole(path) as file:
                    inversion = make(file)
                self.trim(path)
                return inversion
            inversion = make(None)
            try:
                inversion.save(path)
                self.trim(path)
            except OSError as error:
                warnings.warn(f"{path}: not kept: {error.strerror}", stacklevel=4)
            return inversion

    def _find(self, path: Path, model: Model, mapped: bool) -> Inversion | None:
        """The entry, if there is one without damage."""
        if not path.exists():
            return None
        try:
            inversion = replace(Inversion.load(path, mapped), model=model)
            os.utime(path)  # used now
        except (ValueError, FileNotFoundError) as error:
            if path.exists():  # or else another process removed it
                warnings.warn(f"inverting again: {error}", stacklevel=5)
            return None
        return inversion

    def trim(self, newest: Path) -> None:
        """Removes the least recently used entries beyond the limit, but not the newest one, which may be larger alone.

        Args:
            newest: the file of the entry that stays

        Raises:
            OSError: an entry cannot be removed
        """
        remove_abandoned(self.folder)
        entries = []
        for path in self.folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another process removes some as well
                entries.append((path.stat(), path))
        total = sum(status.st_size for status, _ in entries)
        for status, path in sorted(entries, key=lambda entry: entry[0].st_mtime_ns):
            if total > self.limit and path != newest:
                path.unlink(missing_ok=True)
                total -= status.st_size


def key_of(pixels: Pixels, model: Model, settings: Mapping[str, object]) -> str:
    """A hash of the image, of the model with how it computes and this program's version (`Model.identity`), and of the
    settings."""
    parts = {
        "image": [pixels.dtype.name, pixels.shape, hashlib.sha256(pixels.tobytes()).hexdigest()],
        "model": model.identity,
        "settings": dict(settings),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
