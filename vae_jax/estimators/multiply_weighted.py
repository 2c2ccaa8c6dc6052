"""Bounds of M outer and K inner samples, which keep the signal for phi as K grows.

Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better
(arXiv:1802.04537). The signal-to-noise ratio of the gradient for phi falls as
sqrt(M / K), that for theta rises as sqrt(M K): so theta wants K large and phi wants M.
"""

from collections.abc import Callable

import jax
from jax.lax import stop_gradient
from jaxtyping import Array

from vae_jax import bounds, numerics
from vae_jax.estimators import importance
from vae_jax.types import ExampleObjective, Model, Params, PRNGKey, Scalar


def miwae(
    model: Model,
    *,
    num_outer: int,
    num_samples: int,
) -> ExampleObjective:
    """The mean of M draws of the K-sample bound: M num_outer, K num_samples.

    Value: unbiased for L_K, not for L_{M K}. Gradient: unbiased for that of L_K, theta
    and phi alike, with a Mth of the variance of `importance.iwae`'s.

    Raises:
        ValueError: if num_outer or num_samples is below one.
    """
    draw = _log_weights(model, num_outer, num_samples)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        return bounds.miwae(draw(key, params, x))

    return objective


def piwae(
    model: Model,
    *,
    num_outer: int,
    num_samples: int,
) -> ExampleObjective:
    """theta climbs the bound of all M K samples, phi that of M times K.

    Value: one draw of L_{M K}. Gradient: unbiased for that of L_{M K} in theta and for
    that of L_K in phi. The two differ, so no function has this gradient; one forward
    pass serves both, and two backward.

    Raises:
        ValueError: if num_outer or num_samples is below one.
    """
    draw = _log_weights(model, num_outer, num_samples)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        fixed = stop_gradient(params)
        for_theta = draw(key, Params(params.generative, fixed.recognition), x)
        # The same noise on purpose: both are the same numbers, computed once.
        same = jax.random.clone(key)
        for_phi = draw(same, Params(fixed.generative, params.recognition), x)
        of_all = bounds.iwae(for_theta.ravel())
        # Minus infinity where all weights of one of the M are zero, which has no part
        # in the value.
        return numerics.attach_gradient(of_all, of_all + bounds.miwae(for_phi))

    return objective


def _log_weights(
    model: Model, num_outer: int, num_samples: int
) -> Callable[[PRNGKey, Params, Array], Array]:
    """(key, params, x) -> log w [M, K]."""
    numerics.check_positive(num_outer=num_outer, num_samples=num_samples)
    draw = importance.log_weights(model, num_samples=num_outer * num_samples)

    def rows(key: PRNGKey, params: Params, x: Array) -> Array:
        log_w = draw(key, params, x, model.recognition.encode(params, x))
        return log_w.reshape(num_outer, num_samples)

    return rows
