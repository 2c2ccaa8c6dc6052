"""Cells of a table as text: a number, one of several levels, or nothing."""

import decimal
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}


def are_there(texts: Sequence[str]) -> Bool[np.ndarray, " N"]:
    """Where a cell is none of `MISSING`."""
    return np.array([text.lower() not in MISSING for text in texts])


def number(text: str) -> float | None:
    """None where a cell is no number. Python reads 1_11, as 111, and a signed NaN."""
    try:
        value = float(text)
    except ValueError:
        return None
    return None if "_" in text or np.isnan(value) else value


def exact(text: str) -> decimal.Decimal | None:
    """As `number`, with all digits, of which a float loses some."""
    if number(text) is None:
        return None
    try:
        return decimal.Decimal(text)
    except decimal.InvalidOperation:  # an exponent of very many digits
        return None


def among(levels: Sequence[str], texts: Sequence[str]) -> list[int | None]:
    """The place of each text among the levels, if it is one."""
    numbers = [exact(level) for level in levels]
    if None in numbers:
        places = {level: k for k, level in enumerate(levels)}
        return [places.get(text) for text in texts]
    of_numbers = {value: k for k, value in enumerate(numbers)}
    return [of_numbers.get(exact(text)) for text in texts]


def shortest(value: Any) -> str:
    """The shortest text that its type reads as the same number."""
    if isinstance(value, np.integer):
        return str(value)
    in_digits = value == 0 or 1e-4 <= abs(value) < 1e16
    written = np.format_float_positional if in_digits else np.format_float_scientific
    return written(value, trim="-")
