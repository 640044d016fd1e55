"""The paper's experiment in one call: its settings and ablations over all pairs, measured beside the published values.

Chung, Hyun, Heo: Style Injection in Diffusion, CVPR 2024, table 1 and the ablations of its section 4.3, which leave out one
part of the method each. It can be stopped and called again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from styleid import _core
from styleid.files.disk import write_whole
from styleid.metrics.weights import Folder
from styleid.models.loading import default_model
from styleid.models.model import Model
from styleid.numbers import whole
from styleid.progress import Progress
from styleid.study.grid import Grid, rate_text
from styleid.study.inputs import Place, list_images
from styleid.study.manifest import Row, write_table
from styleid.study.protocol import evaluate_results
from styleid.study.sheets import compare_sheet
from styleid.study.sweeps import sweep

if TYPE_CHECKING:
    from distributed import Client

SETTINGS: dict[str, dict[str, Any]] = {
    "StyleID": {"gamma": 0.75, "temperature": 1.5},
    "gamma 0.3": {"gamma": 0.3, "temperature": 1.5},
    "without injection": {"gamma": 0.75, "temperature": 1.5, "inject": False},
    "without query preservation": {"gamma": 0.0, "temperature": 1.5},
    "without temperature": {"gamma": 0.75, "temperature": 1.0},
    "without initial AdaIN": {"gamma": 0.75, "temperature": 1.5, "adain": False},
}
# ArtFID, FID and LPIPS of table 1, with Stable Diffusion 1.4, 50 steps and 20 x 40 = 800 pairs.
PAIRS, STEPS = 800, 50
PUBLISHED = {
    "StyleID": (28.801, 18.131, 0.5055),
    "AdaAttN": (30.350, 18.658, 0.5439),
    "StyTR2": (30.720, 18.890, 0.5445),
    "AdaIN": (30.933, 18.242, 0.6076),
}
SD1 = [320, 640, 1280, 1280], 768  # channels and context size, which UNets of Stable Diffusion 1.x alone have
COMPARED = "art_fid", "fid", "lpips"
SHOWN = 12  # pairs in the sheet


def reproduce(
    contents: Place | Sequence[Place],
    styles: Place | Sequence[Place],
    folder: Place,
    model: Model | None = None,
    *,
    pairs: int | None = None,
    steps: int = STEPS,
    networks: bool = True,
    weights: Folder = None,
    progress: Progress = None,
    cluster: str | os.PathLike[str] | Client | None = None,
    disk: float | None = None,
) -> list[Row]:
    """Makes and measures results with the paper's settings and ablations; it goes on where it stopped.

    It writes reproduction.csv, reproduction.txt, which is what `reproduction_text` returns, and reproduction.png.

    Args:
        contents, styles: files or folders; the paper has 20 contents of MS-COCO and 40 styles of WikiArt
        folder: the folder of this experiment alone
        model: what `styleid.load_model` returned; the paper's is Stable Diffusion 1.4. None: the default model
        pairs: about how many pairs are made, of the first contents and styles, in the proportion of their numbers; None: all
        steps: DDIM steps, the paper's 50; fewer are for a trial, whose numbers compare with nothing published
        networks: whether to measure also LPIPS, CFSD, FID and ArtFID, which need PyTorch, the published weights and 4 pairs
        weights: the folder of the weights, as in `styleid.metrics.learned`
        progress, cluster, disk: as for `styleid.study.sweep`

    Returns:
        a dictionary for each of the settings: "setting", "pairs", the measures with their standard deviations, and
        "published_art_fid" and so on where there are published values

    Raises:
        TypeError, ValueError, OSError, ImportError: as `styleid.study.sweep` and `styleid.study.evaluate_results`
    """
    model = model or default_model()
    root = Path(os.fsdecode(folder))
    chosen = _subset(list_images(contents, "contents"), list_images(styles, "styles"), pairs)
    if networks and len(chosen[0]) * len(chosen[1]) < 4:
        raise ValueError(f"pairs: FID needs at least 4, got {len(chosen[0]) * len(chosen[1])}")
    layers = list(_core.schedule(model.engine, "paper", whole("steps", steps, 2, 1000))["layers"])
    grids = [Grid(layers=[layers], steps=steps, **settings) for settings in SETTINGS.values()]
    rows = sweep(*chosen, root, model, grid=grids, progress=progress, cluster=cluster, disk=disk, thumbnail=0)
    read = [list(dict.fromkeys(Path(row[which]) for row in rows)) for which in ("content", "style")]
    measured = evaluate_results(root, *read, networks=networks, weights=weights, progress=progress).table
    table = []
    for name, settings in SETTINGS.items():
        (row,) = [row for row in measured if row["steps"] == steps and _is(row, settings)]
        published = zip(COMPARED, PUBLISHED[name], strict=True) if name in PUBLISHED else ()
        first = list(row).index("pairs")
        values = {key: row[key] for key in list(row)[first:] if key != "rank"}
        table.append({"setting": name} | values | {f"published_{measure}": value for measure, value in published})
    write_table(root / "reproduction.csv", table)
    with write_whole(root / "reproduction.txt") as file:
        file.write((reproduction_text(table, model, steps) + "\n").encode())
    _write_sheet(root, rows)
    return table


def reproduction_text(table: Sequence[Row], model: Model, steps: int) -> str:
    """The table beside the published values, as aligned columns, and below it a line about what these are of.

    Args:
        table: what `reproduce` returned
        model, steps: what it was called with
    """
    measures = [name for name in table[0] if name not in ("setting", "pairs") and not name.endswith("_std")]
    measures = [name for name in measures if not name.startswith("published_")]
    order = [*(name for name in COMPARED if name in measures), *(name for name in measures if name not in COMPARED)]
    lines = [["setting", "pairs", *order, *(f"published {name}" for name in COMPARED)]]
    for row in table:
        published = [row.get(f"published_{name}", "-") for name in COMPARED]
        lines.append([row["setting"], str(row["pairs"]), *(f"{row[name]:.5g}" for name in order), *map(str, published)])
    for name, values in PUBLISHED.items():
        if name not in SETTINGS:
            lines.append([f"{name} (published)", str(PAIRS), *["-"] * len(order), *map(str, values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ["  ".join(map(str.rjust, line, widths)) for line in lines]
    return "\n".join([*aligned, _protocol(table[0]["pairs"], model, steps)])


def _protocol(pairs: int, model: Model, steps: int) -> str:
    """What the published values are of, and what sets this run apart from that. The weights of Stable Diffusion 1.4 cannot
    be told from those of 1.5 or of a fine-tune, so that the first sentence is always there."""
    text = f"The published values are of {PAIRS} pairs with Stable Diffusion 1.4 and {STEPS} steps."
    other = [f"{pairs} pair{'s' * (pairs > 1)}"] if pairs != PAIRS else []
    unet = model.config["unet"]
    if (list(unet["channels"]), unet["context_size"]) != SD1:
        other.append("another model")
    if steps != STEPS:
        other.append(f"{steps} steps")
    return f"{text} This run has {', '.join(other)}: its values are not comparable with them." if other else text


def _subset(contents: list[Path], styles: list[Path], pairs: int | None) -> tuple[list[Path], list[Path]]:
    """The first contents and styles that make about so many pairs, in the proportion of their numbers."""
    if pairs is None:
        return contents, styles
    if isinstance(pairs, bool) or not hasattr(pairs, "__index__") or pairs < 1:
        raise ValueError(f"pairs: expected a whole number from 1 on, got {pairs!r}")
    rows = min(len(contents), max(1, round(math.sqrt(pairs * len(contents) / len(styles)))))
    return contents[:rows], styles[: max(1, round(pairs / rows))]


def _is(row: Row, settings: dict[str, Any]) -> bool:
    """Whether a row of the evaluation has these settings."""
    wanted = {name: rate_text(name, settings[name]) for name in ("gamma", "temperature")}
    wanted |= {"inject": settings.get("inject", True), "initial": "adain" if settings.get("adain", True) else "content"}
    return all(row[name] == value for name, value in wanted.items())


def _write_sheet(root: Path, rows: Sequence[Row]) -> None:
    """One sheet: some pairs, each with its content, its style and the result of every setting."""
    by_pair: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_pair.setdefault((row["content"], row["style"]), []).append(row)
    places = list(by_pair)
    shown = [places[i * len(places) // min(SHOWN, len(places))] for i in range(min(SHOWN, len(places)))]
    lines: list[list[Path]] = []
    for place in shown:
        results = [next(row for row in by_pair[place] if _is(row, settings)) for settings in SETTINGS.values()]
        lines.append([*map(Path, place), *(root / row["output"] for row in results)])
    with write_whole(root / "reproduction.png") as file:
        compare_sheet(["content", "style", *SETTINGS], lines, 160).save(file, format="PNG")
