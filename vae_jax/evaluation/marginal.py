"""Estimates of log p(x) by sampling, for one example.

Each draws z from a density r that is known, and averages p(x, z) / r(z): unbiased for
p(x), its logarithm a stochastic lower bound on log p(x) (see `bounds`). They differ in
r: the prior and the uniform density are what one writes down first, and fail where the
posterior is narrow; q(z | x) is made for it.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vae_jax import numerics, vae
from vae_jax.estimators import importance
from vae_jax.evaluation import weights
from vae_jax.types import (
    Generative,
    Model,
    Params,
    PRNGKey,
    Scalar,
    log_joint,
    log_likelihood,
)

Estimate: TypeAlias = Callable[[PRNGKey, Params, Array], weights.LogEvidence]
"""(key, params, x) -> log p-hat in nats, with its diagnostics."""


def importance_sampling(
    model: Model,
    *,
    num_samples: int,
    chunk_size: int = 500,
) -> Estimate:
    r"""(key, params, x) -> log p-hat by k importance samples from q(z | x).

    $\hat p = \frac1k\sum_i p(x, z_i) / q(z_i|x)$, whose logarithm is L_k of Burda et
    al. 2016 (arXiv:1509.00519). The weights are reduced chunk by chunk by a running
    log-sum-exp, so memory grows with the chunk and the tail's 3 sqrt(k). The standard
    error, sqrt(((mean w^2) / (mean w)^2 - 1) / (k - 1)), trusts the weights seen: where
    q has thinner tails than the posterior it is too small. An effective sample size of
    a few and a pareto_k above 0.7 are the signs (`weights.doubts`). One sample has an
    infinite one.

    Args:
        model: the joint p(x, z) and the proposal q(z | x), any density over its z.
        num_samples: k, a multiple of the chunk size or smaller than it.
        chunk_size: samples decoded at a time.

    Raises:
        ValueError: if a number is below one or k is no multiple of the chunk size; when
            traced, if q's z has not the shape of the model's.

    Examples:
        >>> from vae_jax.latent_models import ppca
        >>> p = ppca.generative(1, (2,))
        >>> model = vae.model(p, ppca.recognition(1))
        >>> params = model.init(jax.random.key(0))
        >>> x = jnp.array([0.5, -1.0])
        >>> estimate = importance_sampling(model, num_samples=10)
        >>> found = estimate(jax.random.key(1), params, x)
        >>> exact = ppca.log_evidence(params, x)  # the proposal is the posterior
        >>> bool(jnp.abs(found.log_p - exact) < 1e-4)
        True
    """
    chunk = chunk_of(num_samples, chunk_size)
    draw = importance.log_weights(model, num_samples=chunk)

    def log_weights(params: Params, x: Array) -> Callable[[PRNGKey], Array]:
        vae.check_latents(model, params, x)
        h = model.recognition.encode(params, x)
        return lambda key: draw(key, params, x, h)

    return _streamed(log_weights, num_samples=num_samples, chunk=chunk)


def prior_sampling(
    generative: Generative, *, num_samples: int, chunk_size: int = 500
) -> Estimate:
    r"""(key, params, x) -> log p-hat by k samples from the prior p(z).

    $\hat p = \frac1k\sum_i p(x|z_i)$. Unbiased, and useless where few draws of the
    prior explain x: log p-hat is then that of the best of k, far too low, with an
    effective sample size near one. Kept as what `importance_sampling` is for.

    Args:
        generative: the joint p(x, z).
        num_samples: k, a multiple of the chunk size or smaller than it.
        chunk_size: samples decoded at a time.

    Raises:
        ValueError: if a number is below one or k is no multiple of the chunk size.
    """
    chunk = chunk_of(num_samples, chunk_size)

    def log_weights(params: Params, x: Array) -> Callable[[PRNGKey], Array]:
        def log_weight(key: PRNGKey) -> Scalar:
            z = generative.sample_prior(key, params)
            return log_likelihood(generative, params, x, z)

        return lambda key: numerics.over_samples(key, log_weight, num_samples=chunk)

    return _streamed(log_weights, num_samples=num_samples, chunk=chunk)


def uniform_sampling(
    generative: Generative,
    *,
    limit: float | None,
    num_samples: int,
    chunk_size: int = 500,
) -> Estimate:
    r"""(key, params, x) -> log p-hat by k uniform z: the sum over all z, subsampled.

    $\hat p = \frac Vk\sum_i p(x, z_i)$ with z_i uniform over a set of volume V: the box
    [-limit, limit]^D, V = (2 limit)^D, or, for limit=None, the vectors {0, 1}^D,
    V = 2^D. The lecture's "approximation 1". Kept because it shows why it fails: nearly
    all z have no share in p(x), ever more so as D grows, and log p-hat is that of the
    few that do. What lies outside of the box is left out besides.

    Args:
        generative: the joint p(x, z), with z real, or of 0. and 1. for limit=None.
        limit: half a side of the box, or None for binary z.
        num_samples: k, a multiple of the chunk size or smaller than it.
        chunk_size: samples decoded at a time.

    Raises:
        ValueError: if a number is below one, k is no multiple of the chunk size, or
            limit is not positive and finite.
    """
    chunk = chunk_of(num_samples, chunk_size)
    if limit is not None:
        numerics.check_in("(0, inf)", limit=limit, why="; None is for bits")

    def log_weights(params: Params, x: Array) -> Callable[[PRNGKey], Array]:
        like = generative.latents(params)
        log_volume = like.size * jnp.log(
            jnp.asarray(2.0 if limit is None else 2.0 * limit, like.dtype)
        )

        def log_weight(key: PRNGKey) -> Scalar:
            if limit is None:
                z = jax.random.bernoulli(key, shape=like.shape).astype(like.dtype)
            else:
                z = jax.random.uniform(key, like.shape, like.dtype, -limit, limit)
            return log_joint(generative, params, x, z) + log_volume

        return lambda key: numerics.over_samples(key, log_weight, num_samples=chunk)

    return _streamed(log_weights, num_samples=num_samples, chunk=chunk)


def chunk_of(num_samples: int, chunk_size: int) -> int:
    """How many samples are drawn at a time.

    Raises:
        ValueError: if a number is below one, or num_samples is above the chunk size
            and no multiple of it.
    """
    numerics.check_positive(num_samples=num_samples, chunk_size=chunk_size)
    chunk = min(chunk_size, num_samples)
    if num_samples % chunk:
        raise ValueError(
            f"num_samples={num_samples} is not a multiple of chunk_size={chunk}"
        )
    return chunk


def _streamed(
    log_weights: Callable[[Params, Array], Callable[[PRNGKey], Array]],
    *,
    num_samples: int,
    chunk: int,
) -> Estimate:
    """The summary of weights drawn a chunk at a time: (params, x) -> key -> log w."""

    def estimate(key: PRNGKey, params: Params, x: Array) -> weights.LogEvidence:
        draw = log_weights(params, x)

        def add_chunk(state: weights.Running, i: Array) -> tuple[weights.Running, None]:
            # Keys split beforehand would be an input of the scan, which `vmap` then
            # transposes; jax_debug_key_reuse takes a transposed key for a used one.
            return weights.add(state, draw(jax.random.fold_in(key, i))), None

        dtype = jax.eval_shape(draw, key).dtype
        start = weights.start(num_samples, dtype)
        chunks = jnp.arange(num_samples // chunk)
        return weights.summary(numerics.scan(add_chunk, start, chunks)[0], num_samples)

    return estimate
