"""Completions of a table: each cell by its column's type, with its interval."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.command import report
from experiments.command.report import field
from experiments.completion.config import NOMINAL
from experiments.completion.methods import Completed
from vae_jax.data import csv_tables
from vae_jax.evaluation import calibration
from vae_jax.plots import completions

SCORES = [
    field("method", "method", "", 24),
    field("column", "column", "", 20),
    field("cells", "num_cells", width=6),
    field("error", "error", ".4g", 10),
    field("training", "baseline", ".4g", 10),
    field("coverage", "coverage", ".3f", 9),
]


def units(training: np.ndarray) -> np.ndarray:
    """What errors of each column are told in: its standard deviation in training."""
    return np.maximum(np.nanstd(training, axis=0), 1e-12)


def are_numbers(columns: tuple[csv_tables.Column, ...]) -> np.ndarray:
    """Which columns [D] have cells of numbers, that intervals can be of."""
    return np.array([not column.levels for column in columns])


def imputed(
    columns: tuple[csv_tables.Column, ...], partial: np.ndarray, result: Completed
) -> dict[str, np.ndarray]:
    """Rows [N, D] with every hole filled, and the ends of intervals, by their ending.

    With the median of the draws, or the level most often drawn. Intervals are of the
    holes of numbers; all else is NaN there.
    """
    draws = np.asarray(result.draws.x)
    holes = np.isnan(partial)
    low, high = calibration.intervals(draws.swapaxes(0, 1), nominal=NOMINAL)
    numeric = holes & are_numbers(columns)
    return {
        "": np.where(holes, _point(columns, draws), partial),
        "_low": np.where(numeric, low, np.nan),
        "_high": np.where(numeric, high, np.nan),
    }


def scores(
    columns: tuple[csv_tables.Column, ...],
    truth: np.ndarray,
    hidden: np.ndarray,
    results: dict[str, Completed],
    training: np.ndarray,
) -> list[dict[str, Any]]:
    """Of each method and column, over the hidden cells whose truth is known.

    The error is the share of wrong levels, or the root mean squared error of numbers,
    in the table's units; beside it that of the training rows' mode or mean.
    """
    rows: list[dict[str, Any]] = []
    for name, result in results.items():
        draws = np.asarray(result.draws.x)
        low, high = calibration.intervals(draws.swapaxes(0, 1), nominal=NOMINAL)
        point = _point(columns, draws)
        usual = _point(columns, training[None])
        for at, column in enumerate(columns):
            cells = hidden[:, at] & ~np.isnan(truth[:, at])
            if not cells.any():
                continue
            exact, row = truth[cells, at], dict[str, Any]()
            row |= {"method": name, "column": column.name}
            row["num_cells"] = int(cells.sum())
            if column.levels:
                row["error"] = float((point[cells, at] != exact).mean())
                row["baseline"] = float((usual[0, at] != exact).mean())
            else:
                mean = np.asarray(result.draws.mean)[cells, at]
                usual_mean = np.nanmean(training[:, at])
                row["error"] = float(np.sqrt(((mean - exact) ** 2).mean()))
                row["baseline"] = float(np.sqrt(((usual_mean - exact) ** 2).mean()))
                inside = (low[cells, at] <= exact) & (exact <= high[cells, at])
                row["coverage"] = float(inside.mean())
            rows.append(row)
    return rows


def hidden_numbers(
    columns: tuple[csv_tables.Column, ...], arrays: Mapping[str, np.ndarray], name: str
) -> dict[str, completions.Cells]:
    """What a method made of the hidden cells of numbers, by the name of a column."""
    panels = {}
    point, low, high = (arrays[f"{name}_imputed{e}"] for e in ("", "_low", "_high"))
    for at, column in enumerate(columns):
        cells = arrays["hidden"][:, at] & ~np.isnan(arrays["x"][:, at])
        if cells.any() and not column.levels:
            parts = (of[cells, at] for of in (arrays["x"], point, low, high))
            panels[column.name] = completions.Cells(*parts)
    return panels


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The same as lines of text."""
    if not rows:
        return []
    said = "share of wrong levels, or root mean squared error in the table's units"
    return ["", f"columns ({said}):", report.table(SCORES, rows)]


def _point(
    columns: tuple[csv_tables.Column, ...], draws: Float[np.ndarray, "N S D"]
) -> Float[np.ndarray, "N D"]:
    """Of the draws of each row, the median of numbers and the most frequent level."""
    point = np.nanmedian(draws, axis=1)
    for at, column in enumerate(columns):
        if column.levels:
            values = np.arange(len(column.levels)) / (len(column.levels) - 1)
            near = np.abs(draws[..., at, None] - values) < 0.5 / len(column.levels)
            point[..., at] = values[near.sum(axis=1).argmax(-1)]
    return point
