"""The folder of a sweep's results: a PNG for each, manifest.jsonl, and tables.

The manifest has a line, which is a JSON object, for every finished result, written after its file is complete, so that whatever
ends a process costs the one result that it was making. Several processes may write to one folder.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from styleid.files.disk import locked, write_whole
from styleid.study.inputs import printable

Row = dict[str, Any]  # content, style, the settings, measures, output (its file), sha256 of that file


class Manifest:
    """The finished results of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "manifest.jsonl"
        self._rows: dict[str, Row] = {}
        self._read = 0  # how many bytes of the file were read
        self._whole: dict[str, tuple[int, int]] = {}  # the time and size of files whose hash was right
        self._read_on()

    def _read_on(self) -> None:
        """Reads the lines that any process has added."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._read)
            text, _, _ = file.read().rpartition(b"\n")  # what follows is being written
        self._read += len(text)
        for line in text.splitlines():
            try:
                row = json.loads(line)
                self._rows[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                continue  # a process was killed while it wrote the line; its image is made again

    def finished(self, key: str) -> Row | None:
        """The row of a result whose file is there as it was written."""
        if key not in self._rows:
            self._read_on()
        row = self._rows.get(key)
        return row if row is not None and self._is_whole(row) else None

    def _is_whole(self, row: Row) -> bool:
        """Whether a result's file is what was written; a file that was read and has not changed is not read again."""
        path = self.folder / str(row.get("output"))
        try:
            status = path.stat()
            stamp = status.st_mtime_ns, status.st_size
            if self._whole.get(row["key"]) != stamp:
                if sha256(path.read_bytes()) != row.get("sha256"):
                    return False
                self._whole[row["key"]] = stamp
        except (OSError, ValueError):
            return False
        return True

    def all_finished(self) -> list[Row]:
        """The rows of all results that are there."""
        self._read_on()
        return [row for key in self._rows if (row := self.finished(key))]

    def lock(self, key: str, wait: bool = True) -> AbstractContextManager[bool]:
        """A block in which no other process makes, or adds, the result of that key, as `locked`."""
        return locked(self.folder / f".{key}.lock", wait)

    def add(self, row: Row, data: bytes) -> Row:
        """Writes a result's file, which `encode_result` made of the row, then its line. Returns the row with the hash."""
        with write_whole(self.folder / row["output"]) as file:
            file.write(data)
        row = row | {"sha256": sha256(data)}
        self.write_line(row)
        return row

    def write_line(self, row: Row) -> None:
        """Adds a row whose file is there."""
        line = json.dumps(row).encode() + b"\n"
        with open(self.path, "a+b", buffering=0) as manifest:
            manifest.seek(max(0, manifest.seek(0, os.SEEK_END) - 1))
            if manifest.read(1) not in (b"", b"\n"):
                line = b"\n" + line  # what is there ends with half a line
            manifest.write(line)  # in one piece, so that lines of several processes do not mix
        self._rows[row["key"]] = row


def encode_result(row: Row, image: NDArray[np.uint8]) -> bytes:
    """The PNG of a result, with its row in the text chunk `styleid`."""
    text = PngInfo()
    text.add_text("styleid", json.dumps(row))
    data = io.BytesIO()
    Image.fromarray(image).save(data, format="PNG", pnginfo=text)
    return data.getvalue()


def sha256(data: bytes) -> str:
    """The SHA-256 of bytes as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write_table(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """Writes rows as CSV in UTF-8, whole or not at all. Bytes of names that are no text are written as \\xff."""
    with write_whole(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        table = csv.DictWriter(text, _columns(rows), restval="")
        table.writeheader()
        table.writerows(map(_readable, rows))
        text.flush()
        text.detach()  # or else it would close the file


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows as Parquet, where PyArrow is installed."""
    try:
        from pyarrow import Table, parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return
    columns = _columns(rows)
    mixed = {name for name in columns if len({type(row.get(name)) for row in rows} - {type(None)}) > 1}
    lines = [{name: _same_type(row.get(name), name in mixed) for name in columns} for row in map(_readable, rows)]
    with write_whole(path) as file:
        parquet.write_table(Table.from_pylist(lines), file)


def _same_type(value: object, mixed: bool) -> object:
    """A column of Parquet has one type: text, where a setting such as `inject` has values of several."""
    return str(value) if mixed and value is not None else value


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _readable(row: Row) -> Row:
    return {name: printable(value) if name in ("content", "style") else value for name, value in row.items()}
