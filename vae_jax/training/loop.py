"""Runs any `Algorithm` as a compiled scan over device-resident data."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vae_jax.types import Algorithm, Batch, PRNGKey, PyTree

Take: TypeAlias = Callable[[PRNGKey, Array, Int[Array, " B"]], Batch]
"""(key, data [N, *X], index [B]) -> the batch of those rows."""


class RunState(NamedTuple):
    """Everything that a checkpoint must hold to resume bit for bit."""

    step: Int[Array, ""]
    key: PRNGKey  # the run's root key, never advanced
    inner: PyTree  # the algorithm's own state


def start(key: PRNGKey, algorithm: Algorithm, initial: PyTree) -> RunState:
    """State before the first step, in buffers of its own, as scans consume the state.

    The algorithm's state is copied and not `initial`: a state may hold what it starts
    from more than once, and no buffer can be donated twice.
    """
    key_init, key_run = jax.random.split(key)
    inner = jax.tree.map(jnp.copy, algorithm.init(key_init, initial))
    return RunState(jnp.zeros((), jnp.int32), key_run, inner)


def scan(
    algorithm: Algorithm, take: Take
) -> Callable[[RunState, Array, Int[Array, "S B"]], tuple[RunState, PyTree]]:
    """Compiles (state, data, order [S, B]) -> (state, info stacked on S).

    Row t of `order` names the data rows of step t. Step t uses fold_in(root key, t), so
    a run resumed from any state draws the noise it would have drawn, and any cut of an
    epoch into scans ends in the same state. The state is donated: the caller's copy is
    dead. One program is compiled for each shape of `order`.
    """

    def run(
        state: RunState, data: Array, order: Int[Array, "S B"]
    ) -> tuple[RunState, PyTree]:
        # All keys of the scan at once: drawn inside, they cost a tenth of a small step.
        times = state.step + jnp.arange(order.shape[0], dtype=state.step.dtype)
        keys = jax.vmap(partial(_keys_of_step, state.key))(times)

        def step(
            state: RunState, row: tuple[Array, PRNGKey, PRNGKey]
        ) -> tuple[RunState, PyTree]:
            index, key_batch, key_step = row
            batch = take(key_batch, data, index)
            inner, info = algorithm.step(key_step, state.inner, batch)
            return RunState(state.step + 1, state.key, inner), info

        return jax.lax.scan(step, state, (order, *keys))

    return jax.jit(run, donate_argnums=0)


def _keys_of_step(key: PRNGKey, step: Int[Array, ""]) -> tuple[PRNGKey, PRNGKey]:
    key_batch, key_step = jax.random.split(jax.random.fold_in(key, step))
    return key_batch, key_step
