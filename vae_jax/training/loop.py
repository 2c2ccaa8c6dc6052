"""Runs any `Algorithm` as a compiled scan over device-resident data."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Int, Key

from vae_jax import compilation
from vae_jax.types import Algorithm, Batch, PRNGKey, PyTree, Scalar

Take: TypeAlias = Callable[[PRNGKey, Array, Int[Array, " B"]], Batch]
"""(key, data [N, *X], index [B]) -> the batch of those rows."""

Settings: TypeAlias = dict[str, Array]
"""Numbers that may differ between runs of one program."""


class RunState(NamedTuple):
    """Everything that a checkpoint must hold to resume bit for bit.

    Attributes:
        step: steps taken.
        key: the run's root key, never advanced.
        inner: the algorithm's own state.
    """

    step: Int[Array, ""]
    key: PRNGKey
    inner: PyTree


class Converged(NamedTuple):
    """Where a run on one batch ended.

    Attributes:
        state: the algorithm's, after the last step.
        info: of the last step.
        num_steps: steps taken.
        converged: whether the value came to rest.
    """

    state: PyTree
    info: PyTree
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]


class Trajectory(NamedTuple):
    """A run on one batch, step by step.

    Attributes:
        states: the algorithm's before each step, stacked on S.
        infos: of each step, stacked on S.
        end: the state after the last.
    """

    states: PyTree
    infos: PyTree
    end: PyTree


def start(key: PRNGKey, algorithm: Algorithm, initial: PyTree) -> RunState:
    """State before the first step, in buffers of its own, as scans consume the state.

    The algorithm's state is copied and not `initial`: a state may hold what it starts
    from more than once, and no buffer can be donated twice.
    """
    key_init, key_run = jax.random.split(key)
    inner = jax.tree.map(jnp.copy, algorithm.init(key_init, initial))
    return RunState(jnp.zeros((), jnp.int32), key_run, inner)


def take_rows(key: PRNGKey, data: Array, index: Int[Array, " B"]) -> Batch:
    """A `Take` for data that are what the model sees: the rows, each of weight one."""
    del key
    return Batch(data[index], index, jnp.ones(index.shape, data.dtype))


def scan(
    algorithm: Algorithm, take: Take, *, layout: Sharding | None = None
) -> Callable[[RunState, Array, Int[Array, "S B"]], tuple[RunState, PyTree]]:
    """Compiles (state, data, order [S, B]) -> (state, info stacked on S).

    Row t of `order` names the data rows of step t. Step t uses fold_in(root key, t), so
    a run resumed from any state draws the noise it would have drawn, and any cut of an
    epoch into scans ends in the same state (to rounding, where scans of another length
    compile to other code). The state is donated: the caller's copy is dead. One program
    is compiled for each shape of `order`. On several devices `layout` is where state
    and info are left, and `order` lies split along B. Inside another transformation,
    such as `jit`, `vmap` or `grad`, it is a part of that program, and nothing is
    donated.

    Examples:
        >>> from vae_jax.types import Batch
        >>> counted = Algorithm(
        ...     init=lambda key, start: start,
        ...     step=lambda key, state, batch: (state + batch.x.sum(), {"x": batch.x}),
        ... )
        >>> def take(key, data, index):
        ...     return Batch(data[index], index, jnp.ones(index.shape))
        >>> state = start(jax.random.key(0), counted, jnp.zeros(()))
        >>> order = jnp.array([[0, 1], [2, 3]])  # two steps of two rows
        >>> state, info = scan(counted, take)(state, jnp.arange(4.0), order)
        >>> float(state.inner), info["x"].shape, int(state.step)
        (6.0, (2, 2), 2)
    """

    def run(
        state: RunState, data: Array, order: Int[Array, "S B"]
    ) -> tuple[RunState, PyTree]:
        return _steps(algorithm, take, state, data, order)

    return compilation.program(run, donate=0, layout=layout)


def scan_together(
    build: Callable[[Settings], Algorithm],
    take: Take,
    *,
    in_turn: bool | None = None,
    layout: Sharding | None = None,
) -> Callable[
    [Settings, RunState, Array, Int[Array, "R S B"]], tuple[RunState, PyTree]
]:
    """Compiles (settings, states, data, orders) -> (states, info) of R runs together.

    Run i is `scan` of `build` at the i-th of the settings, name -> [R], from the i-th
    state on the i-th order, up to rounding. All have taken equally many steps. Every
    array of states and info has a leading axis R; the data are shared. The states are
    donated.

    Args:
        build: the algorithm of one run, from its settings.
        take: as in `scan`.
        in_turn: whether the runs go one after the other through all the steps of a
            call, and not side by side at each; None for what suits the backend. An
            accelerator is filled by runs side by side. A few cores are filled by one,
            and their caches hold the arrays of one rather than those of R.
        layout: as in `scan`.
    """

    def one_by_one(
        settings: Settings, states: RunState, data: Array, orders: Int[Array, "R S B"]
    ) -> tuple[RunState, PyTree]:
        def one(run: tuple[Settings, RunState, Array]) -> tuple[RunState, PyTree]:
            of_run, state, order = run
            return _steps(build(of_run), take, state, data, order)

        return jax.lax.map(one, (settings, states, orders))

    # `vmap` of `_steps` would be the same, but JAX's check of key reuse refuses a scan
    # whose keys `vmap` has moved to its axis.
    def side_by_side(
        settings: Settings, states: RunState, data: Array, orders: Int[Array, "R S B"]
    ) -> tuple[RunState, PyTree]:
        def keys_of_step(time: Int[Array, ""]) -> Key[Array, "R 2"]:
            return jax.vmap(_keys_of_step, in_axes=(0, None))(states.key, time)

        def step(inner: PyTree, row: tuple[Array, PRNGKey]) -> tuple[PyTree, PyTree]:
            def one(
                settings: Settings, inner: PyTree, row: tuple[Array, PRNGKey]
            ) -> tuple[PyTree, PyTree]:
                return _step(build(settings), take, data, inner, row)

            return jax.vmap(one)(settings, inner, row)

        num_steps = orders.shape[1]
        keys = jax.vmap(keys_of_step)(_times(states.step[0], num_steps))
        rows = jnp.swapaxes(orders, 0, 1), keys
        inner, info = jax.lax.scan(step, states.inner, rows)
        info = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), info)
        return RunState(states.step + num_steps, states.key, inner), info

    if in_turn is None:
        in_turn = jax.default_backend() == "cpu"
    run = one_by_one if in_turn else side_by_side
    return compilation.program(run, donate=1, layout=layout)


def _steps(
    algorithm: Algorithm,
    take: Take,
    state: RunState,
    data: Array,
    order: Int[Array, "S B"],
) -> tuple[RunState, PyTree]:
    # All keys of the scan at once: drawn inside, they cost a tenth of a small step.
    times = _times(state.step, len(order))
    keys = jax.vmap(partial(_keys_of_step, state.key))(times)
    step = partial(_step, algorithm, take, data)
    inner, info = jax.lax.scan(step, state.inner, (order, keys))
    return RunState(state.step + len(order), state.key, inner), info


def _step(
    algorithm: Algorithm,
    take: Take,
    data: Array,
    inner: PyTree,
    row: tuple[Int[Array, " B"], Key[Array, "2"]],
) -> tuple[PyTree, PyTree]:
    index, (key_batch, key_step) = row
    return algorithm.step(key_step, inner, take(key_batch, data, index))


def _times(step: Int[Array, ""], num_steps: int) -> Int[Array, " S"]:
    return step + jnp.arange(num_steps, dtype=step.dtype)


def trajectory(
    algorithm: Algorithm, *, num_steps: int
) -> Callable[[PRNGKey, PyTree, Batch], Trajectory]:
    """Returns (key, start, batch) -> every state of repeated steps on one batch.

    Keys are those of `until_converged`. Memory grows as num_steps.

    Args:
        algorithm: any; for whole-data EM its batch is the data set.
        num_steps: S.

    Raises:
        ValueError: if num_steps is below one.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be positive, got {num_steps}")

    def run(key: PRNGKey, start: PyTree, batch: Batch) -> Trajectory:
        key_init, key_run = jax.random.split(key)

        def step(state: PyTree, t: Int[Array, ""]) -> tuple[PyTree, PyTree]:
            new, info = algorithm.step(jax.random.fold_in(key_run, t), state, batch)
            return new, (state, info)

        state = algorithm.init(key_init, start)
        end, (states, infos) = jax.lax.scan(step, state, jnp.arange(num_steps))
        return Trajectory(states, infos, end)

    return run


