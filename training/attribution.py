"""Writes the attribution file of a trained model from the manifest of its images."""

import csv
from collections import defaultdict
from pathlib import Path

HEADER = """\
This model was trained on the {count} images listed below, grouped by licence. Its weights start at random; the
activations of one other network (Magenta's style-prediction MobileNetV2, Apache License 2.0) judged what it drew. The
images themselves are not in this folder, nor is that network.

The weights in this folder are offered under the terms of the project's LICENSE. Each image belongs to its author and
stays under the licence named here.
"""


def attribution(manifest: Path) -> str:
    """The text: one line an image, with title, author, source and file."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    groups = defaultdict(list)
    for row in rows:
        groups[row["licence"]].append(row)
    parts = [HEADER.format(count=len(rows))]
    for licence, members in sorted(groups.items(), key=lambda group: -len(group[1])):
        parts.append(f"\n== {licence} ({len(members)}) ==\n")
        parts.extend(line(row) for row in sorted(members, key=lambda row: row["file"]))
    return "".join(parts)


def line(row: dict[str, str]) -> str:
    title = row["title"] or Path(row["original_path"]).stem
    author = row["author"] or "author not recorded at the source"
    return f"{title} | {author} | {row['source']} {row['original_path']} | {row['file']}\n"


def write(manifest: Path, target: Path) -> None:
    target.write_text(attribution(manifest), encoding="utf-8")
