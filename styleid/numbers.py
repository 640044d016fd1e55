"""Checks numbers as users give them: Python's, NumPy's, arrays without dimensions, fractions and decimals."""

import operator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np


def number(name: str, value: Any, least: float = -np.inf, most: float = np.inf) -> float:
    """A finite number in [least, most] as a float. Raises a TypeError or ValueError that begins with the argument's name.

    Truth values and texts are no numbers.
    """
    plain = value.item() if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0 else value
    if isinstance(plain, bool) or not isinstance(plain, (int, float, Fraction, Decimal, np.floating)):
        raise TypeError(f"{name}: expected a number, got {_described(value)}")
    try:
        result = float(plain)
    except (OverflowError, ValueError):  # an integer beyond a float's range, a signalling NaN
        result = np.nan
    if not np.isfinite(result) or not least <= result <= most:
        raise ValueError(f"{name}: expected a number{_range(least, most)}, got {_described(value)}")
    return result


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number from least to most as an int: Python's or NumPy's. TypeError or ValueError as `number`."""
    plain = value.item() if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0 else value
    try:
        if isinstance(plain, bool):
            raise TypeError
        result = operator.index(plain)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {_described(value)}") from None
    if not least <= result <= most:
        raise ValueError(f"{name}: expected {least} to {most}, got {_described(value)}")
    return result


def _described(value: Any) -> str:
    """A value for an error message, with its type, which tells 2 from "2" and from 2.0."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "one of too many digits"
    return f"{text[:80]} ({type(value).__name__})"


def _range(least: float, most: float) -> str:
    if least == -np.inf and most == np.inf:
        return ""
    return f" from {least:g} on" if most == np.inf else f" from {least:g} to {most:g}"
