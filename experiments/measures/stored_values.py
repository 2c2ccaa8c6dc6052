"""Rows as the whole numbers that their probabilities are of, for compressors."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.choices import densities
from experiments.runs.trained_runs import Trained
from vae_jax import compilation


def are_counts(trained: Trained) -> bool:
    """Whether entries of x are counts, of which none is the largest."""
    config = trained.config
    return not config.model and densities.LIKELIHOODS[config.observed].of_counts


def num_values(trained: Trained) -> int | None:
    """How many values an entry of x has; None of counts.

    Raises:
        ValueError: where it may have any real value, or others than another entry.
    """
    if trained.config.observed == "columns":
        raise ValueError(
            "columns of a table have no code: each has values of its own kind; counts "
            "alone have one, trained with a likelihood of counts such as "
            "--likelihood=negative_binomial"
        )
    if trained.data.quantity != "log-likelihood":
        raise ValueError(
            f"a {trained.data.quantity} of {trained.config.observation} has no code of "
            "finite length: train with --binarization=static or dynamic, or with a "
            "likelihood of values, such as --likelihood=discretized_logistic"
        )
    if are_counts(trained):
        return None
    if trained.config.observed == "bernoulli" or trained.config.model:
        return 2
    return trained.config.num_values


def values(trained: Trained, number: int) -> np.ndarray:
    """What the symbols 0, 1, ... of an entry of x stand for, so many of them."""
    last = number - 1.0 if are_counts(trained) else 1.0
    return np.linspace(0.0, last, number)


def symbols(trained: Trained, raw: Any) -> np.ndarray:
    """Stored rows -> the symbols whose values they are, [N, entries].

    Raises:
        ValueError: as `num_values`; for a value that has no symbol.
    """
    number = num_values(trained)
    value = compilation.program(trained.data.prepared.value)
    x = np.asarray(value(jnp.asarray(raw)), np.float64)
    exact = x.reshape(len(x), -1) * (1 if number is None else number - 1)
    rows = np.rint(exact)
    if not (np.abs(exact - rows) < 1e-3).all():  # NaN is not, either
        raise ValueError(
            "some entries are none of the values that p(x | z) is of: "
            + ("counts" if number is None else f"{number} of them")
        )
    return rows.astype(np.int64)
