"""Joins folders of results."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from styleid.files.disk import write_whole
from styleid.study.inputs import Place
from styleid.study.manifest import Manifest, Row, write_parquet, write_table


def merge(folders: Iterable[Place], into: Place) -> list[Row]:
    """Copies the results of sweeps' folders into another folder, where it does not have them, and writes its tables.

    Results that a manifest lists but that are missing or have changed are left out; a sweep makes them again. Inversions and
    contact sheets are not copied.

    Args:
        folders: the folders of sweeps, each with a manifest
        into: the folder that the results go to, which is made where it does not exist; its own results stay

    Returns:
        the rows of all results of `into`

    Raises:
        ValueError: a folder has no manifest, or names a file outside of it
        OSError: a file cannot be read or written
    """
    sources = [
        Path(os.fsdecode(folder)) for folder in ([folders] if isinstance(folders, (str, os.PathLike)) else folders)
    ]
    for source in sources:
        if not (source / "manifest.jsonl").is_file():
            raise ValueError(f"folders: {source} has no manifest.jsonl, so it is no sweep's")
    root = Path(os.fsdecode(into))
    root.mkdir(parents=True, exist_ok=True)
    target = Manifest(root)
    for source in sources:
        for row in Manifest(source).all_finished():
            if Path(row["output"]).name != row["output"]:
                raise ValueError(f"folders: {source}: its manifest names {row['output']!r}, which is not in it")
            with target.lock(row["key"]):
                if target.finished(row["key"]) is None:
                    with write_whole(root / row["output"]) as file:
                        file.write((source / row["output"]).read_bytes())
                    target.write_line(row)
    rows = target.all_finished()
    if rows:
        write_table(root / "table.csv", rows)
        write_parquet(root / "table.parquet", rows)
    return rows
