"""Stochastic gradient ascent on an objective, as an `Algorithm`."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vae_jax.types import Algorithm, Batch, Objective, Params, PRNGKey, PyTree, Scalar

Settings: TypeAlias = dict[str, Scalar]
Monitor: TypeAlias = Callable[[PRNGKey, Params, Array], PyTree]


class AscentState(NamedTuple):
    """Parameters, the optimizer's memory of them, and the steps taken."""

    params: Params
    opt_state: Any
    step: Int[Array, ""]


class AscentInfo(NamedTuple):
    """What one step reports, all before the update."""

    bound: Scalar  # the objective's value, nats per example
    gradient_norm: Scalar  # before any clipping
    monitored: PyTree  # means over the batch


def over_batch(
    function: Callable[[PRNGKey, Params, Array], PyTree],
) -> Callable[[PRNGKey, Params, Array], PyTree]:
    """Lifts a function of one example to its mean over x [B, *X], a key per example."""

    def lifted(key: PRNGKey, params: Params, x: Float[Array, "B *X"]) -> PyTree:
        keys = jax.random.split(key, x.shape[0])
        values = jax.vmap(function, in_axes=(0, None, 0))(keys, params, x)
        return jax.tree.map(lambda leaf: leaf.mean(0), values)

    return lifted


def ascent(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    monitor: Monitor = lambda key, params, x: {},
) -> Algorithm:
    """Maximizes the mean of a one-example objective over each batch.

    Args:
        objective: (key, params, x) -> nats; its gradient fits the model.
        optimizer: any optax transformation; it is handed the gradient of minus the
            objective, as optax minimizes.
        monitor: (key, params, x) -> a tree of scalars to report, of one example. It
            gets the objective's own key, so what both compute is computed once.
    """
    return scheduled_ascent(
        lambda settings: objective, optimizer, settings=lambda step: {}, monitor=monitor
    )


def scheduled_ascent(
    build: Callable[[Settings], Objective],
    optimizer: optax.GradientTransformation,
    *,
    settings: Callable[[Int[Array, ""]], Settings],
    monitor: Monitor = lambda key, params, x: {},
) -> Algorithm:
    """`ascent` for an objective whose numbers change from step to step.

    Args:
        build: settings -> objective, called inside the traced step, so that a KL
            warm-up is `lambda s: sgvb_b(..., beta=s["beta"])`.
        optimizer: as in `ascent`.
        settings: the number of steps taken -> the step's settings.
        monitor: as in `ascent`.
    """

    def init(key: PRNGKey, start: Params) -> AscentState:
        del key
        return AscentState(start, optimizer.init(start), jnp.zeros((), jnp.int32))

    def step(
        key: PRNGKey, state: AscentState, batch: Batch
    ) -> tuple[AscentState, AscentInfo]:
        objective = over_batch(build(settings(state.step)))

        def loss(params: Params) -> tuple[Scalar, PyTree]:
            monitored = over_batch(monitor)(jax.random.clone(key), params, batch.x)
            return -objective(key, params, batch.x), monitored

        (negative, monitored), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
        info = AscentInfo(-negative, optax.tree.norm(grads), monitored)
        return AscentState(params, opt_state, state.step + 1), info

    return Algorithm(init, step)
