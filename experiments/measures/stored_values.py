"""Rows as the whole numbers that their probabilities are of, for compressors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runs.trained_runs import Trained


def num_values(trained: Trained) -> int:
    """How many values an entry of x has.

    Raises:
        ValueError: where it may have any.
    """
    if trained.data.quantity != "log-likelihood":
        raise ValueError(
            f"a {trained.data.quantity} of {trained.config.observation} has no code of "
            "finite length: train with --binarization=static or dynamic, or with a "
            "likelihood of values, such as --likelihood=discretized_logistic"
        )
    if trained.config.likelihood == "bernoulli" or trained.config.model:
        return 2
    return trained.config.num_values


def symbols(trained: Trained, raw: Any) -> np.ndarray:
    """Stored rows -> k of x = k / (K - 1), [N, entries], of K `num_values`.

    Raises:
        ValueError: as `num_values`; for a value that is not on that grid.
    """
    number = num_values(trained)
    x = np.asarray(jax.jit(trained.data.prepared.value)(jnp.asarray(raw)), np.float64)
    exact = x.reshape(len(x), -1) * (number - 1)
    rows = np.rint(exact)
    if not (np.abs(exact - rows) < 1e-3).all():  # NaN is not, either
        raise ValueError(
            f"some entries are none of the {number} values that p(x | z) is of"
        )
    return rows.astype(np.int64)
