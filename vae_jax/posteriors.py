"""Approximate posteriors q(z | h), where h is the encoder's output for one x."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import reparameterize
from vae_jax.types import Conditional, PRNGKey, PyTree, Scalar


def diag_normal(num_latents: int) -> Conditional:
    """Normal with diagonal covariance; h = [mean, log_std], each of length D.

    Reparameterized as z = mean + std * eps (AEVB, arXiv:1312.6114, section 2.4), so
    gradients reach h through `sample`.

    Raises:
        ValueError: if num_latents is below one.
    """
    if num_latents < 1:
        raise ValueError(f"num_latents must be positive, got {num_latents}.")

    def sample(key: PRNGKey, params: PyTree, h: Float[Array, " H"]) -> Array:
        del params
        mean, log_std = jnp.split(h, 2)
        return reparameterize.location_scale(key, mean, log_std)

    def log_prob(params: PyTree, h: Float[Array, " H"], z: Array) -> Scalar:
        del params
        mean, log_std = jnp.split(h, 2)
        return diag_normal_log_prob(z, mean, log_std)

    return Conditional(2 * num_latents, lambda key: (), sample, log_prob)


def diag_normal_log_prob(
    z: Float[Array, " D"], mean: Float[Array, " D"], log_std: Float[Array, " D"]
) -> Scalar:
    """log N(z; mean, diag(std^2)) in nats; the scale stays a logarithm throughout."""
    eps = (z - mean) * jnp.exp(-log_std)
    return -(0.5 * eps**2 + log_std + 0.5 * jnp.log(2.0 * jnp.pi)).sum()
