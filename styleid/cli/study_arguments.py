"""The arguments of studies' commands: sweep, evaluate, merge and reproduce."""

from __future__ import annotations

import argparse

from styleid.cli.arguments import EXECUTION, FILES, METHOD, OF_TRANSFER, PROMPTS, add_engine
from styleid.cli.parser import Description, Parser, add_flag, add_options
from styleid.images import RESIZE
from styleid.method.options import Accuracy, Resize, Storage, Text
from styleid.study.grid import Grid
from styleid.study.reproduction import STEPS
from styleid.study.sweeps import DISK, SHARED_DISK, THUMBNAIL

GRID = "method (every combination of the values is computed)"
MEASURES = "measures"


def _add_sweep(parser: Parser) -> None:
    _add_folders(parser, "a folder of images, or one image", "a folder of images, or one image")
    add_flag(
        parser.group(FILES),
        "--thumbnail",
        type=int,
        default=THUMBNAIL,
        metavar="N",
        help="the size of an image in the contact sheets, in pixels; 0: no sheets",
    )
    add_options(parser, FILES, Resize)
    add_options(parser, GRID, Grid)
    add_options(parser, GRID, Accuracy, leave_out=("seed",))
    add_options(parser, PROMPTS, Text, leave_out=OF_TRANSFER)
    add_engine(parser, "; all: every GPU of this machine")
    add_options(parser, EXECUTION, Storage)
    _add_cluster(parser)
    parser.group(EXECUTION).add_argument(
        "--estimate", action="store_true", help="compute nothing; print what the sweep costs on 1 to 512 workers"
    )


def _add_folders(parser: Parser, contents: str, styles: str) -> None:
    files = parser.group(FILES)
    files.add_argument("contents", metavar="CONTENTS", help=contents)
    files.add_argument("styles", metavar="STYLES", help=styles)
    files.add_argument("-o", "--output", metavar="DIR", required=True, help="the folder of the results")


def _add_cluster(parser: Parser) -> None:
    execution = parser.group(EXECUTION)
    add_flag(
        execution,
        "--cluster",
        metavar="WHERE",
        help="a Dask cluster that computes: tcp://HOST:PORT, a scheduler file, or local[:N] for N workers here",
        unset="this process alone",
    )
    add_flag(
        execution,
        "--disk",
        type=_gigabytes,
        metavar="GB",
        help="the most that inversions take on the disk of this process or of each worker, or in the --cache that workers share",
        unset=f"{DISK / 1e9:.0f}, and {SHARED_DISK / 1e9:.0f} in a shared cache",
    )


def _add_evaluate(parser: Parser) -> None:
    files = parser.group(FILES)
    files.add_argument("results", metavar="RESULT", nargs="+", help="a result, or folders of results")
    files.add_argument(
        "content",
        metavar="CONTENT",
        help="the result's content, which gets the result's size; or the folder of contents",
    )
    files.add_argument("style", metavar="STYLE", help="the result's style; or the folder of styles")
    add_flag(files, "-o", "--output", metavar="CSV", help="for folders: the table to write, a row for each setting")
    add_flag(files, "--pairs", metavar="CSV", help="for folders: a table to write, with a row for each result")
    add_flag(files, "--resize", choices=RESIZE, default="crop", help="how the content gets the result's size")
    measures = parser.group(MEASURES)
    measures.add_argument(
        "--networks",
        action="store_true",
        help="measure also LPIPS and CFSD, and for folders FID and ArtFID; needs PyTorch and published weights",
    )
    _add_weights(parser)
    add_flag(
        measures,
        "--fid",
        choices=("art", "inception"),
        default="art",
        help="the network of FID: art is ArtFID's, as in the paper; inception is FID's own",
    )
    parser.group(EXECUTION).add_argument("--quiet", action="store_true", help="show no progress bar")


def _add_weights(parser: Parser) -> None:
    add_flag(
        parser.group(MEASURES),
        "--weights",
        metavar="DIR",
        help="the folder of the measures' published weights",
        unset="found in caches of this machine, else downloaded",
    )


def _add_merge(parser: Parser) -> None:
    files = parser.group(FILES)
    files.add_argument("folders", metavar="DIR", nargs="+", help="folders of sweeps' results")
    files.add_argument(
        "-o", "--output", metavar="DIR", required=True, help="the folder that gets the results of all of them"
    )


def _add_reproduce(parser: Parser) -> None:
    _add_folders(parser, "the folder of contents; the paper has 20", "the folder of styles; the paper has 40")
    add_flag(
        parser.group(METHOD),
        "--pairs",
        type=int,
        metavar="N",
        help="about how many pairs are made, of the first contents and styles; for trials",
        unset="all",
    )
    add_flag(
        parser.group(METHOD),
        "--steps",
        type=int,
        default=STEPS,
        metavar="N",
        help=f"DDIM steps; fewer than the paper's {STEPS} are for trials",
    )
    parser.group(MEASURES).add_argument(
        "--no-networks",
        dest="networks",
        action="store_false",
        help="leave out LPIPS, CFSD, FID and ArtFID, which need PyTorch and published weights",
    )
    _add_weights(parser)
    add_engine(parser)
    _add_cluster(parser)


def _gigabytes(text: str) -> float:
    """Reads a number of gigabytes, as bytes."""
    try:
        number = float(text) * 1e9
    except ValueError:
        number = 0
    if not number > 0:
        raise argparse.ArgumentTypeError(f"expected a number of gigabytes above 0, got {text!r}")
    return number


STUDY_DESCRIPTIONS = {
    "sweep": Description(
        "make all contents in all styles with all settings; it goes on where it stopped",
        (
            "styleid sweep photos paintings -o results --gamma 0.3,0.75 --temperature 1,1.5",
            "styleid sweep photos paintings -o results --layers 6-11/9-11 --adain on,off --estimate",
            "styleid sweep photos paintings -o results --gamma 0.3,0.9:0.5:cosine --cluster tcp://scheduler:8786",
        ),
        _add_sweep,
    ),
    "evaluate": Description(
        "measure a result, or folders of results by the paper's protocol",
        (
            "styleid evaluate stylized.png photo.jpg painting.jpg",
            "styleid evaluate results photos paintings --networks -o table.csv --pairs pairs.csv",
        ),
        _add_evaluate,
    ),
    "merge": Description(
        "merge several folders of results into one",
        ("styleid merge results-1 results-2 -o results", "styleid merge results-* -o results"),
        _add_merge,
    ),
    "reproduce": Description(
        "run the paper's experiment, and put its results beside the published values",
        (
            "styleid reproduce photos paintings -o paper --model sd-v1-4.ckpt",
            "styleid reproduce photos paintings -o trial --pairs 6 --steps 10 --no-networks",
        ),
        _add_reproduce,
    ),
}
