r"""Discrete codes: finitely many values of z, and the priors that they can have.

A code is a row of symbols k, one of K_n at place n; `Codes` says which z is which k.
The q of such a model is a point mass at the code k(x) (`finite_scalar`,
`vector_quantized`), and

$$\log p(x) = \log\sum_k p(k)\,p(x|k) \ge \log p(k(x)) + \log p(x|k(x)),$$

so the ELBO is exact without sampling, in nats that compare with any other model's:
densities here are with respect to counting, log q = 0. It is tight where p(x | k) is
concentrated on one code, and **no number of samples of q makes it tighter**: importance
sampling from a point mass does not cover the posterior, and is no estimate of log p(x).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from vae_jax import networks
from vae_jax.types import (
    Conditional,
    Family,
    Network,
    PRNGKey,
    PyTree,
    Scalar,
    Symbols,
    conditional,
)


class Codes(NamedTuple):
    """The values that a discrete z can have.

    Attributes:
        sizes: K_n, the symbols that there are at each of N places.
        entries: of z at each place: z is [N * entries], place after place.
        init: key -> parameters, such as codebooks.
        symbols: params, z -> k [N], the nearest at each place.
        value: params, k, dtype -> z, the inverse of `symbols`.
    """

    sizes: np.ndarray
    entries: int
    init: Callable[[PRNGKey], PyTree]
    symbols: Callable[[PyTree, Array], Int[Array, " N"]]
    value: Callable[[PyTree, Int[Array, " N"], jnp.dtype], Array]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of z."""
        return (len(self.sizes) * self.entries,)


def point_mass(
    family: str,
    codes: Codes,
    *,
    width: int,
    quantized: Callable[[PyTree, Array], tuple[Array, Array]],
) -> Conditional:
    """q(z | h): all its mass at the code of h. Keys are not read.

    log q is 0 at the code of h and minus infinity elsewhere, without a gradient.

    Args:
        family: its name.
        codes: what z can be; its parameters are the density's.
        width: of h.
        quantized: params, h -> z with the gradient that it is to have, and its k.
    """

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        del key
        return quantized(params, h)[0]

    def log_prob(params: PyTree, h: Array, z: Array) -> Scalar:
        same = jnp.all(codes.symbols(params, z) == quantized(params, h)[1])
        return jnp.where(same, jnp.zeros((), h.dtype), -jnp.inf)

    def sample_and_log_prob(
        key: PRNGKey, params: PyTree, h: Array
    ) -> tuple[Array, Scalar]:
        return sample(key, params, h), jnp.zeros((), h.dtype)

    def moments(params: PyTree, h: Array) -> tuple[Array, Array]:
        z, _ = quantized(params, h)
        return z, jnp.zeros_like(z)

    return conditional(
        Family(family),
        codes.shape,
        width=width,
        init=codes.init,
        sample=sample,
        log_prob=log_prob,
        sample_and_log_prob=sample_and_log_prob,
        moments=moments,
    )


def uniform_prior(codes: Codes) -> Conditional:
    """Every code with the same probability: log p(k) = -sum_n log K_n.

    Its parameters are a dictionary with `codes`.
    """

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Float[Array, " D"]:
        k = jax.random.randint(key, codes.sizes.shape, 0, codes.sizes)
        return codes.value(params["codes"], k, h.dtype)

    def log_prob(params: PyTree, h: Array, z: Array) -> Scalar:
        del params, z
        return jnp.asarray(-np.log(codes.sizes).sum(), h.dtype)

    return conditional(
        Family("uniform_codes"),
        codes.shape,
        width=0,
        init=lambda key: {"codes": codes.init(key)},
        sample=sample,
        log_prob=log_prob,
        symbols=_symbols(
            codes,
            lambda params, z: jnp.where(
                _exists(codes), -jnp.log(codes.sizes.astype(z.dtype))[:, None], -jnp.inf
            ),
        ),
    )


def autoregressive_prior(codes: Codes, network: Network) -> Conditional:
    r"""$p(k) = \prod_n p(k_n | k_{<n})$, each a softmax over the K_n symbols.

    Its parameters are a dictionary with `codes` and `network`, and log p(k) has a
    gradient to the network's alone. The density costs one pass of the network, a sample
    N.

    Args:
        codes: what z can be.
        network: as `log_probs` takes it. From zero it starts uniform
            (`networks.from_zero`).

    Raises:
        ValueError: when traced, for a network of another width.
    """
    of_symbols = log_probs(codes, network)

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Float[Array, " D"]:
        def value(k: Array) -> Array:
            return codes.value(params["codes"], k, h.dtype)

        def choose(n: Int[Array, ""], k: Array) -> Array:
            of_place = of_symbols(params["network"], value(k))[n]
            symbol = jax.random.categorical(jax.random.fold_in(key, n), of_place)
            return k.at[n].set(symbol)

        start = jnp.zeros(codes.sizes.shape, int)
        return value(jax.lax.fori_loop(0, len(codes.sizes), choose, start))

    def log_prob(params: PyTree, h: Array, z: Float[Array, " D"]) -> Scalar:
        del h
        chosen = codes.symbols(params["codes"], z)[:, None]
        of_each = of_symbols(params["network"], z)
        return jnp.take_along_axis(of_each, chosen, axis=1).sum()

    return conditional(
        Family("autoregressive_codes"),
        codes.shape,
        width=0,
        init=networks.init_each(
            {"codes": Network(codes.init, lambda params, z: z), "network": network}
        ),
        sample=sample,
        log_prob=log_prob,
        symbols=_symbols(codes, lambda params, z: of_symbols(params["network"], z)),
    )


def _symbols(codes: Codes, log_probs: Callable[[PyTree, Array], Array]) -> Symbols:
    """Of a prior whose parameters hold those of the codes."""
    return Symbols(
        lambda params, h, z: codes.symbols(params["codes"], z),
        lambda params, h, k: codes.value(params["codes"], k, h.dtype),
        lambda params, h, z: log_probs(params, z),
    )


def _exists(codes: Codes) -> Bool[np.ndarray, "N K"]:
    return np.arange(codes.sizes.max()) < codes.sizes[:, None]


def log_probs(
    codes: Codes, network: Network
) -> Callable[[PyTree, Float[Array, " D"]], Float[Array, "N K"]]:
    """(the network's parameters, z) -> log p(k_n | k_{<n}) of every symbol, nats.

    Minus infinity for symbols that there are not. No gradient passes to z.

    Args:
        codes: what z can be.
        network: z -> [max_n K_n * N], blocks of N as `networks.made` gives them, entry
            n of each a function of the places of z before n.
    """
    most, num_places = int(codes.sizes.max()), len(codes.sizes)

    def of_symbols(params: PyTree, z: Float[Array, " D"]) -> Float[Array, "N K"]:
        output = network.apply(params, jax.lax.stop_gradient(z))
        if output.shape != (most * num_places,):
            raise ValueError(
                f"the network of {num_places} places of at most {most} symbols gives "
                f"[{most * num_places}] numbers, got {output.shape}"
            )
        logits = output.reshape(most, num_places).T
        return jax.nn.log_softmax(jnp.where(_exists(codes), logits, -jnp.inf))

    return of_symbols


def perplexity(k: Shaped[np.ndarray, "R N"]) -> Float[np.ndarray, " N"]:
    """exp of the entropy of each column's symbols, or values, over R rows.

    Over a whole split: over a batch it could not exceed the batch's size.
    """
    entropies = []
    for of_place in k.T:
        share = np.unique(of_place, return_counts=True)[1] / len(k)
        entropies.append(-(share * np.log(share)).sum())
    return np.exp(entropies)
