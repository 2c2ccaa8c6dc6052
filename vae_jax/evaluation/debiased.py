"""Log p(x) of one example without bias, and how heavy the tails of that are."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vae_jax import numerics
from vae_jax.estimators import sumo
from vae_jax.evaluation import weights
from vae_jax.types import Model, Params, PRNGKey, Scalar


class Debiased(NamedTuple):
    """The mean of independent draws of SUMO.

    Attributes:
        log_p: nats; no bound, its errors are of either sign.
        standard_error: of log_p, from the draws' spread.
        tail_index: shape of the tail of their distances from the mean: 1 / index finite
            moments, so that above 1/2 the standard error means nothing; inf: not
            measured.
        mean_samples: of z that a draw takes, the unneeded not counted.
    """

    log_p: Scalar
    standard_error: Scalar
    tail_index: Scalar
    mean_samples: Scalar


def debiased(
    model: Model,
    *,
    num_draws: int,
    num_samples: int,
    max_terms: int = 200,
) -> Callable[[PRNGKey, Params, Array], Debiased]:
    """(key, params, x) -> log p(x) by draws of `estimators.sumo` (arXiv:2004.00353).

    The tail's index is that of `weights.pareto_k`, of the distances from the mean.

    Args:
        model: the joint p(x, z) and the proposal q(z | x).
        num_draws: of SUMO, one after the other.
        num_samples: m, that each begins with.
        max_terms: the most that each adds.

    Raises:
        ValueError: if num_draws is below two or another number below one.
    """
    numerics.check_at_least(2, num_draws=num_draws)
    numerics.check_positive(num_samples=num_samples, max_terms=max_terms)
    draw = sumo.draws(model, num_samples=num_samples, max_terms=max_terms)

    def estimate(key: PRNGKey, params: Params, x: Array) -> Debiased:
        def one(carry: tuple[()], i: Array) -> tuple[tuple[()], tuple[Array, Array]]:
            return carry, draw(jax.random.fold_in(key, i), params, x)

        _, (values, terms) = numerics.scan(one, (), jnp.arange(num_draws))
        return of_draws(values, num_samples + terms)

    return estimate


def of_draws(values: Float[Array, " N"], num_samples: Int[Array, " N"]) -> Debiased:
    """The summary of draws of SUMO in nats, and of the samples each took."""
    num_draws, log_p = values.shape[0], values.mean()
    size = weights.tail_size(num_draws) + 1
    tail = jax.lax.top_k(jnp.log(jnp.abs(values - log_p)), size)[0]
    error = values.std(ddof=1) / num_draws**0.5
    mean_samples = num_samples.astype(values.dtype).mean()
    return Debiased(log_p, error, weights.pareto_k(tail), mean_samples)
