r"""Alternating ascent: several updates of phi for each one of theta.

Where theta moves, the posterior moves with it, and an encoder that is updated as often
as theta lags behind: aggressive training (He et al. 2019, arXiv:1901.05534) lets phi
catch up before each update of theta. More updates come nearer to the posterior gap that
the encoder's family has.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Int

from vae_jax import numerics
from vae_jax.training import gradient
from vae_jax.types import Algorithm, Batch, Objective, Params, PRNGKey, PyTree, Scalar


class AlternatingState(NamedTuple):
    """Where an alternation stands.

    Attributes:
        params: theta and phi.
        theta: the memory of theta's optimizer.
        phi: the memory of phi's.
        step: updates of theta.
        memory: the objective's own, which every update of either hands on.
    """

    params: Params
    theta: PyTree
    phi: PyTree
    step: Int[Array, ""]
    memory: PyTree


def alternating(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    num_inner: int,
    norm_every: int = 1,
) -> Algorithm:
    r"""num_inner updates of phi, each on fresh noise, then one of theta, on one batch.

    $\phi \leftarrow \phi + \eta \nabla_\phi f(\theta, \phi)$ num_inner times, then
    $\theta \leftarrow \theta + \eta \nabla_\theta f(\theta, \phi)$ at the new phi. He
    et al. 2019 (arXiv:1901.05534), algorithm 1, whose inner updates are on fresh
    batches and end by themselves when the bound has come to rest; here they are on the
    step's own batch, and their number is fixed.

    Args:
        objective: its gradient fits the model.
        optimizer: any optax transformation; theta and phi each have a memory of it.
        num_inner: updates of phi in each step.
        norm_every: as in `gradient.ascent`; the norm is that of theta's gradient.

    Returns:
        An algorithm whose info is the `gradient.AscentInfo` of theta's update.

    Raises:
        ValueError: if num_inner or norm_every is below one.
    """
    numerics.check_positive(num_inner=num_inner)
    phi = gradient.ascent(objective, gradient.of_phi(optimizer), norm_every=norm_every)
    theta = gradient.ascent(
        _at_fixed_phi(objective), gradient.of_theta(optimizer), norm_every=norm_every
    )

    def init(key: PRNGKey, start: Params) -> AlternatingState:
        key_theta, key_phi = jax.random.split(key)
        first = theta.init(key_theta, start)
        opt_state = phi.init(key_phi, start).opt_state
        return AlternatingState(
            start, first.opt_state, opt_state, first.step, first.memory
        )

    def step(
        key: PRNGKey, state: AlternatingState, batch: Batch
    ) -> tuple[AlternatingState, gradient.AscentInfo]:
        key_phi, key_theta = jax.random.split(key)

        def update(
            inner: gradient.AscentState, t: Int[Array, ""]
        ) -> tuple[gradient.AscentState, None]:
            return phi.step(jax.random.fold_in(key_phi, t), inner, batch)[0], None

        inner = gradient.AscentState(
            state.params, state.phi, num_inner * state.step, state.memory
        )
        inner, _ = jax.lax.scan(update, inner, jnp.arange(num_inner))
        outer = gradient.AscentState(
            inner.params, state.theta, state.step, inner.memory
        )
        outer, info = theta.step(key_theta, outer, batch)
        return AlternatingState(
            outer.params, outer.opt_state, inner.opt_state, outer.step, outer.memory
        ), info

    return Algorithm(init, step)


def _at_fixed_phi(objective: Objective) -> Objective:
    """The objective whose gradient, and the norm of it, is theta's alone."""

    def value(
        key: PRNGKey, params: Params, memory: PyTree, batch: Batch
    ) -> tuple[Array, PyTree, dict[str, Scalar]]:
        held = Params(params.generative, stop_gradient(params.recognition))
        return objective.value(key, held, memory, batch)

    return objective._replace(value=value)
