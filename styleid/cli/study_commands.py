"""What the commands of studies do."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from styleid.cli.common import load, show_progress
from styleid.cli.gpus import ALL, run_on_every_gpu
from styleid.cli.parser import read_options
from styleid.images import load_image
from styleid.method.options import Accuracy, Resize, Storage, Text
from styleid.metrics import evaluate
from styleid.progress import reporter
from styleid.study.grid import Grid
from styleid.study.manifest import write_table
from styleid.study.merging import merge
from styleid.study.protocol import evaluate_results, table_text
from styleid.study.reproduction import reproduce, reproduction_text
from styleid.study.sweeps import finish, prepare, run_here

TABLES = (
    f"table.csv {'and table.parquet' if find_spec('pyarrow') else '(and, where PyArrow is installed, table.parquet)'}"
)


def run_sweep(options: argparse.Namespace) -> None:
    """styleid sweep CONTENTS STYLES -o DIR"""
    if options.device == ALL:
        run_on_every_gpu(options.words)
        return
    chosen = [read_options(options, kind) for kind in (Text, Resize, Accuracy, Storage)]
    grid = read_options(options, Grid)
    study = prepare(options.contents, options.styles, options.output, load(options), grid, chosen, options.disk)
    if options.estimate:
        from styleid.study.estimate import estimate_text

        print(estimate_text(study))
        return
    if options.cluster is None:
        failures, summary = run_here(study, show_progress(options)), ""
    else:
        from styleid.study.cluster import run_on_cluster

        with reporter(show_progress(options), "sweep") as report:
            failures, timings = run_on_cluster(study, options.cluster, report)
        summary = str(timings)
    try:
        rows = finish(study, failures, options.thumbnail)
    finally:
        if summary and not options.quiet:
            print(summary, file=sys.stderr)
    print(f"{len(rows)} images in {options.output}, listed in {TABLES}")


def run_evaluate(options: argparse.Namespace) -> None:
    """styleid evaluate RESULT... CONTENT STYLE: three images, or folders"""
    networks = options.networks or options.weights is not None
    if len(options.results) > 1 or Path(options.results[0]).is_dir():
        found = evaluate_results(
            options.results, options.content, options.style, networks=networks, weights=options.weights,
            kind=options.fid, progress=show_progress(options),
        )  # fmt: skip
        print(table_text(found.table))
        for path, rows in ((options.output, found.table), (options.pairs, found.pairs)):
            if path:
                write_table(path, rows)
        return
    stylized = load_image(options.results[0])
    content = load_image(options.content, stylized.shape[:2], options.resize)
    for name, value in evaluate(stylized, content, load_image(options.style), networks, options.weights).items():
        print(f"{name} {value:.6g}")


def run_merge(options: argparse.Namespace) -> None:
    """styleid merge DIR... -o DIR"""
    rows = merge(options.folders, options.output)
    print(f"{len(rows)} images in {options.output}, listed in {TABLES}")


def run_reproduce(options: argparse.Namespace) -> None:
    """styleid reproduce CONTENTS STYLES -o DIR"""
    model = load(options)
    table = reproduce(
        options.contents,
        options.styles,
        options.output,
        model,
        pairs=options.pairs,
        steps=options.steps,
        networks=options.networks,
        weights=options.weights,
        progress=show_progress(options),
        cluster=options.cluster,
        disk=options.disk,
    )
    print(reproduction_text(table, model, options.steps))
    print(f"written to {options.output}: reproduction.csv, reproduction.txt and reproduction.png")
