"""The `progress` argument: off, a bar with the remaining time, or the caller's own function."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]

Report = Callable[[int, int], object] | None
Progress = bool | Report


@contextmanager
def reporter(progress: Progress, description: str) -> Iterator[Report]:
    """What the engine is to call with (step, total): None, the caller's function, or one that moves a bar."""
    if callable(progress):
        yield progress
    elif progress is True:
        with tqdm(desc=description, unit="step") as bar:

            def move(step: int, total: int) -> None:
                bar.total = total
                bar.update(step - bar.n)

            yield move
    elif progress is False or progress is None:
        yield None
    else:
        raise TypeError(f"progress: expected True, False or a function of (step, total), got {progress!r}")


def part(report: Report, before: int, total: int, weight: int = 1) -> Report:
    """The progress of a run that is one part of a longer one: `before` steps of `total` came before it, and each of its
    own counts as `weight`."""
    if report is None:
        return None
    return lambda step, _: report(before + weight * step, total)
