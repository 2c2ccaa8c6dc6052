"""Priors p(z): unconditional densities over the latents."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import likelihoods
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


def bernoulli(num_latents: int) -> Conditional:
    """Independent bits with learned logits [D], which start at zero.

    z is 0. or 1. in the dtype of the logits; samples carry no gradient.

    Raises:
        ValueError: if num_latents is below one.
    """
    if num_latents < 1:
        raise ValueError(f"num_latents must be positive, got {num_latents}.")

    def init(key: PRNGKey) -> PyTree:
        del key
        return {"logits": jnp.zeros((num_latents,))}

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Float[Array, " D"]:
        del h
        p = jax.nn.sigmoid(params["logits"])
        return jax.random.bernoulli(key, p).astype(p.dtype)

    def log_prob(params: PyTree, h: Array, z: Float[Array, " D"]) -> Scalar:
        del h
        return likelihoods.bernoulli_terms(params["logits"], z).sum()

    return Conditional(0, init, sample, log_prob)


def categorical(num_latents: int, num_classes: int) -> Conditional:
    """Independent choices among C classes with learned logits, which start at zero.

    z is one-hot, [D, C] in the dtype of the logits; samples carry no gradient.

    Raises:
        ValueError: if num_latents is below one or num_classes below two.
    """
    if num_latents < 1:
        raise ValueError(f"num_latents must be positive, got {num_latents}.")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least two, got {num_classes}.")

    def init(key: PRNGKey) -> PyTree:
        del key
        return {"logits": jnp.zeros((num_latents, num_classes))}

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Float[Array, "D C"]:
        del h
        chosen = jax.random.categorical(key, params["logits"])
        return jax.nn.one_hot(chosen, num_classes, dtype=params["logits"].dtype)

    def log_prob(params: PyTree, h: Array, z: Float[Array, "D C"]) -> Scalar:
        del h
        return (z * jax.nn.log_softmax(params["logits"])).sum()

    return Conditional(0, init, sample, log_prob)
