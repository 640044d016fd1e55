"""The paper's protocol: measures over all pairs of contents and styles, 20 x 40 = 800 of them.

LPIPS, CFSD and the measures without networks are means over the pairs. FID compares all results with the styles, each of
which counts once for every result in it, as in StyleID's evaluation, which copies the files: the unbiased covariance of
800 pictures is not that of 40. LPIPS and FID are of pictures with 512 pixels on the shorter side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import count, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from styleid import metrics
from styleid.images import load_image
from styleid.metrics.learned import Kind
from styleid.metrics.weights import Folder
from styleid.progress import Progress, reporter
from styleid.study.sweep import SUFFIXES, Manifest, list_pictures

Place = str | os.PathLike[str]
Row = dict[str, Any]

NAMINGS = "{}_stylized_{}", "{}_{}"  # of results without a manifest; the first is that of StyleID's program
NO_SETTINGS = {"key", "content", "style", "output", "sha256", *metrics.MEASURES}  # in a row of a sweep's manifest


class Pair(NamedTuple):
    """A result with what it was made of."""

    stylized: Path
    content: Path
    style: Path


def evaluate_results(
    results: Place,
    contents: Place | Iterable[Place],
    styles: Place | Iterable[Place],
    networks: bool = False,
    weights: Folder = None,
    kind: Kind = "art",
    progress: Progress = False,
) -> list[Row]:
    """Measures of a folder of results, one row for every combination of settings in it.

    Args:
        results: a folder that `styleid.study.sweep.sweep` made, of whose settings each gets a row; or one of pictures named
            CONTENT_stylized_STYLE or CONTENT_STYLE, as by StyleID's program
        contents, styles: the folders of the pictures, or the pictures; they are cropped and resized to a result's size
        networks: also LPIPS, CFSD, FID and ArtFID, plain and extrapolated
        weights: as in `styleid.metrics.learned`
        kind: of FID, as in `styleid.metrics.fid`; the paper's is "art"
        progress: over all pairs; True for a bar, or a function that is called with (pairs, total)

    Returns:
        for every combination: its settings, "pairs" (their number), and the measures

    Raises:
        ValueError: no pictures; a result is missing or its name fits two pairs; fewer than 4 pairs for FID; as the
            measures
        ImportError: networks without PyTorch
        OSError: a file cannot be read
    """
    groups = find_pairs(results, contents, styles)
    total = sum(len(pairs) for _, pairs in groups)
    if networks and total < 4 * len(groups):
        raise ValueError(f"results: FID needs at least 4 pairs, found {total // len(groups)}")
    with reporter(progress, "evaluation") as report:
        done = count(1)

        def tick() -> None:
            if report:
                report(next(done), total)

        return [settings | _evaluate(pairs, networks, weights, kind, tick) for settings, pairs in groups]


def find_pairs(
    results: Place, contents: Place | Iterable[Place], styles: Place | Iterable[Place]
) -> list[tuple[Row, list[Pair]]]:
    """The pairs of every combination of settings: all contents with all styles. ValueError if one is missing."""
    folder = Path(results)
    sources = list(product(_listed(contents, "contents"), _listed(styles, "styles")))
    rows = Manifest(folder).all_finished()
    found = _by_manifest(folder, rows, sources) if rows else [({}, _by_names(folder, sources))]
    if not found:
        raise ValueError(f"results: nothing in {folder} was made of these contents and styles")
    for settings, pairs in found:
        if missing := set(sources) - {(pair.content, pair.style) for pair in pairs}:
            first = min(missing)
            what = f" with {settings}" if settings else ""
            raise ValueError(
                f"results: {len(missing)} of {len(sources)} pairs are missing in {folder}{what}; the first is "
                f"{first[0].name} with {first[1].name}"
            )
    return found


def _listed(places: Place | Iterable[Place], name: str) -> list[Path]:
    return list_pictures([places] if isinstance(places, (str, os.PathLike)) else places, name)


def _by_manifest(
    folder: Path, rows: Iterable[Row], sources: Sequence[tuple[Path, Path]]
) -> list[tuple[Row, list[Pair]]]:
    """A sweep's results by their settings; pictures are known by their names, wherever they were then."""
    by_names = {(content.name, style.name): (content, style) for content, style in sources}
    groups: dict[tuple[Any, ...], tuple[Row, list[Pair]]] = {}
    for row in rows:
        names = Path(row["content"]).name, Path(row["style"]).name
        if names in by_names:
            settings = {name: value for name, value in row.items() if name not in NO_SETTINGS}
            _, pairs = groups.setdefault(tuple(settings.items()), (settings, []))
            pairs.append(Pair(folder / row["output"], *by_names[names]))
    return list(groups.values())


def _by_names(folder: Path, sources: Sequence[tuple[Path, Path]]) -> list[Pair]:
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]
    pairs = []
    taken: dict[Path, Pair] = {}
    for content, style in sources:
        names = {naming.format(content.stem, style.stem) for naming in NAMINGS}
        fitting = [file for file in files if file.stem in names]
        if len(fitting) > 1:
            raise ValueError(
                f"results: {fitting[0].name} and {fitting[1].name} both fit {content.name} with {style.name}"
            )
        for file in fitting:
            pair = Pair(file, content, style)
            if file in taken:
                other = taken[file]
                raise ValueError(
                    f"results: {file.name} fits {other.content.name} with {other.style.name} and {content.name} with "
                    f"{style.name}"
                )
            taken[file] = pair
            pairs.append(pair)
    return pairs


def _evaluate(
    pairs: Sequence[Pair], networks: bool, weights: Folder, kind: Kind, tick: Callable[[], None]
) -> dict[str, float]:
    """The means over pairs and, with networks, the distances of sets."""
    values, results, styles = [], [], []
    known: dict[tuple[Path, tuple[int, int]], NDArray[np.float32]] = {}  # features of styles, by their size

    def features(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = metrics.inception_features([metrics.at_protocol_size(picture)], kind, weights)[0]
        return found

    for pair in pairs:
        stylized = load_image(pair.stylized)
        size = stylized.shape[0], stylized.shape[1]
        content, style = (load_image(path, size) for path in (pair.content, pair.style))
        values.append(metrics.evaluate(stylized, content, style, networks, weights))
        if networks:
            place = pair.style, size
            if place not in known:
                known[place] = features(style)
            results.append(features(stylized))
            styles.append(known[place])
        tick()
    row = {"pairs": len(pairs)} | {name: float(np.mean([each[name] for each in values])) for name in values[0]}
    return row | (_of_sets(np.array(results), np.array(styles), row["lpips"]) if networks else {})


def _of_sets(results: NDArray[np.float32], styles: NDArray[np.float32], lpips: float) -> dict[str, float]:
    """FID and ArtFID, plain and extrapolated."""
    fids = {"": metrics.frechet_distance(results, styles), "_inf": metrics.extrapolated_distance(results, styles)}
    return {
        f"{name}{suffix}": value
        for suffix, fid in fids.items()
        for name, value in (("fid", fid), ("art_fid", metrics.art_fid(lpips, fid)))
    }


def table_text(rows: Sequence[Row]) -> str:
    """The rows of `evaluate_results` as aligned columns: the measures, and those settings that differ."""
    first_measure = list(rows[0]).index("pairs")
    columns = [
        name for i, name in enumerate(rows[0]) if i >= first_measure or len({str(row[name]) for row in rows}) > 1
    ]
    cells = [columns, *([_cell(row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in cells)


def _cell(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
