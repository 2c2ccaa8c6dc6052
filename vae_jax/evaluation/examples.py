"""Applies a one-example evaluator to every row of a data set."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax.types import Params, PRNGKey, PyTree


def over_examples(
    evaluator: Callable[[PRNGKey, Params, Array], PyTree],
    *,
    batch_size: int,
    value: Callable[[Array], Array] = lambda x: x,
) -> Callable[[PRNGKey, Params, Float[Array, "N *X"]], PyTree]:
    """Compiles (key, params, data [N, *X]) -> results stacked on N.

    Row i uses fold_in(key, i), so the result does not depend on batch_size, and the
    first rows of a data set give the same with and without the others. Memory holds
    one batch of intermediate values at a time.

    Args:
        evaluator: (key, params, x) -> any tree of arrays, for one example.
        batch_size: rows evaluated side by side; 1 evaluates them in turn.
        value: turns one raw row into x, where the data are kept as integers.

    Raises:
        ValueError: if batch_size is below one.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}.")

    def run(key: PRNGKey, params: Params, data: Float[Array, "N *X"]) -> PyTree:
        def one(row: tuple[Array, Array]) -> PyTree:
            i, raw = row
            return evaluator(jax.random.fold_in(key, i), params, value(raw))

        rows = jnp.arange(data.shape[0]), data
        return jax.lax.map(
            one, rows, batch_size=None if batch_size == 1 else batch_size
        )

    return jax.jit(run)
