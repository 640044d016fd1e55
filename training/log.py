"""The training log: one CSV row at a time, and a plot of it."""

import csv
from pathlib import Path


def append_row(path: Path, row: dict[str, float | str]) -> None:
    """Adds a row (and the header, to a new file)."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row.keys())
        if new:
            writer.writeheader()
        writer.writerow(row)


def plot(log: Path, columns: list[str], target: Path) -> None:
    """Draws the columns of a log against the step, one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with log.open() as file:
        rows = list(csv.DictReader(file))
    figure, axes = pyplot.subplots(1, len(columns), figsize=(4.2 * len(columns), 3.2), squeeze=False)
    for axis, column in zip(axes[0], columns):
        points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        axis.plot(*zip(*points))
        axis.set(xlabel="step", title=column)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(target, dpi=100)
    pyplot.close(figure)
