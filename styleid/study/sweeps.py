"""Sweeps: transfers of all contents with all styles and all settings, which can be stopped and continued at any time.

A folder of results holds a PNG for each result, named by what it was made from and a hash of all that it depends on;
manifest.jsonl; inversions/, where every image is inverted once; and at the end table.csv, with PyArrow table.parquet, and
contact sheets. Results that the manifest lists and that are in the folder unchanged are not made again. Several processes
may work in one folder, and wait for results that another one is making.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from styleid.files.disk import remove_abandoned
from styleid.inversions.cache import Cache
from styleid.inversions.inversion import Inversion
from styleid.memory import of_inversion
from styleid.method.options import Accuracy, Chosen, Options, Resize, Storage, Text
from styleid.models.loading import default_model
from styleid.models.model import Model
from styleid.numbers import number
from styleid.progress import Progress, reporter
from styleid.study.grid import Grid
from styleid.study.inputs import Place, Source, list_images, printable, read_images
from styleid.study.manifest import Manifest, write_parquet, write_table
from styleid.study.plan import Common, Inverting, Plan, Result, Row, in_blocks, make_plan
from styleid.study.sheets import write_sheets
from styleid.study.work import make_inversion, make_result

if TYPE_CHECKING:
    from distributed import Client

ONE = Grid()  # one combination: what the model recommends
THUMBNAIL = 128  # pixels
DISK = 20e9  # bytes of inversions that this process, or a worker of a cluster, keeps
SHARED_DISK = 500e9  # in a folder that the workers of a cluster share


class SweepIncomplete(ValueError):
    """Some results could not be made; all others are in the folder. The message has a line for each fault."""


def sweep(
    contents: Place | Iterable[Place],
    styles: Place | Iterable[Place],
    folder: Place,
    model: Model | None = None,
    *,
    grid: Grid | Sequence[Grid] = ONE,
    progress: Progress = None,
    options: Options = (),
    cluster: str | os.PathLike[str] | Client | None = None,
    disk: float | None = None,
    thumbnail: int = THUMBNAIL,
) -> list[Row]:
    """Makes transfers with every combination of contents, styles and settings.

    Args:
        contents, styles: image files; or folders, for all images directly in them. Images that cannot be read are left
            out, with a warning for each at the end
        folder: the folder of the results; results of these settings that an earlier sweep finished there are kept
        model: what `styleid.load_model` returned; None: the default model
        grid: the settings that vary, or several grids, of which all combinations are computed. A setting that is not given
            is what the model recommends, else the paper's
        progress: over the results to be made: True for a bar, False for none, None for one in a terminal or a notebook
            only, or a function that is called with (results, total)
        options: for all results, one option or a list of options: `styleid.Text`, `styleid.Accuracy`, `styleid.Storage`,
            `styleid.Resize`. Inversions are kept in the cache of `Storage`, or else in inversions/ of the folder
        cluster: None: this process computes. Otherwise the workers of a cluster compute, which is given by a Dask client, an
            address such as "tcp://scheduler:8786", "local" or "local:N" for N workers on this machine, or the path of a
            scheduler file. The cache of `Storage` is then a folder that all workers share, or a `styleid.Cache` of it;
            without one each worker keeps its inversions in its own local directory
        disk: the bytes of inversions that are kept at most, in the cache or the folder, or in the local directory of each
            worker. None: 20e9, and 500e9 in a cache that workers share. A worker has room for one content and three
            styles in any case. A `styleid.Cache` keeps to its own limit
        thumbnail: the size of an image in the contact sheets, in pixels; 0: no sheets

    Returns:
        a dictionary for every result, in the table's order

    Raises:
        TypeError, ValueError: naming the argument: no images, none that can be read, settings that the model cannot
            compute
        SweepIncomplete: some results could not be made, the others are there
        OSError: a file cannot be written, or the cluster cannot be reached
        ImportError: a cluster without Dask
    """
    study = prepare(contents, styles, folder, model, grid, options, disk)
    if cluster is None:
        return finish(study, run_here(study, progress), thumbnail)
    from styleid.study.cluster import run_on_cluster

    with reporter(progress, "sweep", "result") as report:
        failures, _ = run_on_cluster(study, cluster, report)
    return finish(study, failures, thumbnail)


@dataclass(frozen=True, eq=False)
class Study:
    """A sweep that is about to be carried out."""

    root: Path
    model: Model
    plan: Plan
    manifest: Manifest
    storage: Storage
    contents: list[Source]
    styles: list[Source]
    unreadable: list[str]  # a line for each image
    disk: float | None  # bytes of inversions that are kept; None: as usual

    def open(self) -> list[Result]:
        """The results that are to be made, each once."""
        results = {result.key: result for result in self.plan.results}
        return [result for key, result in results.items() if self.manifest.finished(key) is None]

    def size_of(self, task: Inverting) -> int:
        """The bytes of an inversion's file, but for some kilobytes."""
        kinds = {"query": 1, "keys": 2, "both": 3}[task.keep]
        features = "recompute" if self.storage.features == "recompute" else "memory"
        dtype = self.model.dtype if self.storage.dtype == "auto" else self.storage.dtype
        size = task.source.pixels.shape[:2]
        need = of_inversion(self.model, size, task.steps, task.layers, kinds, dtype, features)
        return need.features + need.arrays

    @property
    def shared(self) -> bool:
        """Whether all workers of a cluster keep inversions in one folder."""
        return self.storage.cache is not None

    def room(self, clustered: bool) -> float:
        """The bytes of inversions that are kept in one folder."""
        if isinstance(self.storage.cache, Cache):
            return self.storage.cache.limit
        return self.disk or (SHARED_DISK if clustered and self.shared else DISK)

    @property
    def cache(self) -> Cache:
        """Where this process keeps inversions."""
        given = self.storage.cache
        return given if isinstance(given, Cache) else Cache(given or self.root / "inversions", int(self.room(False)))


