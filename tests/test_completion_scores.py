"""What completions are worth, of numbers worked out by hand."""

from typing import Any

import numpy as np
import pytest

from experiments.completion import columns, methods, scores
from vae_jax.data import csv_tables
from vae_jax.evaluation import completion

NAN = float("nan")
TABLE = (
    csv_tables.Column("area", "normal"),
    csv_tables.Column("kind", "categorical", ("x", "y", "z")),
    csv_tables.Column("rent", "normal"),
)


def _completed(draws, log_p: Any = 0.0):
    """Draws [N, S, D] and their mean."""
    x = np.asarray(draws, float)
    made = completion.Completions(
        x=x,  # pyright: ignore[reportArgumentType]
        z=np.zeros(x.shape[:2]),  # pyright: ignore[reportArgumentType]
        mean=x.mean(axis=1),  # pyright: ignore[reportArgumentType]
        acceptance=np.ones(len(x)),  # pyright: ignore[reportArgumentType]
    )
    return methods.Completed(made, np.broadcast_to(log_p, len(x)))


def test_errors_coverage_and_widths_are_of_hidden_entries_in_their_units():
    truth = np.array([[1.0, 10.0, NAN], [2.0, 20.0, 5.0]])
    hidden = np.array([[True, True, True], [False, True, False]])
    draws = [[[0, 8, 1], [4, 8, 3]], [[9, 22, 9], [9, 26, 9]]]
    training = np.array([[0.0, 10.0, 0.0], [2.0, NAN, 4.0]])
    got = scores.scores(
        truth,
        hidden,
        {"importance": _completed(draws, -3.0)},
        training,
        "log-density",
        units=np.array([1.0, 2.0, 1.0]),
    )
    of_draws = got["importance"]
    assert of_draws["rmse"] == pytest.approx(np.sqrt((1 + 1 + 4) / 3))
    assert of_draws["coverage"] == pytest.approx(1 / 3)
    assert of_draws["interval_width"] == pytest.approx(0.9 * (4 + 0 + 2) / 3)
    assert of_draws["log_p_of_truth"] == -3.0
    usual = got[scores.BASELINE]["rmse"]
    assert usual == pytest.approx(np.sqrt((0 + 0 + 25) / 3))


def test_differences_are_of_each_rows_mean_over_its_entries():
    hidden = np.array([[True, True], [True, False]])
    results = {
        "metropolis_within_gibbs": _completed([[[1, 3]], [[2, 9]]], [-1.0, -2.0]),
        "pseudo_gibbs": _completed([[[0, 0]], [[1, 9]]], [-2.0, -5.0]),
    }
    got = scores.differences(np.zeros((2, 2)), hidden, results)
    assert got == pytest.approx(
        {
            "mean_squared_error": 4.0,  # of 5 and 3
            "mean_squared_error_standard_error": 1.0,
            "log_p_of_truth": 2.0,  # of 1 and 3
            "log_p_of_truth_standard_error": 1.0,
        }
    )
    assert scores.differences(np.zeros((2, 2)), hidden, {}) == {}


def _table():
    """Truth, what is hidden, and three draws of a table of three columns."""
    truth = np.array([[1.0, 0.5, NAN], [3.0, 1.0, 2.0], [5.0, 0.0, 0.0]])
    hidden = np.array([[True] * 3, [True, True, False], [False] * 3])
    draws = [
        [[0, 0.5, 7], [1, 0.5, 9], [8, 1, 8]],
        [[4, 0, 0], [4, 0, 0], [4, 1, 0]],
        [[0, 0, 0]] * 3,
    ]
    return truth, hidden, _completed(draws)


def test_each_column_has_its_errors_beside_those_of_its_training_rows():
    truth, hidden, completed = _table()
    training = np.array([[3.0, 0.0, 0.0], [5.0, 0.0, 1.0], [NAN, 1.0, 2.0]])
    area, kind = columns.scores(TABLE, truth, hidden, {"m": completed}, training)
    assert area == pytest.approx(
        {
            "method": "m",
            "column": "area",
            "num_cells": 2,
            "error": np.sqrt((4 + 1) / 2),  # of the means 3 and 4
            "baseline": np.sqrt((9 + 1) / 2),  # of the mean 4
            "coverage": 0.5,
        }
    )
    expected = {"method": "m", "column": "kind", "num_cells": 2}
    assert kind == expected | {"error": 0.5, "baseline": 1.0}


def test_holes_are_filled_by_medians_and_the_most_frequent_levels():
    truth, hidden, completed = _table()
    filled = columns.imputed(TABLE, np.where(hidden, NAN, truth), completed)
    expected = [[1, 0.5, 8], [4, 0, 2], [5, 0, 0]]
    np.testing.assert_array_equal(filled[""], expected)
    low = [[0.1, NAN, 7.1], [4, NAN, NAN], [NAN] * 3]
    high = [[7.3, NAN, 8.9], [4, NAN, NAN], [NAN] * 3]
    np.testing.assert_allclose(filled["_low"], low)
    np.testing.assert_allclose(filled["_high"], high)
