"""Rows held out: which become test, which valid, in whose order."""

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


def test_more_labels_than_rows_are_refused_before_any_are_left_out():
    arrays, labels = {"train": ROWS}, {"train": np.arange(12)}
    said = "a: 12 labels or contexts are not one for each of the 10 training rows"
    with pytest.raises(ValueError, match=said):
        splits.held_out("a", arrays, labels, valid_size=2)
    with pytest.raises(ValueError, match=said):
        splits.for_seed("a", arrays, labels, valid_size=2, data_seed=0)


MORE_ROWS = np.arange(40)[:, None]


def test_the_last_tenth_is_test_and_the_tenth_before_it_valid():
    arrays, labels, num_test = splits.with_test(
        "own", {"train": MORE_ROWS}, {"train": MORE_ROWS[:, 0]}, valid_size=None
    )
    assert num_test == 4
    assert {name: array.ravel().tolist() for name, array in arrays.items()} == {
        name: array.tolist() for name, array in labels.items()
    }
    assert arrays["test"].ravel().tolist() == [36, 37, 38, 39]
    assert arrays["valid"].ravel().tolist() == [33, 34, 35]


def test_an_order_is_the_seeds_and_keeps_rows_with_their_labels():
    def of(seed):
        return splits.for_seed(
            "own",
            {"train": MORE_ROWS},
            {"train": MORE_ROWS[:, 0]},
            valid_size=5,
            data_seed=seed,
        )

    (arrays, labels), (again, _), (other, _) = of(0), of(0), of(1)
    for split, array in arrays.items():
        np.testing.assert_array_equal(array.ravel(), labels[split])
        np.testing.assert_array_equal(array, again[split])
    assert (arrays["test"] != other["test"]).any()
    assert sorted(np.concatenate([*arrays.values()]).ravel()) == list(range(40))


def test_splits_that_are_there_stay():
    whole = {"train": MORE_ROWS, "valid": MORE_ROWS[:3], "test": MORE_ROWS[:2]}
    arrays, _, num_test = splits.with_test("own", whole, {}, valid_size=None)
    assert (num_test, len(arrays["train"]), len(arrays["test"])) == (0, 40, 2)
    with pytest.raises(ValueError, match="valid_size=2, but this source fixes"):
        splits.with_test("own", whole, {}, valid_size=2)
    with pytest.raises(ValueError, match="valid_size=40 leaves none of 36"):
        splits.with_test("own", {"train": MORE_ROWS}, {}, valid_size=40)