def prepare(
    contents: Place | Iterable[Place],
    styles: Place | Iterable[Place],
    folder: Place,
    model: Model | None,
    grid: Grid | Sequence[Grid],
    options: Options,
    disk: float | None = None,
) -> Study:
    """Reads the images and plans all results; arguments and errors as of `sweep`."""
    limit = None if disk is None else number("disk", disk, 1)
    chosen = Chosen(options, "sweep", (Text, Accuracy, Storage, Resize))
    text, accuracy = chosen.get(Text), chosen.get(Accuracy)
    storage, resize = chosen.get(Storage), chosen.get(Resize)
    grids = [grid] if isinstance(grid, Grid) else list(grid)
    if not grids or not all(isinstance(one, Grid) for one in grids):
        raise TypeError(f"grid: expected a styleid.study.Grid or several, got {grid!r}")
    if accuracy.seed is not None:
        grids = [replace(one, seed=accuracy.seed) if one.seed == (None,) else one for one in grids]
    places = {"contents": list_images(contents, "contents"), "styles": list_images(styles, "styles")}
    model = model or default_model()
    root = Path(os.fsdecode(folder))
    root.mkdir(parents=True, exist_ok=True)
    remove_abandoned(root)
    size = model.image_size if resize.size is None else resize.size
    (from_contents, from_styles), unreadable = read_images(root, places, size, resize.how)
    common = Common(text.prompt or "", text.negative, text.guidance, accuracy.refine, storage.dtype, storage.features)
    plan = make_plan(from_contents, from_styles, model, grids, common)
    return Study(root, model, plan, Manifest(root), storage, from_contents, from_styles, unreadable, limit)


def run_here(study: Study, progress: Progress) -> list[str]:
    """Carries out the plan in this process. Returns a line for each result that could not be made."""
    cache, failures = study.cache, dict[str, str]()

    @lru_cache(maxsize=2)  # the content and the style of the last result
    def inverted(task: Inverting) -> Inversion:
        try:
            return make_inversion(task, study.model, cache, study.storage.features)
        except (ValueError, MemoryError) as error:
            failures[task.key] = f"{printable(task.source.path)}: {error}"
            raise

    def make(result: Result, wait: bool) -> bool:
        """Whether the result is there or cannot be made; if not, another process is at it."""
        with study.manifest.lock(result.key, wait) as mine:
            if mine and study.manifest.finished(result.key) is None:
                try:
                    study.manifest.add(
                        *make_result(result, inverted(result.content), inverted(result.style), study.model)
                    )
                except (ValueError, MemoryError) as error:
                    if not failures.keys() & {result.content.key, result.style.key}:
                        failures[result.key] = f"{result.output}: {error}"
        return mine

    todo = [result for block in in_blocks(study.open(), study.size_of, cache.limit) for result in block]
    total = len({result.key for result in study.plan.results})
    done = total - len(todo)
    with reporter(progress, "sweep", "result") as report:
        if report and done:
            report(done, total)
        for wait in False, True:  # what other processes are making is waited for at the end
            rest = []
            for result in todo:
                if failures.keys() & {result.content.key, result.style.key} or make(result, wait):
                    done += 1
                    if report:
                        report(done, total)
                else:
                    rest.append(result)
            todo = rest
    return list(failures.values())


def finish(study: Study, failures: list[str], thumbnail: int = THUMBNAIL) -> list[Row]:
    """Tables of all that the folder's manifest has, and sheets of this sweep; its rows, or SweepIncomplete."""
    rows, by_label = [], dict[str, list[Row]]()
    for result in study.plan.results:
        row = study.manifest.finished(result.key)
        if row is not None:
            row = row | result.names  # the same images may have had other names
            rows.append(row)
            by_label.setdefault(result.label, []).append(row)
    keys = {row["key"] for row in rows}
    others = [row for row in study.manifest.all_finished() if row["key"] not in keys]
    table = rows + sorted(others, key=lambda row: (row["content"], row["style"], row["output"]))
    if table:
        write_table(study.root / "table.csv", table)
        write_parquet(study.root / "table.parquet", table)
    if thumbnail and rows:
        write_sheets(study.root, study.contents, study.styles, by_label, thumbnail)
    for line in study.unreadable:
        warnings.warn(f"left out: {line}", stacklevel=3)
    if missing := len(study.plan.results) - len(rows):
        lines = "\n".join(failures)
        raise SweepIncomplete(f"{missing} of {len(study.plan.results)} results could not be made\n{lines}")
    return rows
