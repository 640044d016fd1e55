"""The arguments of studies' commands: sweep, evaluate, merge and reproduce."""

from __future__ import annotations

import argparse

from styleid.cli.arguments import OF_TRANSFER, Add, add_engine, add_options
from styleid.images import RESIZE
from styleid.method.options import Accuracy, Resize, Storage, Text
from styleid.study.grid import Grid
from styleid.study.sweeps import DISK, SHARED_DISK, THUMBNAIL


def add_sweep(command: argparse.ArgumentParser) -> None:
    """The arguments of styleid sweep."""
    command.add_argument("contents", metavar="CONTENTS", help="a folder of images, or one image")
    command.add_argument("styles", metavar="STYLES", help="a folder of images, or one image")
    command.add_argument("-o", "--output", metavar="DIR", required=True, help="the folder of the results")
    add_options(command, Grid)
    add_options(command, Text, leave_out=OF_TRANSFER)
    add_options(command, Resize)
    add_options(command, Accuracy, leave_out=("seed",))
    add_options(command, Storage)
    command.add_argument(
        "--thumbnail", type=int, default=THUMBNAIL, metavar="N",
        help=f"pixels of an image in the contact sheets; 0: no sheets ({THUMBNAIL})",
    )  # fmt: skip
    command.add_argument("--estimate", action="store_true", help="only print what it will cost on 1 to 512 workers")
    _add_cluster(command)
    add_engine(command)


def _add_cluster(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("by several machines")
    group.add_argument(
        "--cluster", metavar="WHERE",
        help="a Dask cluster: tcp://HOST:PORT, a scheduler file, or local[:N] for N workers here (this process alone)",
    )  # fmt: skip
    group.add_argument(
        "--disk", type=_gigabytes, metavar="GB",
        help="that inversions take at most: of this process, or of each worker of a cluster "
        f"({DISK / 1e9:.0f}), or in the --cache that its workers share ({SHARED_DISK / 1e9:.0f})",
    )  # fmt: skip


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """The arguments of styleid evaluate."""
    command.add_argument("results", metavar="RESULT", nargs="+", help="the result; or folders of a sweep's results")
    command.add_argument(
        "content", metavar="CONTENT", help="its content, which gets the result's size; or the folder of contents"
    )
    command.add_argument("style", metavar="STYLE", help="its style; or the folder of styles")
    command.add_argument(
        "--networks",
        action="store_true",
        help="also LPIPS and CFSD and, of folders, FID and ArtFID: PyTorch and weights",
    )
    command.add_argument("--weights", metavar="DIR", help="the folder of these weights (found or downloaded otherwise)")
    command.add_argument(
        "--fid",
        choices=("art", "inception"),
        default="art",
        help="the network: ArtFID's, as in the paper (art), or FID's",
    )
    command.add_argument("--resize", choices=RESIZE, default="crop", help="how the content gets its size (crop)")
    command.add_argument("-o", "--output", metavar="CSV", help="of folders: the table to write")
    command.add_argument("--pairs", metavar="CSV", help="of folders: a table to write with a row for every result")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def add_merge(command: argparse.ArgumentParser) -> None:
    """The arguments of styleid merge."""
    command.add_argument("folders", metavar="DIR", nargs="+", help="folders of sweeps' results")
    command.add_argument("-o", "--output", metavar="DIR", required=True, help="the folder that gets the results of all")


def add_reproduce(command: argparse.ArgumentParser) -> None:
    """The arguments of styleid reproduce."""
    command.add_argument("contents", metavar="CONTENTS", help="the folder of contents; the paper has 20")
    command.add_argument("styles", metavar="STYLES", help="the folder of styles; the paper has 40")
    command.add_argument("-o", "--output", metavar="DIR", required=True, help="the folder of the results")
    command.add_argument("--pairs", type=int, metavar="N", help="about N pairs of the first contents and styles (all)")
    command.add_argument(
        "--steps", type=int, default=50, metavar="N", help="DDIM steps; the paper's are 50 (default: 50)"
    )
    command.add_argument(
        "--no-networks",
        dest="networks",
        action="store_false",
        help="without LPIPS, FID and ArtFID, which need PyTorch and published weights",
    )
    command.add_argument("--weights", metavar="DIR", help="the folder of these weights (found or downloaded otherwise)")
    _add_cluster(command)
    add_engine(command)


def _gigabytes(text: str) -> float:
    """20: bytes of so many GB."""
    try:
        number = float(text) * 1e9
    except ValueError:
        number = 0
    if not number > 0:
        raise argparse.ArgumentTypeError(f"expected a number of gigabytes above 0, got {text!r}")
    return number


STUDY_ARGUMENTS: dict[str, tuple[str, Add]] = {
    "sweep": ("all contents with all styles and settings; goes on where it stopped", add_sweep),
    "evaluate": ("measures of a result, or of the paper's protocol", add_evaluate),
    "merge": ("several folders of results become one", add_merge),
    "reproduce": ("the paper's experiment, beside its published values", add_reproduce),
}
