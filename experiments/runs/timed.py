"""Curves over training whose clock counts steps and nothing else."""

import time
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vae_jax.data import batches
from vae_jax.training import loop
from vae_jax.types import Algorithm, PRNGKey, PyTree


def curve(
    start: loop.RunState,
    algorithm: Algorithm,
    prepared: batches.Prepared,
    *,
    key_order: PRNGKey,
    batch_size: int,
    epochs_per_scan: int,
    points: Collection[int],
    measure: Callable[[PyTree], dict[str, float]],
) -> tuple[loop.RunState, dict[str, list[float]]]:
    """Trains to the last point and measures at each; the state and the curve.

    Args:
        start: the state before the first step; it is used up.
        algorithm: what trains.
        prepared: the data.
        key_order: of the order of the rows.
        batch_size: rows of a step.
        epochs_per_scan: epochs of one compiled scan.
        points: numbers of epochs, multiples of epochs_per_scan.
        measure: the algorithm's state -> numbers, outside the clock.

    Returns:
        The curve has `epoch` and `seconds`, and what measure gives, a list each.
    """
    rows, scan = jnp.asarray(prepared.train), loop.scan(algorithm, prepared.take)

    def order(stretch: int) -> Array:
        key = jax.random.fold_in(key_order, stretch)
        epochs = [
            batches.order(key, len(rows), batch_size=batch_size)
            for key in jax.random.split(key, epochs_per_scan)
        ]
        return jax.block_until_ready(jnp.concatenate(epochs))

    # Compiled on a copy, so that the clock counts steps alone.
    jax.block_until_ready(scan(jax.tree.map(jnp.copy, start), rows, order(0)))
    state, seconds, found = start, 0.0, {"epoch": [], "seconds": []}
    for stretch in range(max(points) // epochs_per_scan):
        drawn, clock = order(stretch), time.monotonic()
        state, info = scan(state, rows, drawn)
        jax.block_until_ready(info)
        seconds += time.monotonic() - clock
        epoch = (stretch + 1) * epochs_per_scan
        if epoch in points:
            row = {"epoch": epoch, "seconds": seconds, **measure(state.inner)}
            for name, number in row.items():
                found.setdefault(name, []).append(number)
    return state, found
