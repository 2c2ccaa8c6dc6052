"""Exact sums over binary latents: what the estimators for discrete latents estimate."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from vae_jax import numerics
from vae_jax.types import (
    Generative,
    Objective,
    Params,
    PRNGKey,
    Recognition,
    Scalar,
    log_joint,
)


def elbo(
    generative: Generative,
    recognition: Recognition,
    *,
    num_latents: int,
    max_terms: int = 2**24,
    chunk_size: int = 4096,
) -> Objective:
    r"""The ELBO of binary latents z in {0, 1}^D, summed and not sampled.

    $\sum_z q(z|x)[\log p(x, z) - \log q(z|x)]$, AEVB (arXiv:1312.6114) equation 2 with
    the sum of a discrete z. Value: the ELBO in nats, without noise; the key is not
    used. Gradient: exact, for theta and for phi. Any q over z [D] with a log_prob will
    do, also a layered one. A z whose q underflows to 0 contributes 0.

    Args:
        generative: the joint p(x, z).
        recognition: q(z | x); z is made in the dtype of h.
        num_latents: D, all layers together.
        max_terms: the largest 2^D that is accepted; each term is one decoding.
        chunk_size: terms at once, which bounds memory.

    Raises:
        ValueError: if num_latents is not in 1, ..., 31, 2^num_latents exceeds
            max_terms, or chunk_size is below one.
    """
    _check(
        num_latents,
        max_terms,
        "sample instead: leave_one_out, vimco, disarm, or the biased relaxations "
        "straight_through, binary_concrete and gumbel_softmax",
    )

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        del key
        h = recognition.encode(params, x)

        def term(z: Array) -> Scalar:
            log_q = recognition.log_prob(params, h, z)
            q = jnp.exp(log_q)
            log_w = log_joint(generative, params, x, z) - log_q
            return q * jnp.where(q > 0.0, log_w, 0.0)

        return numerics.sum_over_binary(
            term,
            num_bits=num_latents,
            chunk_size=chunk_size,
            max_terms=max_terms,
            dtype=h.dtype,
        )

    return objective


def log_evidence(
    generative: Generative,
    *,
    num_latents: int,
    max_terms: int = 2**24,
    chunk_size: int = 4096,
) -> Callable[[Params, Array], Scalar]:
    r"""(params, x) -> log p(x) in nats, for binary latents z in {0, 1}^D.

    $\log\sum_z p(x, z)$, the left side of AEVB (arXiv:1312.6114) equation 1, with its
    exact gradient in theta; no gradient in phi. z is made in the dtype of x, a float.

    Args:
        generative: the joint p(x, z).
        num_latents: D, all layers together.
        max_terms: the largest 2^D that is accepted; each term is one decoding.
        chunk_size: terms at once, which bounds memory.

    Raises:
        ValueError: as `elbo`.
    """
    _check(num_latents, max_terms, "bound it from below by importance sampling: iwae")

    def log_p(params: Params, x: Array) -> Scalar:
        return numerics.log_sum_exp_over_binary(
            lambda z: log_joint(generative, params, x, z),
            num_bits=num_latents,
            chunk_size=chunk_size,
            max_terms=max_terms,
            dtype=x.dtype,
        )

    return log_p


def _check(num_latents: int, max_terms: int, instead: str) -> None:
    try:
        numerics.check_binary_terms(num_bits=num_latents, max_terms=max_terms)
    except ValueError as error:
        raise ValueError(f"num_latents={num_latents}: {error} Or {instead}.") from error
