"""styleid figure: what `styleid.viz` draws, from images."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import styleid
from styleid import _core
from styleid.cli.arguments import EXECUTION, FILES, IMAGE, METHOD, OF_TRANSFER, PROMPTS, add_engine, add_output
from styleid.cli.common import check_inputs, load, open_image, show_progress
from styleid.cli.parser import (
    Command,
    Description,
    Group,
    Parser,
    add_commands,
    add_flag,
    add_options,
    arguments_of,
    parsing,
    read_options,
)
from styleid.files.disk import check_writable, write_whole
from styleid.inversions.inversion import Inversion
from styleid.method.calls import invert
from styleid.method.options import RECOMMENDED, Accuracy, Kept, Resize, Steps, Storage, Text, parse_numbers
from styleid.method.rates import PAPER, check_rate
from styleid.numbers import whole

SUFFIXES = ".png", ".pdf", ".svg"
COLUMNS = 4  # timesteps of a figure of queries, where none are given
OF_CALLS = *OF_TRANSFER, "negative", "guidance"  # fields of Text that no figure shows anything of


class Figure(NamedTuple):
    """One of the figures.

    Attributes:
        sentence, examples: as of a command's description
        keep: what the inversion of the content keeps, and that of the style, if the figure has one
        add: adds its own arguments to a group
        draw: makes it of `styleid.viz`, the options and the inversions
    """

    sentence: str
    examples: tuple[str, ...]
    keep: tuple[str, ...]
    add: Callable[[Group], None]
    draw: Callable[..., Any]


def _run(options: argparse.Namespace, figure: Figure) -> None:
    """styleid figure NAME CONTENT [STYLE] -o OUT"""
    viz = styleid.viz  # needs Matplotlib, and says so
    suffix = Path(options.output).suffix.lower() or SUFFIXES[0]
    if suffix not in SUFFIXES:
        raise ValueError(f"{options.output}: unknown figure format {suffix!r}; known are {', '.join(SUFFIXES)}")
    check_writable(options.output)
    paths = [options.content, options.style] if len(figure.keep) > 1 else [options.content]
    check_inputs(options, paths)
    settings = arguments_of(options, Steps) | {"layers": arguments_of(options, Kept)["layers"]}
    chosen = [read_options(options, kind) for kind in (Text, Storage, Accuracy, Resize)]
    images = [open_image(path) for path in paths]
    model = load(options)
    inversions = [
        invert(image, model, **settings, keep=keep, progress=show_progress(options), options=chosen)
        for image, keep in zip(images, figure.keep, strict=True)
    ]
    drawn = figure.draw(viz, options, *inversions)
    with write_whole(options.output) as file:
        drawn.savefig(file, format=suffix[1:], dpi=options.dpi)
    if not options.quiet:
        print(f"wrote {options.output}")


# ---- what is drawn ----


def _queries(viz: Any, options: argparse.Namespace, content: Inversion) -> Any:
    if options.timesteps is None:
        steps = np.linspace(0, content.steps - 1, min(COLUMNS, content.steps)).round().astype(int).tolist()
    else:
        steps = list(dict.fromkeys(_nearest(content, timestep) for timestep in options.timesteps))
    return viz.plot_queries(content, steps, content.layers, options.point)


def _logits(viz: Any, options: argparse.Namespace, content: Inversion, style: Inversion) -> Any:
    rates = {"gamma": options.gamma, "temperature": options.temperature}
    return viz.plot_logits(content, style, **rates, progress=show_progress(options))


def _ablation(viz: Any, options: argparse.Namespace, content: Inversion, style: Inversion) -> Any:
    return viz.plot_ablation(content, style, progress=show_progress(options))


def _inversion(viz: Any, options: argparse.Namespace, content: Inversion) -> Any:
    return viz.plot_inversion(content, options.columns)


def _grid(viz: Any, options: argparse.Namespace, content: Inversion, style: Inversion) -> Any:
    return viz.plot_grid(content, style, options.gamma, options.temperature, progress=show_progress(options))


def _attention(viz: Any, options: argparse.Namespace, content: Inversion, style: Inversion) -> Any:
    step = _nearest(content, options.timestep)
    return viz.plot_attention(content, style, step, content.layers[-1], options.point, options.temperature)


def _nearest(inversion: Inversion, timestep: int) -> int:
    """The step whose timestep is the nearest one."""
    return int(np.abs(inversion.timesteps - timestep).argmin())


# ---- arguments ----


def _add_queries(group: Group) -> None:
    add_flag(
        group,
        "--timesteps",
        metavar="T,T",
        type=parsing(lambda text: [_timestep(part) for part in text.split(",")]),
        help="the columns; of each the nearest timestep of the inversion is taken",
        unset=f"{COLUMNS} evenly spaced ones",
    )
    add_flag(
        group,
        "--point",
        metavar="ROW,COLUMN",
        type=parsing(_point),
        help="show how similar all queries are to the one at a point, given as fractions of the image from 0 to 1",
        unset="three principal components are shown as colours",
    )


def _add_logits(group: Group) -> None:
    add_flag(
        group,
        "--gamma",
        type=parsing(partial(_rate, "gamma")),
        help="how far the content's queries are preserved, 0 to 1",
        unset=f"{RECOMMENDED}{PAPER['gamma']}",
    )
    _add_temperature(group)


def _add_inversion(group: Group) -> None:
    _add_whole(group, "columns", 6, (2, 100), "how many latents are decoded")


def _add_grid(group: Group) -> None:
    for name, what, default in ("gamma", "rows", (0.3, 0.75, 1.0)), ("temperature", "columns", (1.0, 1.5, 2.0)):
        add_flag(
            group, f"--{name}", type=parsing(partial(_rates, name)), default=default, help=f"the {what}, with commas"
        )


def _add_attention(group: Group) -> None:
    add_flag(
        group,
        "--point",
        metavar="ROW,COLUMN",
        type=parsing(_point),
        default=(0.5, 0.5),
        help="the point of the content, given as fractions of the image from 0 to 1",
    )
    add_flag(
        group,
        "--timestep",
        metavar="T",
        type=parsing(_timestep),
        default=300,
        help="where the attention is shown; the nearest timestep of the inversions is taken",
    )
    _add_temperature(group)


def _add_temperature(group: Group) -> None:
    add_flag(
        group,
        "--temperature",
        type=parsing(partial(_rate, "temperature")),
        default=PAPER["temperature"],
        help="a factor of the attention's logits, above 0",
    )


def _add_whole(group: Group, name: str, default: int, limits: tuple[int, int], text: str) -> None:
    add_flag(
        group,
        f"--{name}",
        metavar="N",
        type=parsing(lambda number: whole(name, int(number), *limits)),
        default=default,
        help=f"{text}, {limits[0]} to {limits[1]}",
    )


def _timestep(text: str) -> int:
    return whole("timestep", int(text), 0, _core.TRAIN_STEPS - 1)


def _point(text: str) -> tuple[float, ...]:
    point = tuple(parse_numbers(text))
    if len(point) != 2 or not all(0 <= part <= 1 for part in point):
        raise ValueError(f"expected two numbers from 0 to 1 such as 0.5,0.25, got {text!r}")
    return point


def _rate(name: str, text: str) -> float:
    rate = float(text)
    check_rate(name, rate)
    return rate


def _rates(name: str, text: str) -> list[float]:
    return [_rate(name, part) for part in text.split(",")]


FIGURES = {
    "queries": Figure(
        "the queries of an image by layer and timestep, as in the paper's figure 2",
        (
            "styleid figure queries photo.jpg -o queries.png --layers 6,8,11",
            "styleid figure queries photo.jpg -o queries.pdf --timesteps 1,301,601 --point 0.5,0.25",
        ),
        ("query",),
        _add_queries,
        _queries,
    ),
    "logits": Figure(
        "how much the attention's logits vary with and without injection, as in the paper's figure 4",
        ("styleid figure logits photo.jpg painting.jpg -o logits.pdf --temperature 1.5",),
        ("query", "keys"),
        _add_logits,
        _logits,
    ),
    "ablation": Figure(
        "what each part of the method adds, as in the paper's figure 5",
        ("styleid figure ablation photo.jpg painting.jpg -o ablation.png",),
        ("query", "keys"),
        lambda group: None,
        _ablation,
    ),
    "inversion": Figure(
        "the latents of an inversion, decoded",
        ("styleid figure inversion photo.jpg -o inversion.png --columns 8",),
        ("none",),
        _add_inversion,
        _inversion,
    ),
    "grid": Figure(
        "results by gamma and temperature",
        ("styleid figure grid photo.jpg painting.jpg -o grid.png --gamma 0.3,0.6,0.9 --temperature 1,1.5",),
        ("query", "keys"),
        _add_grid,
        _grid,
    ),
    "attention": Figure(
        "where in the style a point of the content looks, in the last of --layers",
        ("styleid figure attention photo.jpg painting.jpg -o attention.png --point 0.3,0.7 --layers 8",),
        ("query", "keys"),
        _add_attention,
        _attention,
    ),
}


def _add_figure(figure: Figure, parser: Parser) -> None:
    """The arguments of one figure."""
    files = parser.group(FILES)
    files.add_argument("content", metavar="CONTENT", help=IMAGE)
    if len(figure.keep) > 1:
        files.add_argument("style", metavar="STYLE", help=IMAGE)
    add_output(parser, "the figure to write: .png, .pdf or .svg; PNG where there is no suffix")
    _add_whole(files, "dpi", 200, (10, 2400), "pixels per inch of a PNG")
    add_options(parser, FILES, Resize)
    figure.add(parser.group("figure"))
    add_options(parser, METHOD, Steps)
    if figure.keep != ("none",):
        add_options(parser, METHOD, Kept, leave_out=("keep",))
    add_options(parser, METHOD, Accuracy)
    add_options(parser, PROMPTS, Text, leave_out=OF_CALLS)
    add_engine(parser)
    add_options(parser, EXECUTION, Storage)


def _add_figures(parser: Parser) -> None:
    descriptions = {
        name: Description(f"draw {figure.sentence}", figure.examples, partial(_add_figure, figure))
        for name, figure in FIGURES.items()
    }
    commands: dict[str, Command] = {name: partial(_run, figure=figure) for name, figure in FIGURES.items()}
    add_commands(parser, "figures", "NAME", descriptions, commands)


FIGURE_DESCRIPTIONS = {
    "figure": Description(
        "draw a figure of the paper, or another one of the method (extra: styleid[viz])",
        (
            "styleid figure ablation photo.jpg painting.jpg -o ablation.png",
            "styleid figure queries photo.jpg -o queries.pdf --layers 6,8,11",
            "styleid figure grid photo.jpg painting.jpg -o grid.svg --gamma 0.3,0.6,0.9",
        ),
        _add_figures,
    )
}
