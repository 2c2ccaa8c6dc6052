"""A table's columns as --columns writes them, with what its training rows say of them.

A run writes NAME:FAMILY:NUMBER:... of every column, so that its flags alone rebuild the
model (`densities.table_columns`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from vae_jax import tables
from vae_jax.data import csv_tables


def said(texts: Sequence[str]) -> Mapping[str, str]:
    """The family of each column that --columns names.

    Raises:
        ValueError: for an item that is no NAME:FAMILY.
    """
    families = {}
    for text in texts:
        name, *rest = text.split(":")
        if not name or not rest:
            raise ValueError(f"--columns={text}: write NAME:FAMILY, such as age:normal")
        families[name] = rest[0]
    return families


def fitted(
    texts: Sequence[str], columns: Sequence[csv_tables.Column], train: np.ndarray
) -> tuple[str, ...]:
    """Every column of a table, with numbers: those that are there, else of the rows.

    Args:
        texts: of --columns; those that a run wrote have numbers.
        columns: all of the table's.
        train: training rows [N, D] of those that x is made of.

    Raises:
        ValueError: as `tables.fit`, with the column.
    """
    written = {text.partition(":")[0]: text for text in texts if text.count(":") > 1}
    results, place = [], 0
    for column in columns:
        text = f"{column.name}:{column.family}"
        if column.family in tables.FAMILIES:
            text = written.get(column.name) or _with_numbers(column, train[:, place])
            place += 1
        results.append(text)
    return tuple(results)


def lines(
    columns: Sequence[csv_tables.Column], train: np.ndarray, *, by_family: bool
) -> list[str]:
    """What each column is, as a table of text.

    Args:
        columns: all of the table's.
        train: training rows [N, D] of those that x is made of.
        by_family: whether the likelihood reads each of these by its family; else all
            are numbers to it.
    """
    results, place = [], 0
    for column in columns:
        of_x, levels = column.family in tables.FAMILIES, ""
        kind = column.family if by_family or not of_x else "numbers"
        if column.levels:
            levels = f" of {len(column.levels)}: {csv_tables.listed(column.levels)}"
            if kind == "numbers":
                kind, levels = "levels", f"{levels}, read as numbers 0 to 1"
        of_column = f"  {column.name}: {kind}{levels}"
        if of_x:
            values, place = train[:, place], place + 1
            if not column.levels:
                of_column += f", {np.nanmin(values):g} to {np.nanmax(values):g}"
            if np.isnan(values).any():
                of_column += f", {np.isnan(values).mean():.0%} missing"
        results.append(of_column)
    return results


def _with_numbers(column: csv_tables.Column, values: np.ndarray) -> str:
    try:
        fit = tables.fit(column.family, values, num_levels=len(column.levels))
    except ValueError as error:
        raise ValueError(
            f"column {column.name}: {error} (--columns={column.name}:skip)"
        ) from error
    numbers = (f"{number:.9g}" for number in fit.numbers)
    return ":".join([column.name, column.family, *numbers])
