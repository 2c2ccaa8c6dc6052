"""Cells of a table as text, read from a file: numbers, levels, or nothing."""

import csv
import decimal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
_FORBIDDEN = set(',:"\n')  # in names: they part the items of --columns


class Cells(NamedTuple):
    """Those of a file.

    Attributes:
        header: names of its columns.
        rows: one text a column each.
        places: of each row, for messages: the file, and the line in it.
    """

    header: list[str]
    rows: list[list[str]]
    places: list[tuple[str, int]]


def read(path: Path) -> Cells:
    """Those of a .csv file with a header; blank lines are no rows.

    Raises:
        ValueError: with the file, and the line of a row that is longer or shorter than
            the header; for a name that is empty, a number, or there twice.
        FileNotFoundError: if there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [
                (reader.line_num, [cell.strip() for cell in row])
                for row in reader
                if row
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no .csv file of UTF-8 text: {error}") from error
    if len(lines) < 2:
        raise ValueError(f"{path}: give a header and at least one row")
    header, *rows = (row for _, row in lines)
    places = [(f"{path} line", line) for line, _ in lines[1:]]
    if len(header) == 1 and set(header[0]) & set(";\t"):
        raise ValueError(
            f"{path}: its header is one cell, {header[0]!r}: part the cells by commas, "
            "and write numbers with a decimal point"
        )
    for name in header:
        if not name or number(name) is not None or _FORBIDDEN & set(name):
            raise ValueError(
                f"{path}: its first row holds {name!r}: give every column a "
                "name there, no number and without commas and colons"
            )
        if header.count(name) > 1:
            raise ValueError(f"{path}: two columns are named {name!r}: rename one")
    for row, (place, line) in zip(rows, places, strict=True):
        if len(row) != len(header):
            raise ValueError(
                f"{place} {line} has {len(row)} cells, the header {len(header)}"
            )
    return Cells(header, rows, places)


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
