"""Paths through the latent space: between two codes, and along one latent."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vae_jax import numerics
from vae_jax.types import Generative, Params, PRNGKey


def linear(
    start: Float[Array, " D"], end: Float[Array, " D"], times: Float[Array, " T"]
) -> Float[Array, "T D"]:
    """(1 - t) start + t end at each time."""
    return jnp.outer(1.0 - times, start) + jnp.outer(times, end)


def spherical(
    start: Float[Array, " D"], end: Float[Array, " D"], times: Float[Array, " T"]
) -> Float[Array, "T D"]:
    r"""$(\sin((1-t)\Omega)\,a + \sin(t\Omega)\,b) / \sin\Omega$ at each time t.

    White 2016 (arXiv:1609.04468), with $\Omega$ the angle between the two: for codes of
    one length the path keeps that length, where the straight one passes through the
    middle, of which draws of a prior in many dimensions have nothing. The straight path
    where there is no arc: for codes that point the same way, opposite ways to within
    1e-3 (the arc has no direction of its own), or are zero.
    """
    size_start, size_end = jnp.linalg.norm(start), jnp.linalg.norm(end)
    known = (size_start > 0.0) & (size_end > 0.0)
    a = start / jnp.where(known, size_start, 1.0)
    b = end / jnp.where(known, size_end, 1.0)
    # Kahan's angle: the arc cosine of a product has no digits near 0 and pi.
    angle = 2.0 * jnp.arctan2(jnp.linalg.norm(a - b), jnp.linalg.norm(a + b))
    curved = known & (angle < jnp.pi - 1e-3)
    angle = jnp.where(curved, angle, 0.0)

    def share(t: Float[Array, " T"]) -> Float[Array, " T"]:
        # sin(t angle) / sin(angle), which is t at an angle of zero.
        return t * jnp.sinc(t * angle / jnp.pi) / jnp.sinc(angle / jnp.pi)

    return jnp.outer(share(1.0 - times), start) + jnp.outer(share(times), end)


def along_latents(
    code: Float[Array, " D"], latents: Int[Array, " L"], values: Float[Array, "L T"]
) -> Float[Array, "L T D"]:
    """The code with one latent at a time set to each of its values."""

    def one(latent: Array, value: Array) -> Float[Array, " D"]:
        return code.at[latent].set(value)

    over_values = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(over_values)(latents, values)


def prior_values(
    generative: Generative, *, num_values: int, num_draws: int = 1000
) -> Callable[[PRNGKey, Params], Float[Array, "D T"]]:
    """(key, params) -> values of each latent over the width of the prior.

    Even steps from the 1st to the 99th percentile of the latent over draws of z.

    Args:
        generative: whose prior it is.
        num_values: T, both ends included.
        num_draws: of z.

    Raises:
        ValueError: if a number is below one.
    """
    numerics.check_positive(num_values=num_values, num_draws=num_draws)

    def values(key: PRNGKey, params: Params) -> Float[Array, "D T"]:
        keys = jax.random.split(key, num_draws)
        draws = jax.vmap(generative.sample_prior, (0, None))(keys, params)
        low, high = jnp.percentile(draws, jnp.array([1.0, 99.0], draws.dtype), axis=0)
        return jnp.linspace(low, high, num_values, axis=1)

    return values
