"""Exact sums over binary latents: what the estimators for discrete latents estimate."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vae_jax import numerics, vae
from vae_jax.types import (
    ExampleObjective,
    Family,
    Generative,
    Model,
    Params,
    PRNGKey,
    PyTree,
    Recognition,
    Scalar,
    conditional,
    log_joint,
)


def elbo(
    model: Model,
    *,
    num_latents: int,
    max_terms: int = 2**24,
    chunk_size: int = 4096,
) -> ExampleObjective:
    r"""The ELBO of binary latents z in {0, 1}^D, summed and not sampled.

    $\sum_z q(z|x)[\log p(x, z) - \log q(z|x)]$, AEVB (arXiv:1312.6114) equation 2 with
    the sum of a discrete z. Value: the ELBO in nats, without noise; the key is not
    used. Gradient: exact, for theta and for phi. Any q over z [D] with a log_prob will
    do, also a layered one. A z whose q underflows to 0 contributes 0.

    Args:
        model: the joint p(x, z) and q(z | x); z is made in the dtype of x, a float.
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

    recognition = model.recognition

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        del key
        h = recognition.encode(params, x)

        def term(z: Array) -> Scalar:
            log_q = recognition.log_prob(params, h, z)
            log_w = log_joint(model.generative, params, x, z) - log_q
            return numerics.weighed(jnp.exp(log_q), log_w)

        return numerics.sum_over_binary(
            term,
            num_bits=num_latents,
            chunk_size=chunk_size,
            max_terms=max_terms,
            dtype=x.dtype,
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


def posterior(
    generative: Generative,
    *,
    num_latents: int,
    max_terms: int = 2**16,
    chunk_size: int = 4096,
) -> Recognition:
    r"""The exact posterior p(z | x) of binary latents z in {0, 1}^D, as a table.

    h [2^D] is log p(z | x) in nats of every z, in the order of
    `numerics.binary_digits`: log p(x, z) less its log-sum-exp. It is the q at which the
    divergence in AEVB (arXiv:1312.6114) equation 1 is zero, so `elbo` under it equals
    `log_evidence`. For each x, `encode` costs 2^D decodings and `sample` 2^D draws of
    noise; `log_prob` looks up one entry.

    It reads theta alone and has no parameters; z is made in the dtype of x, a float.
    Samples carry no gradient, h the exact one in theta. With several layers z is all of
    them: the posterior of a layered model does not factorize.

    Args:
        generative: the joint p(x, z).
        num_latents: D, all layers together.
        max_terms: the largest 2^D that is accepted.
        chunk_size: decodings at once, which bounds memory beside h.

    Raises:
        ValueError: as `elbo`.
    """
    _check(num_latents, max_terms, "fit a q: leave_one_out, vimco or disarm")
    numerics.check_positive(chunk_size=chunk_size)

    def digits(row: Array, like: Array) -> Array:
        return numerics.binary_digits(row, num_bits=num_latents, dtype=like.dtype)

    def encode(params: Params, x: Array) -> Array:
        @functools.partial(jax.checkpoint, prevent_cse=False)  # a scan needs no barrier
        def term(row: Array) -> Scalar:
            return log_joint(generative, params, x, digits(row, x))

        rows = jnp.arange(2**num_latents, dtype=jnp.uint32)
        return jax.nn.log_softmax(jax.lax.map(term, rows, batch_size=chunk_size))

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        del params
        return digits(jax.random.categorical(key, h).astype(jnp.uint32), h)

    def log_prob(params: PyTree, h: Array, z: Array) -> Scalar:
        del params
        return h[numerics.binary_row(z)]

    table = conditional(
        Family("table of all binary latents"),
        (num_latents,),
        width=2**num_latents,
        sample=sample,
        log_prob=log_prob,
    )
    return vae.recognition(encode, table)


def _check(num_latents: int, max_terms: int, instead: str) -> None:
    try:
        numerics.check_binary_terms(num_bits=num_latents, max_terms=max_terms)
    except ValueError as error:
        raise ValueError(f"num_latents={num_latents}: {error}; or {instead}") from error
