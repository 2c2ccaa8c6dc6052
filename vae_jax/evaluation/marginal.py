"""Estimates of log p(x) by sampling, for one example."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vae_jax.estimators import importance
from vae_jax.types import Generative, Params, PRNGKey, Recognition, Scalar


class LogEvidence(NamedTuple):
    """An estimate of log p(x) with its diagnostics."""

    log_p: Scalar  # log p-hat, nats: in expectation a lower bound on log p(x)
    standard_error: Scalar  # of log p-hat, nats, by the delta method
    effective_sample_size: Scalar  # (sum w)^2 / sum w^2, between 1 and k


class _Moments(NamedTuple):
    """sum w and sum w^2 relative to the largest weight so far."""

    largest: Scalar  # log w
    first: Scalar  # sum_k exp(log w_k - largest)
    second: Scalar  # sum_k exp(2 (log w_k - largest))


def importance_sampling(
    generative: Generative,
    recognition: Recognition,
    *,
    num_samples: int,
    chunk_size: int = 500,
) -> Callable[[PRNGKey, Params, Array], LogEvidence]:
    r"""(key, params, x) -> log p-hat by k importance samples from q(z | x).

    $\hat p = \frac1k\sum_i p(x, z_i) / q(z_i|x)$ is unbiased for p(x), its logarithm a
    stochastic lower bound on log p(x) (see `bounds`); L_k of Burda et al. 2016
    (arXiv:1509.00519). The weights are reduced chunk by chunk by a running log-sum-exp,
    so memory grows with the chunk and not with k. The standard error,
    sqrt(((mean w^2) / (mean w)^2 - 1) / k), trusts the weights seen: where q has
    thinner tails than the posterior it is too small, and an effective sample size of a
    few is the sign.

    Args:
        generative: the joint p(x, z).
        recognition: the proposal q(z | x).
        num_samples: k, a multiple of the chunk size or smaller than it.
        chunk_size: samples decoded at a time.

    Raises:
        ValueError: if a number is below one or k is no multiple of the chunk size.
    """
    if num_samples < 1 or chunk_size < 1:
        raise ValueError(
            f"num_samples and chunk_size must be positive, got {num_samples} and "
            f"{chunk_size}."
        )
    chunk = min(chunk_size, num_samples)
    if num_samples % chunk:
        raise ValueError(
            f"num_samples={num_samples} is not a multiple of chunk_size={chunk}."
        )
    draw = importance.log_weights(generative, recognition, num_samples=chunk)

    def estimate(key: PRNGKey, params: Params, x: Array) -> LogEvidence:
        h = recognition.encode(params, x)

        def add_chunk(moments: _Moments, chunk: Array) -> tuple[_Moments, None]:
            # Keys split beforehand would be an input of the scan, which `vmap` then
            # transposes; jax_debug_key_reuse takes a transposed key for a used one.
            key_chunk = jax.random.fold_in(key, chunk)
            return _add(moments, draw(key_chunk, params, x, h)), None

        zero = jnp.zeros((), h.dtype)
        start = _Moments(jnp.full((), -jnp.inf, h.dtype), zero, zero)
        chunks = jnp.arange(num_samples // chunk)
        return _summarize(jax.lax.scan(add_chunk, start, chunks)[0], num_samples)

    return estimate


def _add(moments: _Moments, log_w: Array) -> _Moments:
    largest = jnp.maximum(moments.largest, log_w.max())
    # All weights zero so far: any finite reference avoids inf - inf.
    reference = jnp.where(jnp.isfinite(largest), largest, 0.0)
    old, ratios = moments.largest - reference, log_w - reference
    first = moments.first * jnp.exp(old) + jnp.exp(ratios).sum()
    second = moments.second * jnp.exp(2.0 * old) + jnp.exp(2.0 * ratios).sum()
    return _Moments(largest, first, second)


def _summarize(moments: _Moments, num_samples: int) -> LogEvidence:
    size = moments.first**2 / moments.second
    log_p = moments.largest + jnp.log(moments.first / num_samples)
    variance = jnp.maximum(1.0 / size - 1.0 / num_samples, 0.0)
    return LogEvidence(log_p, jnp.sqrt(variance), size)
