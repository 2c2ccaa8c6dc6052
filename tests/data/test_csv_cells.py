"""Cells as text: what is a number, what is equal, and how numbers are written."""

import numpy as np
import pytest

from vae_jax.data import csv_cells


@pytest.mark.parametrize(
    ("text", "number"),
    [("1.50", 1.5), ("-3e2", -300.0), ("inf", np.inf), ("1_11", None), ("-nan", None)],
)
def test_a_number_is_what_a_person_reads_as_one(text, number):
    assert csv_cells.number(text) == number
    assert (csv_cells.exact(text) is None) == (number is None)


def test_nothing_is_there_by_any_of_its_names():
    texts = ["1", "", "NA", "n/a", "NaN", "null", "None", "?", "none at all"]
    assert csv_cells.are_there(texts).tolist() == [True, *[False] * 7, True]


def test_levels_are_equal_as_numbers_where_all_are_numbers():
    assert csv_cells.among(("1", "2.50"), ["1.0", "2.5", "3", "x"]) == [
        0,
        1,
        None,
        None,
    ]
    assert csv_cells.among(("07", "7", "x"), ["7", "07", "7.0"]) == [1, 0, None]
    ids = ("12345678901234567", "12345678901234568")  # of one float
    assert csv_cells.among(ids, ids) == [0, 1]


def test_a_number_is_written_in_the_fewest_digits_that_give_it_back():
    values = [0.1, 20230116.0, 1e-30, -7.0, 1 / 3, 1.5e16]
    texts = [csv_cells.shortest(np.float32(value)) for value in values]
    assert texts == ["0.1", "20230116", "1e-30", "-7", "0.33333334", "1.5e+16"]
    assert [np.float32(text) for text in texts] == [np.float32(v) for v in values]
    assert csv_cells.shortest(np.int64(2**60 + 1)) == str(2**60 + 1)


def test_zero_is_written_as_zero():
    assert csv_cells.shortest(np.float32(0.0)) == "0"
