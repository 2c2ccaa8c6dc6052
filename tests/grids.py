"""All codes of a finite grid, as symbols and as values."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import finite_scalar

LEVELS = (2, 3, 4, 5)


def codes(levels=LEVELS):
    """All of them, [K, D], as levels."""
    return jnp.asarray(list(itertools.product(*map(range, levels))))


def values(k, levels=LEVELS):
    """The z of each row of symbols."""
    dtype = jnp.result_type(float)
    return jax.vmap(lambda k: finite_scalar.grid(levels).value((), k, dtype))(k)


def symbols(z, levels=LEVELS):
    """The symbols of each z."""
    return np.asarray(jax.vmap(lambda z: finite_scalar.grid(levels).symbols((), z))(z))
