"""gamma and temperature as functions of the step and the layer.

Kulkarni, Scheduled Style Injection (arXiv 2605.26538): a gamma that decreases over the sampling, or from the lower to the
upper decoder layers, trades content for style better than a constant one; over the steps a cosine or a square root
does better than a straight line.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from styleid.numbers import number

Rate = ArrayLike | Callable[[float, int], float]
LayersByStep = Iterable[int] | NDArray[np.bool_] | Callable[[float, int], object]

PAPER = {"gamma": 0.75, "temperature": 1.5}
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda p: p,
    "cosine": lambda p: (1 - math.cos(math.pi * p)) / 2,
    "sqrt": math.sqrt,
}


def decreasing(
    start: float, end: float, shape: str = "linear", layers: tuple[int, int] | None = None
) -> Callable[[float, int], float]:
    r"""A gamma or temperature that goes from `start` down to `end`:

    $$\mathrm{start} + (\mathrm{end} - \mathrm{start}) w(p)$$

    with $w(p) = p$ for the `shape` "linear", $w(p) = (1 - \cos \pi p) / 2$ for "cosine" and $w(p) = \sqrt{p}$ for "sqrt".
    p is the fraction of the sampling that is done, 0 at the largest timestep and 1 at the smallest; with `layers` =
    (first, last) it is the layer's place between these two, both included, and the same at all steps.

    >>> gamma = decreasing(0.9, 0.5, "cosine")
    >>> gamma(0.0, 6), round(gamma(0.5, 6), 3), gamma(1.0, 6)
    (0.9, 0.7, 0.5)

    Raises:
        ValueError: an unknown shape, start below end, or layers that do not ascend
    """
    if shape not in SHAPES:
        raise ValueError(f"shape: expected one of {list(SHAPES)}, got {shape!r}")
    if not start >= end:
        raise ValueError(f"start: expected at least end, which is {end}, got {start}")
    if layers is not None and not layers[0] < layers[1]:
        raise ValueError(f"layers: expected a first and a higher last one, got {layers}")

    def rate(fraction: float, layer: int) -> float:
        if layers is not None:
            first, last = layers
            fraction = min(max((layer - first) / (last - first), 0.0), 1.0)
        return start + (end - start) * SHAPES[shape](fraction)

    return rate


def parse_rate(text: str) -> Rate:
    """A rate as the command line writes it: "0.75", or "0.9:0.5:cosine" for `decreasing(0.9, 0.5, "cosine")`."""
    start, *rest = text.split(":")
    if not rest:
        return float(start)
    return decreasing(float(start), float(rest[0]), ":".join(rest[1:]) or "linear")


def per_step_and_layer(name: str, value: Rate, steps: int, layers: int) -> NDArray[np.float32]:
    """gamma or temperature as (steps, layers), by the inversion's ascending timesteps and all decoder layers.

    Args:
        name: "gamma" (0 to 1) or "temperature" (above 0)
        value: a number; an array of steps x layers, either of which may be 1; or a function of (fraction, layer), where
            fraction goes from 1 at the first timestep, which is sampled last, to 0 at the last one

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected
    """
    if callable(value):
        value = [[value(1 - step / (steps - 1), layer) for layer in range(layers)] for step in range(steps)]
    array = _numbers(name, value)
    shape = (steps, layers)
    if array.ndim:
        _check_shape(name, array, shape)
    return np.ascontiguousarray(np.broadcast_to(array, shape))


def check_rate(name: str, value: Rate) -> None:
    """TypeError or ValueError for what `per_step_and_layer` will not take, as far as that is known without a model."""
    if not callable(value):
        _numbers(name, value)


def _numbers(name: str, value: Any) -> NDArray[np.float32]:
    expected = "expected a number, an array of numbers or a function that gives one"
    try:
        given = np.asarray(value)
    except ValueError:  # rows of different lengths
        raise TypeError(f"{name}: {expected}, got {value!r}") from None
    if given.dtype == object and given.size:  # fractions and decimals
        given = np.array([number(name, item) for item in given.flat]).reshape(given.shape)
    if given.dtype.kind not in "fiu":
        raise TypeError(f"{name}: {expected}, got {value!r}")
    with np.errstate(all="ignore"):  # what float32 does not hold becomes 0 or infinity; neither is a temperature
        array = given.astype(np.float32)
        fits = (array >= 0) & (array <= 1) if name == "gamma" else (array > 0) & np.isfinite(array)
    if not fits.all():
        wanted = "0 to 1" if name == "gamma" else "numbers above 0"
        raise ValueError(f"{name}: expected {wanted}, got {given[~fits].flat[0] if given.ndim else given}")
    return array


def layers_by_step(
    layers: LayersByStep | None, allowed: Sequence[int], steps: int, count: int
) -> tuple[Iterable[int] | None, NDArray[np.uint8] | None]:
    """Which layers are injected at any step, and at which steps: (steps, count), by ascending timesteps and decoder layers.

    Args:
        layers: numbers, or None: as they are, at all steps; a bool array that broadcasts to (steps, count); or a function
            of (fraction, layer), with fractions as for `per_step_and_layer`, which is asked about the allowed layers
    """
    if callable(layers):
        where = np.zeros((steps, count), np.uint8)
        for step in range(steps):
            for layer in allowed:
                where[step, layer] = bool(layers(1 - step / (steps - 1), layer))
    elif isinstance(layers, np.ndarray) and layers.dtype == np.bool_:
        _check_shape("layers", layers, (steps, count))
        where = np.ascontiguousarray(np.broadcast_to(layers, (steps, count)), dtype=np.uint8)
    else:
        return layers, None
    return np.flatnonzero(where.any(axis=0)).tolist(), where


def _check_shape(name: str, array: NDArray[Any], shape: tuple[int, int]) -> None:
    if array.ndim != 2 or any(n not in (1, of) for n, of in zip(array.shape, shape, strict=True)):
        raise ValueError(
            f"{name}: expected an array of steps x decoder layers, {shape}, either of which may be 1; "
            f"got the shape {array.shape}"
        )
