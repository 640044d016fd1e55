"""Reading small files that may be hostile, and writing files that appear whole or not at all."""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

ABANDONED = 24 * 3600  # seconds, after which no process still works on a file
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
    """A binary file to write to, and read from. Only when the block ends without an exception does it become `path`."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "x+b") as file:
            yield file
        os.replace(temporary, target)
    except BaseException:  # Ctrl-C as well: nothing half-written stays behind
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Only one process or thread at a time is in a block with this path, a file that is made for it.

    Yields whether nobody else is in it, which is always so where it waits.

    This spares them doing the same twice, and nothing else may depend on it: where there are no locks nobody waits, and
    whoever is done removes the file, also under those who wait, so that one who comes then waits for none of them.
    """
    alone = True
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "wb"))
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            stack.callback(path.unlink, missing_ok=True)  # the system gives the lock back when a process dies
        except BlockingIOError:
            alone = False
        except OSError:  # a folder that cannot be written to, a file system without locks
            pass
        yield alone


def remove_abandoned(folder: Path) -> None:
    """Removes the files that `write_whole` and `locked` of killed processes left behind."""
    for path in folder.glob(".*.lock"):
        with locked(path, wait=False):  # nobody holds it: entering and leaving the block removes it
            pass
    for path in [*folder.glob(".*.tmp"), *folder.glob(".*.lock")]:  # locks too, where a file system has none
        with suppress(FileNotFoundError):  # another process removes some as well
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


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
