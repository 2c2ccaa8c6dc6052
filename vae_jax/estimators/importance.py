"""Importance-weighted bounds of one example."""

from collections.abc import Callable

from jaxtyping import Array

from vae_jax import bounds, numerics
from vae_jax.types import (
    Generative,
    Objective,
    Params,
    PRNGKey,
    Recognition,
    Scalar,
    log_joint,
)


def log_weights(
    generative: Generative, recognition: Recognition, *, num_samples: int
) -> Callable[[PRNGKey, Params, Array, Array], Array]:
    """(key, params, x, h) -> log w [K] in nats, for z_k drawn from q(z | h).

    log w_k = log p(x, z_k) - log q(z_k | h). h is an argument so that a caller encodes
    once for many chunks of samples, or gives a q of its own.

    Raises:
        ValueError: if num_samples is below one.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be positive, got {num_samples}.")

    def draw(key: PRNGKey, params: Params, x: Array, h: Array) -> Array:
        def log_weight(key: PRNGKey) -> Scalar:
            z = recognition.sample(key, params, h)
            log_q = recognition.log_prob(params, h, z)
            return log_joint(generative, params, x, z) - log_q

        return numerics.over_samples(key, log_weight, num_samples=num_samples)

    return draw


def iwae(
    generative: Generative, recognition: Recognition, *, num_samples: int
) -> Objective:
    """The K-sample bound and its ordinary reparameterized gradient.

    Burda et al. 2016 (arXiv:1509.00519), equations 8 and 13. Value: one draw of L_K,
    unbiased for the bound and, in expectation, below log p(x). Gradient: unbiased for
    that of L_K, theta and phi alike. With num_samples=1 it is SGVB estimator A.

    Raises:
        ValueError: if num_samples is below one.
    """
    draw = log_weights(generative, recognition, num_samples=num_samples)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        return bounds.iwae(draw(key, params, x, recognition.encode(params, x)))

    return objective
