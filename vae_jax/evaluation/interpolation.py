"""Paths through the latent space: between two codes, and along one latent."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
