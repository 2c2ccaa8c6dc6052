r"""Bits-back coding: a model with its q(z | x) is a code as long as minus its bound.

Townsend et al. 2019 (arXiv:1901.04866), after Hinton & van Camp 1993. To push x: pop z
by q(z | x), which gives bits back; push x by p(x | z); push z by p(z). In expectation
$-\log_2 p(x | z) - \log_2 p(z) + \log_2 q(z | x)$ bits, minus the ELBO of the same bins
of z in bits, and every nat of KL(q || p(z | x)) is paid for.

The first z is popped of bits that have to be there: seed words, which decoding returns.
Later ones are popped of what was pushed before, which is as random as the model and its
q are right: for poor ones the length is not that of independent z.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, Int

from vae_jax.coding import rans, tables
from vae_jax.types import Model, Params

Batch: TypeAlias = "tuple[Coder, slice]"
Watch: TypeAlias = Callable[[Sequence[Batch]], Iterable[Batch]]


class Coder(NamedTuple):
    """A code of L rows of x at a time, one a lane, as symbols [L, N].

    Attributes:
        prior: of the latents' symbols.
        posterior: symbols of x -> codec of the latents' symbols, by q(z | x).
        likelihood: symbols of the latents -> codec of x's, by p(x | z).
    """

    prior: tables.Codec
    posterior: Callable[[Int[np.ndarray, "L N"]], tables.Codec]
    likelihood: Callable[[Int[np.ndarray, "L D"]], tables.Codec]


class Quantization(NamedTuple):
    """How finely a model's densities are rounded to integer frequencies.

    Attributes:
        latent_bits: log2 of the bins of a real latent.
        latent_precision: bits of a frequency of q(z | x).
        precision: bits of a frequency of x, and of a discrete latent.
    """

    latent_bits: int = 12
    latent_precision: int = 24
    precision: int = 18


QUANTIZATION = Quantization()


def push(
    stack: rans.Stack, coder: Coder, x: Int[np.ndarray, "L N"]
) -> tuple[rans.Stack, Float64[np.ndarray, " L"]]:
    """Puts rows on the stack; also minus log2 p(x, z) / q(z | x) at the z that it took.

    Raises:
        Exhausted: if the stack has too few bits to take z from.
    """
    posterior = coder.posterior(x)
    stack, z = posterior.pop(stack)
    likelihood = coder.likelihood(z)
    stack = coder.prior.push(likelihood.push(stack, x), z)
    bits = likelihood.num_bits(x) + coder.prior.num_bits(z) - posterior.num_bits(z)
    return stack, bits


def pop(stack: rans.Stack, coder: Coder) -> tuple[rans.Stack, Int[np.ndarray, "L N"]]:
    """The rows that `push` put on the stack, and the stack as it was before."""
    stack, z = coder.prior.pop(stack)
    stack, x = coder.likelihood(z).pop(stack)
    return coder.posterior(x).push(stack, z), x


def coder(
    model: Model,
    params: Params,
    *,
    x_shape: tuple[int, ...],
    num_values: int,
    num_lanes: int,
    quantization: Quantization = QUANTIZATION,
) -> Coder:
    """The code of a model, for `num_lanes` rows of values k / (num_values - 1).

    Real latents lie at the centers of bins of equal mass under p(z) = N(0, I), with q a
    diagonal normal; bits have p and q factorized over them. Both directions run the
    same two compiled programs on the same device, of exactly `num_lanes` rows: any
    other program may round its last bits differently, and then nothing is decoded.

    Raises:
        ValueError: for latents of another kind, or a p(x | z) that gives its entries no
            probabilities: a density on real x, or terms that are not each entry's.
    """
    recognition, generative = model.recognition, model.generative
    kinds = recognition.family.name, generative.prior_family.name
    if kinds not in _LATENTS:
        raise ValueError(
            f"q of family {kinds[0]} with a prior of family {kinds[1]} has no code: "
            "it takes diag_normal with standard_normal, or bernoulli with bernoulli"
        )
    values = jnp.linspace(0.0, 1.0, num_values)

    @jax.jit
    def of_x(x: Array) -> tuple[Array, ...]:
        def one(row: Array) -> tuple[Array, ...]:
            h = recognition.encode(params, row)
            assert recognition.family.parameters is not None
            return recognition.family.parameters(params, h)

        return jax.vmap(one)(x)

    @jax.jit
    def of_z(z: Array) -> Array:
        def one(row: Array) -> Array:
            def terms(value: Array) -> Array:
                constant = jnp.broadcast_to(value, x_shape)
                return generative.log_likelihood_terms(params, constant, row)

            return jax.vmap(terms)(values)

        return jax.vmap(one)(z)

    build = _LATENTS[kinds]
    latents = build(model, params, num_lanes, quantization)
    _check_terms(of_z(latents.value(np.zeros((num_lanes, latents.size), int))), x_shape)

    def posterior(x: np.ndarray) -> tables.Codec:
        rows = values[x].reshape(num_lanes, *x_shape)
        return latents.posterior(*(np.asarray(p) for p in of_x(rows)))

    def likelihood(z: np.ndarray) -> tables.Codec:
        log_probs = np.asarray(of_z(latents.value(z)))  # [L, K, *X]
        flat = np.moveaxis(log_probs.reshape(num_lanes, num_values, -1), 1, 2)
        return tables.categorical(flat, precision=quantization.precision)

    return Coder(latents.prior, posterior, likelihood)


class _Latents(NamedTuple):
    """Codecs of latents.

    Attributes:
        size: their number.
        prior: of p(z).
        posterior: parameters of q's family -> of q(z | x).
        value: symbols -> z.
    """

    size: int
    prior: tables.Codec
    posterior: Callable[..., tables.Codec]
    value: Callable[[np.ndarray], Array]


def _real(
    model: Model, params: Params, num_lanes: int, quantization: Quantization
) -> _Latents:
    num_bits, precision = quantization.latent_bits, quantization.latent_precision
    num_bins = 2**num_bits
    z = jnp.asarray(tables.centers(num_bins), jnp.result_type(float))
    size = _num_latents(model, params)

    def posterior(mean: np.ndarray, log_std: np.ndarray) -> tables.Codec:
        std = np.exp(log_std.astype(np.float64))
        return tables.normal(mean, std, num_bins=num_bins, precision=precision)

    prior = tables.uniform(num_lanes, size, num_bits=num_bits)
    return _Latents(size, prior, posterior, lambda symbols: z[symbols])


def _binary(
    model: Model, params: Params, num_lanes: int, quantization: Quantization
) -> _Latents:
    parameters = model.generative.prior_family.parameters
    assert parameters is not None
    (logits,) = parameters(params)

    def of_logits(logits: np.ndarray) -> tables.Codec:
        two = np.stack([np.zeros_like(logits), logits], axis=-1)
        return tables.categorical(two, precision=quantization.precision)

    prior = of_logits(np.tile(np.asarray(logits), (num_lanes, 1)))
    return _Latents(
        logits.size, prior, of_logits, lambda z: jnp.asarray(z, logits.dtype)
    )


_LATENTS = {
    ("diag_normal", "standard_normal"): _real,
    ("bernoulli", "bernoulli"): _binary,
}


def _num_latents(model: Model, params: Params) -> int:
    key = jax.eval_shape(jax.random.key, 0)
    return jax.eval_shape(model.generative.sample_prior, key, params).size


def _check_terms(log_probs: Array, x_shape: tuple[int, ...]) -> None:
    """Refuses terms that are no log-probabilities of an entry's values."""
    if log_probs.shape[2:] != x_shape:
        raise ValueError(
            f"p(x | z) has terms of shape {log_probs.shape[2:]} for x of shape "
            f"{x_shape}: entries that depend on each other given z cannot be coded"
        )
    mass = np.asarray(jax.nn.logsumexp(log_probs, axis=1), np.float64)
    if not np.allclose(mass, 0.0, atol=1e-3):
        raise ValueError(
            "p(x | z) gives an entry's values a mass of "
            f"{np.exp(mass.flat[np.abs(mass).argmax()]):.4g}, not 1: a density on real "
            "x has no code of finite length"
        )


