"""Many transfers: all contents with all styles and all settings, to be stopped and continued at any time.

A folder of results holds one PNG for each, named by its settings and a hash of all it depends on; manifest.jsonl, one
line for each that is finished; inversions/, where every picture is inverted once; and at the end table.csv, with PyArrow
table.parquet, and contact sheets. What the manifest lists and is there unchanged is not made again. Several processes may
work in one folder: what one is making, the others wait for.
"""

import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from styleid._core import __version__
from styleid.files.disk import locked, remove_abandoned, write_whole
from styleid.images import Size, load_image
from styleid.inversions.cache import Cache, key_of
from styleid.inversions.inversion import Inversion
from styleid.method.calls import inject_styles, invert
from styleid.method.initial import NAMES
from styleid.method.options import Start, Storage, Text
from styleid.method.rates import PAPER, parse_rate, per_step_and_layer
from styleid.metrics import evaluate
from styleid.models.loading import default_model
from styleid.models.model import Model
from styleid.progress import Progress, reporter

Row = dict[str, Any]  # of the manifest: content, style, the settings, output, sha256 of its file, measures

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
THUMBNAIL, LABEL = 128, 14  # pixels
ROWS_A_SHEET = 40


def sweep(
    contents: Iterable[str | os.PathLike[str]],
    styles: Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    model: Model | None = None,
    *,
    gamma: Sequence[float | str] = (),
    temperature: Sequence[float | str] = (),
    initial: Sequence[str] = ("adain",),
    steps: int = 50,
    schedule: str = "paper",
    layers: Iterable[int] | None = None,
    size: Size | None = None,
    resize: str = "crop",
    prompt: str = "",
    negative_prompt: str = "",
    guidance: float = 1.0,
    inject: bool | str = True,
    features: str = "memory",
    progress: Progress = False,
) -> list[Row]:
    """Transfers with every combination of the given contents, styles, gammas, temperatures and initial latents.

    Args:
        contents, styles: picture files; or folders, for all pictures directly in them
        folder: where results go; what an earlier sweep finished there, of these settings, is kept
        gamma, temperature: numbers (none: what the model recommends, else the paper's), or schedules as `parse_rate` reads them, such as "0.9:0.5:cosine"
        initial: names as for `inject_styles`
        steps, schedule, layers: as for `invert`
        size, resize: of all pictures, as for `load_image`; None: the model's
        prompt: of the inversions and the sampling
        negative_prompt, guidance, inject: as for `inject_styles`
        features: where they are kept, as for `invert`; the results are the same
        progress: over all results; True for a bar, or a function that is called with (results, total)

    Returns:
        a dictionary for every result, in the table's order

    Raises:
        ValueError: no pictures, or as in `invert` and `inject_styles`
        OSError: a file cannot be read or written
    """
    model = model or default_model()
    recommended: Row = PAPER | model.recommended
    gammas = _checked("gamma", gamma or [recommended["gamma"]], steps, model)
    temperatures = _checked("temperature", temperature or [recommended["temperature"]], steps, model)
    if unknown := set(initial) - set(NAMES):
        raise ValueError(f"initial: expected some of {list(NAMES)}, got {min(unknown)!r}")
    chosen = None if layers is None else tuple(layers)
    from_contents, from_styles = list_pictures(contents, "contents"), list_pictures(styles, "styles")
    keep = dict.fromkeys(from_contents, "query") | dict.fromkeys(from_styles, "keys")
    keep |= dict.fromkeys(set(from_contents) & set(from_styles), "both")
    jobs = list(product(from_contents, from_styles, gammas, temperatures, initial))
    pictures = {
        path: load_image(path, model.image_size if size is None else size, resize) for job in jobs for path in job[:2]
    }
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    remove_abandoned(root)
    store = Cache(root / "inversions", limit=sys.maxsize)  # dropping one would mean to invert that picture twice
    manifest = Manifest(root)

    @lru_cache(maxsize=2)  # the content and the style of the last result
    def inverted(path: Path) -> Inversion:
        kept = [Text(prompt), Storage(features, cache=store)]
        return invert(
            pictures[path], model, steps=steps, schedule=schedule, layers=chosen, keep=keep[path], options=kept
        )

    sampled: Row = {"prompt": prompt, "negative_prompt": negative_prompt, "guidance": guidance, "inject": inject}

    def make(content: Path, style: Path, settings: Row) -> tuple[Row, NDArray[np.uint8]]:
        sources = inverted(content), inverted(style)
        rates = parse_rate(settings["gamma"]), parse_rate(settings["temperature"])
        told = [Text(prompt, negative_prompt, guidance), Start(settings["initial"])]
        picture = inject_styles(*sources, model, gamma=rates[0], temperature=rates[1], inject=inject, options=told)
        made_by = {"layers": ",".join(map(str, sources[0].layers)), "model": model.fingerprint, "version": __version__}
        return made_by | evaluate(picture, pictures[content], pictures[style]), picture

    def result(content: Path, style: Path, gamma: str, temperature: str, initial: str) -> Row:
        settings: Row = {"gamma": gamma, "temperature": temperature, "initial": initial}
        settings |= {"steps": steps, "schedule": schedule, **sampled}
        depends_on = settings | {"layers": chosen, "style": key_of(pictures[style], model, {})}
        key = key_of(pictures[content], model, depends_on)
        names = {"content": str(content), "style": str(style)}
        with locked(root / f".{key}.lock"):
            row = manifest.finished(key)
            if row is None:
                made, picture = make(content, style, settings)
                row = manifest.add({"key": key, **names, **settings, **made}, picture)
        return row | names  # the same pictures may have had other names

    rows = []
    with reporter(progress, "sweep") as report:
        for number, job in enumerate(jobs, 1):
            rows.append(result(*job))
            if report:
                report(number, len(jobs))
    write_table(root / "table.csv", rows)
    _write_parquet(root / "table.parquet", rows)
    _write_sheets(root, rows, pictures)
    return rows


