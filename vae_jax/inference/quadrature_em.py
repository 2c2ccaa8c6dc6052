"""EM with the posterior over a grid of latents: exact where quadrature is.

The step between EM for mixtures and AEVB (arXiv:1312.6114): z is continuous, one or two
of them, and the E-step is still exact. On a grid of nodes the model is a constrained
mixture (Bishop, Svensen & Williams 1998, The generative topographic mapping).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.training import gradient
from vae_jax.types import (
    Algorithm,
    Batch,
    Generative,
    Params,
    PRNGKey,
    PyTree,
    Scalar,
    clear_weightless,
    log_joint,
)


class QuadratureEMInfo(NamedTuple):
    """What one step reports, means over the batch, nats per example.

    Attributes:
        log_p: before theta moves.
        bound_after_e_step: sum_q r (log w p(x, z) - log r): tight.
        bound_after_m_step: the same r, with theta moved.
        gradient_norm: of theta's first update.
    """

    log_p: Scalar
    bound_after_e_step: Scalar
    bound_after_m_step: Scalar
    gradient_norm: Scalar


def quadrature_em(
    generative: Generative,
    optimizer: optax.GradientTransformation,
    *,
    num_latents: int,
    num_nodes: int = 32,
    limit: float = 4.5,
    num_updates: int = 5,
) -> Algorithm:
    r"""E: the posterior's weights on a grid; M: updates of theta on that bound.

    Node q of weight w_q gets $r_q = w_q p(x, z_q) / \sum_j w_j p(x, z_j)$, so that the
    bound $\sum_q r_q (\log w_q p(x, z_q) - \log r_q)$ equals log p(x) by quadrature;
    the M-step raises it at fixed r by num_updates optimizer steps (generalized EM).
    Exact where `exact.grid_quadrature` with the same grid is.

    Args:
        generative: the joint p(x, z), with z [D] of the scale of N(0, I).
        optimizer: of theta, any optax transformation; phi is left as it is.
        num_latents: D; the grid has num_nodes^D nodes.
        num_nodes: a side of the grid.
        limit: the grid spans [-limit, limit] in each latent.
        num_updates: of theta after each E-step.

    Raises:
        ValueError: if a number is not positive, or num_nodes is below two.
    """
    numerics.check_positive(num_updates=num_updates)
    nodes, log_weight = numerics.grid(num_latents, num_nodes=num_nodes, limit=limit)

    def log_terms(params: Params, x: Array) -> Float[Array, " Q"]:
        z = jnp.asarray(nodes, x.dtype)
        joint = jax.vmap(log_joint, in_axes=(None, None, None, 0))
        return joint(generative, params, x, z) + log_weight

    def bound(params: Params, x: Array, r: Array) -> Scalar:
        """sum_q r_q (log w_q p(x, z_q) - log r_q), where r_q = 0 adds nothing."""
        log_r = jnp.log(jnp.where(r > 0.0, r, 1.0))
        return numerics.weighed(r, log_terms(params, x) - log_r).sum()

    def of_batch(params: Params, batch: Batch, r: Array) -> Scalar:
        nats = jax.vmap(bound, in_axes=(None, 0, 0))(params, batch.x, r)
        return gradient.weighted_moments(nats, batch.weight)[0]

    def init(key: PRNGKey, start: Params) -> gradient.AscentState:
        del key
        steps = jnp.zeros((), jnp.int32)
        return gradient.AscentState(start, optimizer.init(start.generative), steps)

    def step(
        key: PRNGKey, state: gradient.AscentState, batch: Batch
    ) -> tuple[gradient.AscentState, QuadratureEMInfo]:
        del key
        batch = clear_weightless(batch)
        logs = jax.vmap(log_terms, in_axes=(None, 0))(state.params, batch.x)
        r = stop_gradient(jax.nn.softmax(logs))

        def with_theta(theta: PyTree) -> Params:
            return state.params._replace(generative=theta)

        theta, memory, values, norms = gradient.climb(
            lambda theta: of_batch(with_theta(theta), batch, r),
            optimizer,
            state.params.generative,
            state.opt_state,
            num_updates=num_updates,
        )
        params = with_theta(theta)
        info = QuadratureEMInfo(
            log_p=gradient.weighted_moments(
                jax.nn.logsumexp(logs, axis=1), batch.weight
            )[0],
            bound_after_e_step=values[0],
            bound_after_m_step=of_batch(params, batch, r),
            gradient_norm=norms[0],
        )
        return gradient.AscentState(params, memory, state.step + 1), info

    return Algorithm(init, step)
