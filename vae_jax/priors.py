"""Priors p(z): unconditional densities over the latents."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax.types import Conditional, PRNGKey, PyTree, Scalar


def standard_normal(num_latents: int) -> Conditional:
    """N(0, I), with no parameters and no conditioning.

    Raises:
        ValueError: if num_latents is below one.
    """
    if num_latents < 1:
        raise ValueError(f"num_latents must be positive, got {num_latents}.")

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Float[Array, " D"]:
        del params
        return jax.random.normal(key, (num_latents,), h.dtype)

    def log_prob(params: PyTree, h: Array, z: Float[Array, " D"]) -> Scalar:
        del params, h
        return -(0.5 * z**2 + 0.5 * jnp.log(2.0 * jnp.pi)).sum()

    return Conditional(0, lambda key: (), sample, log_prob)
