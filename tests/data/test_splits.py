"""Rows held out: which become test, which valid, in whose order."""

import numpy as np
import pytest

from vae_jax.data import splits

ROWS = np.arange(40)[:, None]


def test_the_last_tenth_is_test_and_the_tenth_before_it_valid():
    arrays, labels, num_test = splits.with_test(
        "own", {"train": ROWS}, {"train": ROWS[:, 0]}, valid_size=None
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
            {"train": ROWS},
            {"train": ROWS[:, 0]},
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
    whole = {"train": ROWS, "valid": ROWS[:3], "test": ROWS[:2]}
    arrays, _, num_test = splits.with_test("own", whole, {}, valid_size=None)
    assert (num_test, len(arrays["train"]), len(arrays["test"])) == (0, 40, 2)
    with pytest.raises(ValueError, match="valid_size=2, but this source fixes"):
        splits.with_test("own", whole, {}, valid_size=2)
    with pytest.raises(ValueError, match="valid_size=40 leaves none of 36"):
        splits.with_test("own", {"train": ROWS}, {}, valid_size=40)
