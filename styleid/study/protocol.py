"""The paper's protocol: measures over all pairs of contents and styles, 20 x 40 = 800 of them.

LPIPS, CFSD and the measures without networks are means over the pairs. FID compares all results with the styles. Each style
counts once for every result in it, as in StyleID's evaluation, which copies the files: the unbiased covariance of 800 images is
not that of 40. LPIPS and FID are measured on images with 512 pixels on the shorter side.
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
from styleid.study.inputs import Place, list_images, suffixes
from styleid.study.manifest import Manifest

Row = dict[str, Any]

NAMINGS = "{}_stylized_{}", "{}_{}"  # how results without a manifest are named; StyleID's program uses the first form
LARGER_IS_BETTER = {"ssim", "psnr", "gradient_correlation"}
# What a row of a manifest has beside settings.
NO_SETTINGS = {"key", "content", "style", "output", "sha256", "isa", *metrics.MEASURES}


class Pair(NamedTuple):
    """A result with what it was made of, and the measures that its manifest has."""

    stylized: Path
    content: Path
    style: Path
    known: dict[str, float]


class Evaluation(NamedTuple):
    """The measures of folders of results.

    Attributes:
        pairs: a dictionary for every result: "folder" (if there are several), the settings, content, style, output and the
            measures
        table: a dictionary for every combination of settings: "folder" (if there are several), the settings, "pairs" (their
            number), the mean of each measure under its name, its standard deviation as NAME_std, and "rank", 1 for the best
    """

    pairs: list[Row]
    table: list[Row]


def evaluate_results(
    results: Place | Iterable[Place],
    contents: Place | Iterable[Place],
    styles: Place | Iterable[Place],
    *,
    networks: bool = False,
    weights: Folder = None,
    kind: Kind = "art",
    progress: Progress = None,
) -> Evaluation:
    """Measures folders of results, for every combination of settings in each.

    Args:
        results: folders that a sweep made, where each combination of settings gets a row; or folders of images named
            CONTENT_stylized_STYLE or CONTENT_STYLE, as by StyleID's program. Measures that a sweep's manifest has are not
            computed again
        contents, styles: the folders of the images, or the images; they are cropped and resized to a result's size
        networks: whether to measure also LPIPS, CFSD, FID and ArtFID, plain and extrapolated
        weights: as in `styleid.metrics.learned`
        kind: the kind of FID, as in `styleid.metrics.fid`; the paper's is "art"
        progress: over all pairs: True for a bar, False for none, None for one in a terminal or a notebook only, or a
            function that is called with (pairs, total)

    The rank is by ArtFID, or without networks by the mean of the ranks in each measure.

    Raises:
        ValueError: no images; a result is missing or its name fits two pairs; fewer than 4 pairs for FID; as the
            measures
        ImportError: networks without PyTorch
        OSError: a file cannot be read
    """
    folders = [
        Path(os.fsdecode(place)) for place in ([results] if isinstance(results, (str, os.PathLike)) else results)
    ]
    groups = []
    for folder in folders:
        for settings, pairs in find_pairs(folder, contents, styles):
            groups.append(({"folder": str(folder)} | settings if len(folders) > 1 else settings, pairs))
    total = sum(len(pairs) for _, pairs in groups)
    if networks and (fewest := min(len(pairs) for _, pairs in groups)) < 4:
        raise ValueError(f"results: FID needs at least 4 pairs, found {fewest}")
    rows: list[Row] = []
    table: list[Row] = []
    with reporter(progress, "evaluation", "pair") as report:
        done = count(1)

        def tick() -> None:
            if report:
                report(next(done), total)

        for settings, pairs in groups:
            measured, of_sets = _measure(pairs, networks, weights, kind, tick)
            for pair, values in zip(pairs, measured, strict=True):
                made_of = {"content": str(pair.content), "style": str(pair.style), "output": pair.stylized.name}
                rows.append(settings | made_of | values)
            table.append(settings | {"pairs": len(pairs)} | _summary(measured) | of_sets)
    return Evaluation(rows, _ranked(table))


def find_pairs(
    results: Place, contents: Place | Iterable[Place], styles: Place | Iterable[Place]
) -> list[tuple[Row, list[Pair]]]:
    """The pairs of every combination of settings: all contents with all styles. ValueError if one is missing."""
    folder = Path(os.fsdecode(results))
    sources = list(product(list_images(contents, "contents"), list_images(styles, "styles")))
    if not folder.is_dir():
        raise FileNotFoundError(f"results: {folder}: no such folder")
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


def _by_manifest(
    folder: Path, rows: Iterable[Row], sources: Sequence[tuple[Path, Path]]
) -> list[tuple[Row, list[Pair]]]:
    """A sweep's results by their settings; images are known by their names, wherever they were when the sweep ran."""
    by_names = {(content.name, style.name): (content, style) for content, style in sources}
    groups: dict[tuple[Any, ...], tuple[Row, list[Pair]]] = {}
    for row in rows:
        names = Path(row["content"]).name, Path(row["style"]).name
        if names in by_names:
            settings = {name: value for name, value in row.items() if name not in NO_SETTINGS}
            known = {name: row[name] for name in metrics.MEASURES if isinstance(row.get(name), float)}
            _, pairs = groups.setdefault(tuple(settings.items()), (settings, []))
            pairs.append(Pair(folder / row["output"], *by_names[names], known))
    return list(groups.values())


