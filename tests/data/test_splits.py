import numpy as np
import pytest

from vae_jax.data import splits

ROWS = np.arange(10)[:, None]


def test_the_last_rows_are_test_those_before_valid_and_labels_go_with_them():
    arrays, labels = splits.held_out(
        "a", {"train": ROWS}, {"train": ROWS[:, 0]}, valid_size=3, test_size=2
    )
    assert {name: rows[:, 0].tolist() for name, rows in arrays.items()} == {
        "train": [0, 1, 2, 3, 4],
        "valid": [5, 6, 7],
        "test": [8, 9],
    }
    for name, rows in arrays.items():
        np.testing.assert_array_equal(labels[name], rows[:, 0])


def test_a_test_split_that_is_there_stays_and_so_do_labels_of_it_alone():
    arrays, labels = splits.held_out(
        "a", {"train": ROWS, "test": ROWS[:1]}, {"test": ROWS[:1, 0]}, valid_size=4
    )
    assert [len(arrays[name]) for name in ("train", "valid", "test")] == [6, 4, 1]
    assert [*labels] == ["test"]


@pytest.mark.parametrize("valid_size", [8, -1])
def test_rows_that_are_not_there_are_refused(valid_size):
    said = f"a: valid_size={valid_size} leaves none of 8 training rows"
    with pytest.raises(ValueError, match=said):
        splits.held_out("a", {"train": ROWS}, {}, valid_size=valid_size, test_size=2)
