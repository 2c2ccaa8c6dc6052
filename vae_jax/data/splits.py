"""Rows held out of a training split."""

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
        ValueError: fewer training rows than that, or none left.
    """
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
