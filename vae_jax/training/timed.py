"""Curves over training whose clock counts steps and nothing else."""

import time
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vae_jax.training import loop
from vae_jax.types import Algorithm, PyTree


def curve(
    start: loop.RunState,
    algorithm: Algorithm,
    data: PyTree,
    *,
    take: loop.Take,
    order: Callable[[int], Array],
    epochs_per_scan: int,
    points: Collection[int],
    measure: Callable[[PyTree], dict[str, float]],
) -> tuple[loop.RunState, dict[str, list[float]]]:
    """Trains to the last point and measures at each; the state and the curve.

    Args:
        start: the state before the first step; it is used up.
        algorithm: what trains.
        data: the rows, as `loop.scan` takes them.
        take: reads a batch of them.
        order: number of a scan, from 0 on -> the rows of its steps [S, B].
        epochs_per_scan: epochs of one compiled scan.
        points: numbers of epochs from 1 on, multiples of epochs_per_scan.
        measure: the algorithm's state -> numbers, outside the clock.

    Returns:
        The curve has `epoch` and `seconds`, and what measure gives, a list each.

    Raises:
        ValueError: if there is no point, or one is no such multiple.
    """
    if not points or any(p < 1 or p % epochs_per_scan for p in points):
        raise ValueError(
            f"points must be multiples of epochs_per_scan={epochs_per_scan} from 1 on, "
            f"got {list(points)}"
        )
    scan = loop.scan(algorithm, take)
    # Compiled on a copy, so that the clock counts steps alone.
    jax.block_until_ready(scan(jax.tree.map(jnp.copy, start), data, order(0)))
    state, seconds, curves = start, 0.0, {"epoch": [], "seconds": []}
    for number in range(max(points) // epochs_per_scan):
        rows, clock = jax.block_until_ready(order(number)), time.monotonic()
        state, info = scan(state, data, rows)
        jax.block_until_ready(info)
        seconds += time.monotonic() - clock
        epoch = (number + 1) * epochs_per_scan
        if epoch in points:
            row = {"epoch": epoch, "seconds": seconds, **measure(state.inner)}
            for name, value in row.items():
                curves.setdefault(name, []).append(value)
    return state, curves
