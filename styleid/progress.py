"""The `progress` argument: off, a bar with the remaining time, or the caller's own function."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

Report = Callable[[int, int], object] | None
Progress = bool | Report  # None: a bar where a person looks


@contextmanager
def reporter(progress: Progress, description: str, unit: str = "evaluation") -> Iterator[Report]:
    """The function that the engine calls with (step, total): None, the caller's, or one that moves a bar, which counts
    `unit`s. A progress of None is a bar in a terminal or a notebook, and nothing elsewhere."""
    if progress is None:
        progress = _watched()
    if callable(progress):
        yield progress
    elif isinstance(progress, (bool, np.bool_)) and progress:
        with bars()(desc=description, unit=unit) as bar:

            def move(step: int, total: int) -> None:
                if bar.total != total and not bar.disable:
                    start = bar.start_t
                    bar.reset(total)  # a notebook's bar that is not told so is full from the first step
                    bar.start_t = start
                bar.update(step - bar.n)

            yield move
    elif isinstance(progress, (bool, np.bool_)):
        yield None
    else:
        raise TypeError(f"progress: expected True, False or a function of (step, total), got {progress!r}")


def part(report: Report, before: int, total: int, weight: int = 1) -> Report:
    """The progress of a run that is a part of a longer one: `before` steps of `total` came before it, and each of its own
    steps counts as `weight`."""
    if report is None:
        return None
    return lambda step, _: report(before + weight * step, total)


def _watched() -> bool:
    """Whether a person sees what is written to stderr: it is a terminal, or that of a Jupyter kernel."""
    shell = sys.modules["IPython"].get_ipython() if hasattr(sys.modules.get("IPython"), "get_ipython") else None
    if "IPKernelApp" in getattr(shell, "config", ()):
        return True
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


@lru_cache(maxsize=1)
def bars() -> Any:
    """tqdm's bars, for a notebook or a terminal. tqdm is imported when the first bar is made. A notebook without ipywidgets
    gets a terminal's bar, without the warning that tqdm gives there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]
    return tqdm
