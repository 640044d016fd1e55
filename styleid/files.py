"""Reading small files that may be hostile, and writing files that appear whole or not at all."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

JSON_LIMIT = 16 << 20  # bytes; the largest honest file, a CLIP tokenizer.json, has 4 MB


def parse_json(text: bytes, where: object) -> dict[str, Any]:
    """The JSON object in `text`. ValueError naming `where` for anything else, also for a key that comes twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise ValueError(f"the key {key[:80]!r} comes twice")
            values[key] = value
        return values

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON number")

    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # covers syntax, encoding and numbers of too many digits
        raise ValueError(f"{where}: broken JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(values).__name__}")  # noqa: TRY004  the file's fault
    return values


def read_limited(path: Path, limit: int = JSON_LIMIT) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; ValueError naming the file otherwise."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path}: larger than {limit >> 20} MiB, which no such file needs")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError naming the file for anything else."""
    return parse_json(read_limited(path), path)


@contextmanager
def write_whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write to. Only when the block ends without an exception does it become `path`."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, target)
    except BaseException:  # Ctrl-C as well: nothing half-written stays behind
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises OSError or ValueError now if writing `path` would fail later."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise ValueError(f"{path}: is a directory")
    if not target.parent.is_dir():
        raise ValueError(f"{path}: the directory {target.parent} does not exist")
    # Trying is the only test that sees permissions, read-only file systems and full disks alike.
    probe = target.with_name(f".{target.name[:80]}.{secrets.token_hex(6)}.tmp")
    with open(probe, "xb"):
        probe.unlink()