def until_converged(
    algorithm: Algorithm,
    *,
    value: Callable[[PyTree], Scalar],
    tolerance: float,
    max_steps: int,
) -> Callable[[PRNGKey, PyTree, Batch], Converged]:
    """Returns (key, start, batch) -> where repeated steps on one batch end.

    Stops after the first step whose value differs from that of the step before by less
    than `tolerance`; a value that is no number never does. Step t uses fold_in(key, t).
    Under `vmap` all take part until the last one stops, and those at rest stay as they
    were.

    Args:
        algorithm: any; for whole-data EM its batch is the data set.
        value: info -> the number that comes to rest, such as the mean log p(x).
        tolerance: in the value's unit.
        max_steps: at most.

    Raises:
        ValueError: if tolerance is not positive or max_steps below one.
    """
    if not tolerance > 0.0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be positive, got {max_steps}")

    def run(key: PRNGKey, start: PyTree, batch: Batch) -> Converged:
        key_init, key_run = jax.random.split(key)

        def step(at: Converged) -> Converged:
            key_step = jax.random.fold_in(key_run, at.num_steps)
            state, info = algorithm.step(key_step, at.state, batch)
            still = jnp.abs(value(info) - value(at.info)) < tolerance
            still &= at.num_steps > 0
            return Converged(state, info, at.num_steps + 1, still)

        state = algorithm.init(key_init, start)
        zero = jnp.zeros((), jnp.int32)
        _, shapes = jax.eval_shape(algorithm.step, key_run, state, batch)
        info = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.while_loop(
            lambda at: ~at.converged & (at.num_steps < max_steps),
            step,
            Converged(state, info, zero, jnp.zeros((), bool)),
        )

    return run


def _keys_of_step(key: PRNGKey, step: Int[Array, ""]) -> Key[Array, "2"]:
    return jax.random.split(jax.random.fold_in(key, step))