def _by_names(folder: Path, sources: Sequence[tuple[Path, Path]]) -> list[Pair]:
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in suffixes()]
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(file.stem, []).append(file)
    pairs = []
    taken: dict[Path, Pair] = {}
    for content, style in sources:
        names = dict.fromkeys(naming.format(content.stem, style.stem) for naming in NAMINGS)
        fitting = sorted(file for name in names for file in by_stem.get(name, ()))
        if len(fitting) > 1:
            raise ValueError(
                f"results: {fitting[0].name} and {fitting[1].name} both fit {content.name} with {style.name}"
            )
        for file in fitting:
            pair = Pair(file, content, style, {})
            if file in taken:
                other = taken[file]
                raise ValueError(
                    f"results: {file.name} fits {other.content.name} with {other.style.name} and {content.name} with "
                    f"{style.name}"
                )
            taken[file] = pair
            pairs.append(pair)
    return pairs


def _measure(
    pairs: Sequence[Pair], networks: bool, weights: Folder, kind: Kind, tick: Callable[[], None]
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """The measures of every pair and, with networks, the distances of sets."""
    values, results, styles = [], [], []
    features: dict[tuple[Path, tuple[int, int]], NDArray[np.float32]] = {}  # those of the styles, by their size

    def seen(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = metrics.inception_features([metrics.at_protocol_size(image)], kind, weights)[0]
        return found

    for pair in pairs:
        if networks or pair.known.keys() != metrics.MEASURES.keys():
            stylized = load_image(pair.stylized)
            size = stylized.shape[0], stylized.shape[1]
            content, style = (load_image(path, size) for path in (pair.content, pair.style))
            values.append(_of_pair(pair, stylized, content, style, networks, weights))
            if networks:
                place = pair.style, size
                if place not in features:
                    features[place] = seen(style)
                results.append(seen(stylized))
                styles.append(features[place])
        else:
            values.append(pair.known)
        tick()
    if not networks:
        return values, {}
    lpips = float(np.mean([each["lpips"] for each in values]))
    return values, _of_sets(np.array(results), np.array(styles), lpips)


def _of_pair(
    pair: Pair,
    stylized: NDArray[np.uint8],
    content: NDArray[np.uint8],
    style: NDArray[np.uint8],
    networks: bool,
    weights: Folder,
) -> dict[str, float]:
    """All measures of a pair; measures that are known are not computed again."""
    values = dict(pair.known)
    if values.keys() != metrics.MEASURES.keys():
        return metrics.evaluate(stylized, content, style, networks, weights)
    if networks:
        values["lpips"] = metrics.lpips(metrics.at_protocol_size(stylized), metrics.at_protocol_size(content), weights)
        values["cfsd"] = metrics.cfsd(stylized, content, weights)
    return values


def _of_sets(results: NDArray[np.float32], styles: NDArray[np.float32], lpips: float) -> dict[str, float]:
    """FID and ArtFID, plain and extrapolated."""
    fids = {"": metrics.frechet_distance(results, styles), "_inf": metrics.extrapolated_distance(results, styles)}
    return {
        f"{name}{suffix}": value
        for suffix, fid in fids.items()
        for name, value in (("fid", fid), ("art_fid", metrics.art_fid(lpips, fid)))
    }


def _summary(values: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean and standard deviation (n - 1; 0 for one pair) of each measure."""
    row = {}
    for name in values[0]:
        numbers = np.array([each[name] for each in values], np.float64)
        row[name] = float(numbers.mean())
        row[f"{name}_std"] = float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    return row


def _ranked(table: list[Row]) -> list[Row]:
    """The rows with their rank, 1 for the best, equal ones with the same."""
    if all("art_fid" in row for row in table):
        scores = [row["art_fid"] for row in table]
    else:
        names = [name for name in metrics.MEASURES if all(name in row for row in table)]
        columns = [[-row[name] if name in LARGER_IS_BETTER else row[name] for row in table] for name in names]
        scores = [sum(sorted(column).index(column[i]) for column in columns) for i in range(len(table))]
    return [row | {"rank": 1 + sorted(scores).index(score)} for row, score in zip(table, scores, strict=True)]


def table_text(rows: Sequence[Row]) -> str:
    """Rows of `Evaluation.table` as aligned columns, best first: the measures, and those settings that differ."""
    rows = sorted(rows, key=lambda row: int(row["rank"]))
    first_measure = list(rows[0]).index("pairs")
    measured = [name for name in list(rows[0])[first_measure:] if not name.endswith("_std")]
    names = dict.fromkeys(name for row in rows for name in row)
    differing = [name for name in names if name not in measured and not name.endswith("_std")]
    columns = [name for name in differing if len({str(row.get(name)) for row in rows}) > 1] + measured
    if len(rows) == 1:
        columns.remove("rank")
    cells = [columns, *([_cell(row, name) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in cells)


def _cell(row: Row, name: str) -> str:
    value = row.get(name, "")
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return f"{text} +- {row[f'{name}_std']:.2g}" if f"{name}_std" in row else text