def encode(
    build: Callable[[int], Coder],
    stack: rans.Stack,
    rows: Int[np.ndarray, "N D"],
    *,
    num_lanes: int,
    watch: Watch = iter,
) -> tuple[rans.Stack, Float64[np.ndarray, " N"]]:
    """Pushes any number of rows, and says the bits of each by the bound.

    Args:
        build: rows at a time -> their code.
        stack: of `num_lanes` heads, with bits to take the first z from.
        rows: symbols of x.
        num_lanes: rows at a time; the last ones are fewer, where it does not divide N.
        watch: is handed the batches, and hands them on: a bar of progress.

    Raises:
        Exhausted: as `push`.
    """
    bits = []
    for coder, at in watch(_batches(build, len(rows), num_lanes)):
        stack, of_batch = push(stack, coder, rows[at])
        bits.append(of_batch)
    return stack, np.concatenate(bits)


def decode(
    build: Callable[[int], Coder],
    stack: rans.Stack,
    *,
    num_rows: int,
    num_lanes: int,
    watch: Watch = iter,
) -> tuple[Int[np.ndarray, "N D"], rans.Stack]:
    """The rows that `encode` pushed, and the stack that it started from.

    Raises:
        Exhausted: if the stack is of fewer rows.
    """
    rows = []
    for coder, _ in watch(_batches(build, num_rows, num_lanes)[::-1]):
        stack, of_batch = pop(stack, coder)
        rows.insert(0, of_batch)
    return np.concatenate(rows), stack


def _batches(
    build: Callable[[int], Coder], num_rows: int, num_lanes: int
) -> list[Batch]:
    of_size = functools.cache(build)
    sizes = [min(num_lanes, num_rows - at) for at in range(0, num_rows, num_lanes)]
    return [
        (of_size(size), slice(i * num_lanes, i * num_lanes + size))
        for i, size in enumerate(sizes)
    ]