def _checked(name: str, rates: Sequence[float | str], steps: int, model: Model) -> list[str]:
    """The rates as text in one spelling; ValueError now if one would fail later."""
    texts = [rate if isinstance(rate, str) and ":" in rate else f"{float(rate):g}" for rate in rates]
    for text in texts:
        per_step_and_layer(name, parse_rate(text), steps, model.layer_count)
    return texts


def list_pictures(paths: Iterable[str | os.PathLike[str]], name: str) -> list[Path]:
    """The given files, and the pictures in the given folders by name. ValueError if there are none."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        found += inside
    if not found:
        raise ValueError(f"{name}: expected at least one picture, found none")
    return found


class Manifest:
    """The finished results of a folder: a JSON object a line, each written after its picture is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "manifest.jsonl"
        self._rows: dict[str, Row] = {}
        self._read = 0  # bytes of the file
        self._read_on()

    def _read_on(self) -> None:
        """Takes in what has been added, by whatever process."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._read)
            text, _, _ = file.read().rpartition(b"\n")  # after it: what is being written
        self._read += len(text)
        for line in text.splitlines():
            try:
                row = json.loads(line)
                self._rows[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                continue  # the line that was being written when a process was killed: its picture is made again

    def finished(self, key: str) -> Row | None:
        """The row of a result that is there, with the very file that was written."""
        if key not in self._rows:
            self._read_on()
        row = self._rows.get(key)
        if row is None:
            return None
        output = self.folder / str(row.get("output"))
        return row if output.is_file() and _sha256(output.read_bytes()) == row.get("sha256") else None

    def all_finished(self) -> list[Row]:
        """The rows of all results that are there."""
        return [row for key in self._rows if (row := self.finished(key))]

    def add(self, row: Row, picture: NDArray[np.uint8]) -> Row:
        """Writes the picture, with the row as its PNG text, then the row's line. Returns the row with the file's name and hash."""
        stems = [Path(row[which]).stem for which in ("content", "style")]
        settings = [f"{which}{row[which]}".replace(":", "-") for which in ("gamma", "temperature")]
        row = row | {"output": "_".join([*stems, *settings, row["initial"], row["key"][:8]]) + ".png"}
        text = PngInfo()
        text.add_text("styleid", json.dumps(row))
        data = io.BytesIO()
        Image.fromarray(picture).save(data, format="PNG", pnginfo=text)
        with write_whole(self.folder / row["output"]) as file:
            file.write(data.getvalue())
        row["sha256"] = _sha256(data.getvalue())
        line = json.dumps(row).encode() + b"\n"
        with open(self.path, "a+b", buffering=0) as manifest:
            manifest.seek(max(0, manifest.seek(0, os.SEEK_END) - 1))
            if manifest.read(1) not in (b"", b"\n"):
                line = b"\n" + line  # after half a line
            manifest.write(line)  # in one piece, so that lines of several processes do not mix
        self._rows[row["key"]] = row
        return row


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_table(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """Rows of the same keys as CSV, whole or not at all."""
    with write_whole(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        table = csv.DictWriter(text, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
        text.flush()
        text.detach()  # or else it would close the file


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """The same as Parquet, where PyArrow is installed."""
    try:
        from pyarrow import Table, parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return
    with write_whole(path) as file:
        parquet.write_table(Table.from_pylist(list(rows)), file)


def _write_sheets(folder: Path, rows: Sequence[Row], pictures: Mapping[Path, NDArray[np.uint8]]) -> None:
    """Contact sheets, contact-01.png and so on: a row for each pair, with its content, its style and all results."""
    by_pair: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_pair.setdefault((row["content"], row["style"]), []).append(row)
    pairs = list(by_pair.items())
    for number, first in enumerate(range(0, len(pairs), ROWS_A_SHEET), 1):
        part = pairs[first : first + ROWS_A_SHEET]
        columns = 2 + max(len(results) for _, results in part)
        sheet = Image.new("RGB", (columns * THUMBNAIL, LABEL + len(part) * THUMBNAIL), "white")
        draw = ImageDraw.Draw(sheet)
        labels = ["content", "style", *(_label(row) for row in part[0][1])]
        for column, label in enumerate(labels):
            draw.text((column * THUMBNAIL + 2, 1), label, "black")
        for line, ((content, style), results) in enumerate(part):
            images = [Image.fromarray(pictures[Path(path)]) for path in (content, style)]
            images += [Image.open(folder / row["output"]) for row in results]
            for column, image in enumerate(images):
                image.thumbnail((THUMBNAIL, THUMBNAIL))
                sheet.paste(image, (column * THUMBNAIL, LABEL + line * THUMBNAIL))
        with write_whole(folder / f"contact-{number:02}.png") as file:
            sheet.save(file, format="PNG")


def _label(row: Row) -> str:
    """What of a result's settings fits over its thumbnail."""
    start = "" if row["initial"] == "adain" else f" {row['initial'][:5]}"
    return f"g {row['gamma']}  T {row['temperature']}{start}"
