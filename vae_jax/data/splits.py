"""Rows of a data set held out as valid and test."""

from collections.abc import Mapping

import numpy as np


def held_out(
    name: str,
    arrays: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    *,
    valid_size: int,
    test_size: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Splits the last training rows, and their labels, off as valid and then test.

    With a `test_size` of 0, a test split that is there stays.

    Raises:
        ValueError: fewer training rows than that, or none left; as many labels as rows
            are not there.
    """
    _refuse_other_lengths(name, arrays, labels)
    num_rows = len(arrays["train"]) - test_size
    if not 0 <= valid_size < max(num_rows, 1):
        raise ValueError(
            f"{name}: valid_size={valid_size} leaves none of {num_rows} training rows"
        )
    rest = num_rows - valid_size

    def split(named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if "train" not in named:
            return dict(named)
        train = named["train"]
        test = {"test": train[num_rows:]} if test_size else {}
        return {**named, "train": train[:rest], "valid": train[rest:num_rows], **test}

    return split(arrays), split(labels)


def refuse_valid_size(name: str, valid_size: int | None) -> None:
    """Raises ValueError where a source that fixes its splits is given a valid_size."""
    if valid_size is not None:
        raise ValueError(
            f"{name}: valid_size={valid_size}, but this source fixes its splits: "
            "leave valid_size out"
        )


def with_test(
    name: str,
    arrays: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    *,
    valid_size: int | None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Where valid is not there, training rows as valid, and as test where that is not.

    The last tenth is test, and the tenth of the rest before it, or `valid_size`, valid.
    Also how many rows became test.

    Raises:
        ValueError: as `held_out`, or `valid_size` where valid is there.
    """
    if "valid" in arrays:
        refuse_valid_size(name, valid_size)
        return dict(arrays), dict(labels), 0
    num_rows = len(arrays["train"])
    test_size = 0 if "test" in arrays else num_rows // 10
    size = (num_rows - test_size) // 10 if valid_size is None else valid_size
    held = held_out(name, arrays, labels, valid_size=size, test_size=test_size)
    return *held, test_size


def for_seed(
    name: str,
    arrays: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    *,
    valid_size: int | None,
    data_seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """As `with_test`, of training rows in an order that `data_seed` draws.

    Raises:
        ValueError: as `with_test`.
    """
    _refuse_other_lengths(name, arrays, labels)
    order = np.random.default_rng(data_seed).permutation(len(arrays["train"]))

    def shuffled(named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {s: a[order] if s == "train" else a for s, a in named.items()}

    return with_test(name, shuffled(arrays), shuffled(labels), valid_size=valid_size)[
        :2
    ]


def _refuse_other_lengths(
    name: str, arrays: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> None:
    """Before rows are taken of both, which would hide what is left over."""
    num_rows, num_labels = len(arrays["train"]), len(labels.get("train", ()))
    if "train" in labels and num_labels != num_rows:
        raise ValueError(
            f"{name}: {num_labels} labels or contexts are not one for each of the "
            f"{num_rows} training rows"
        )
