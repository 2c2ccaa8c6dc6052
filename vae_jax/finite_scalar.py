r"""Finite scalar quantization: codes that are rounded numbers (Mentzer et al. 2023).

Each latent is one of L_d values on a grid in [-1, 1], the nearest to a squashed output
of the encoder (arXiv:2309.15505). There is no codebook to learn or to lose. q(z | x) is
a point mass at the code k(x), and

$$\log p(x) = \log\sum_k p(k)\,p(x|k) \ge \log p(k(x)) + \log p(x|k(x)),$$

so the ELBO is exact without sampling, in nats that compare with any other model's:
densities here are with respect to counting, log q = 0. It is tight where p(x | k) is
concentrated on one code, and **no number of samples of q makes it tighter**: importance
sampling from a point mass does not cover the posterior, and is no estimate of log p(x).

Gradients pass the rounding straight through (Bengio et al. 2013, arXiv:1308.3432), so
they are not those of the bound; log p(k) sends none to the encoder.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vae_jax.types import (
    Conditional,
    Family,
    Network,
    PRNGKey,
    PyTree,
    Scalar,
    conditional,
)


def posterior(levels: Sequence[int]) -> Conditional:
    r"""The point mass at the code of h [D].

    $z_d = 2 k_d / (L_d - 1) - 1$ at the level k_d that is nearest to tanh(h_d), whose
    slope the gradient of z is. Keys are not read. log q is 0 at the code of h and minus
    infinity elsewhere, without a gradient.

    The paper shifts the grid of an even number of levels by half a step, so that zero
    is one of them: with two levels tanh is then flat where the encoder starts. Here
    every grid is symmetric.

    Args:
        levels: L_d of each latent, two or more.

    Raises:
        ValueError: for no latent or fewer than two levels.
    """
    sizes = _checked(levels)

    def code(h: Array) -> Array:
        return value(index(jnp.tanh(h), levels), levels, h.dtype)

    def sample(key: PRNGKey, params: PyTree, h: Float[Array, " D"]) -> Array:
        del key, params
        smooth = jnp.tanh(h)
        return code(h) + (smooth - jax.lax.stop_gradient(smooth))

    def log_prob(params: PyTree, h: Float[Array, " D"], z: Array) -> Scalar:
        del params
        same = jnp.all(index(z, levels) == index(code(h), levels))
        return jnp.where(same, jnp.zeros((), h.dtype), -jnp.inf)

    def sample_and_log_prob(
        key: PRNGKey, params: PyTree, h: Float[Array, " D"]
    ) -> tuple[Array, Scalar]:
        return sample(key, params, h), jnp.zeros((), h.dtype)

    def moments(params: PyTree, h: Float[Array, " D"]) -> tuple[Array, Array]:
        return sample(jax.random.key(0), params, h), jnp.zeros_like(h)

    return conditional(
        Family("finite_scalar"),
        (len(sizes),),
        width=len(sizes),
        sample=sample,
        log_prob=log_prob,
        sample_and_log_prob=sample_and_log_prob,
        moments=moments,
    )


def uniform_prior(levels: Sequence[int]) -> Conditional:
    """Every code with the same probability: log p(k) = -sum_d log L_d.

    Raises:
        ValueError: as in `posterior`.
    """
    sizes = _checked(levels)

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Float[Array, " D"]:
        del params
        return value(jax.random.randint(key, sizes.shape, 0, sizes), levels, h.dtype)

    def log_prob(params: PyTree, h: Array, z: Array) -> Scalar:
        del params, z
        return jnp.asarray(-np.log(sizes).sum(), h.dtype)

    return conditional(
        Family("uniform_grid"), sizes.shape, width=0, sample=sample, log_prob=log_prob
    )


def autoregressive_prior(levels: Sequence[int], network: Network) -> Conditional:
    r"""$p(k) = \prod_d p(k_d | k_{<d})$, each a softmax over the L_d levels.

    log p(k) has a gradient to the network's parameters alone. The density costs one
    pass of the network, a sample D.

    Args:
        levels: as in `posterior`.
        network: z [D] -> [max_d L_d * D], blocks of D as `networks.made` gives them,
            entry d of each a function of z_{<d}. From zero it starts uniform
            (`networks.from_zero`).

    Raises:
        ValueError: as in `posterior`; when traced, for a network of another width.
    """
    sizes = _checked(levels)
    most = int(sizes.max())
    exists = np.arange(most) < sizes[:, None]

    def log_probs(params: PyTree, z: Float[Array, " D"]) -> Float[Array, "D L"]:
        output = network.apply(params, jax.lax.stop_gradient(z))
        if output.shape != (most * len(sizes),):
            raise ValueError(
                f"the network of {len(sizes)} latents of at most {most} levels gives "
                f"[{most * len(sizes)}] numbers, got {output.shape}"
            )
        logits = output.reshape(most, len(sizes)).T
        return jax.nn.log_softmax(jnp.where(exists, logits, -jnp.inf))

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Float[Array, " D"]:
        def choose(d: Int[Array, ""], z: Array) -> Array:
            of_latent = log_probs(params, z)[d]
            k = jax.random.categorical(jax.random.fold_in(key, d), of_latent)
            return z.at[d].set(value(jnp.full(sizes.shape, k), levels, z.dtype)[d])

        start = jnp.zeros(sizes.shape, h.dtype)
        return jax.lax.fori_loop(0, len(sizes), choose, start)

    def log_prob(params: PyTree, h: Array, z: Float[Array, " D"]) -> Scalar:
        del h
        of_levels = log_probs(params, z)
        chosen = index(z, levels)[:, None]
        return jnp.take_along_axis(of_levels, chosen, axis=1).sum()

    return conditional(
        Family("autoregressive_grid"),
        sizes.shape,
        width=0,
        init=network.init,
        sample=sample,
        log_prob=log_prob,
    )


def index(z: Float[Array, " D"], levels: Sequence[int]) -> Int[Array, " D"]:
    """The nearest level of each latent, from 0 to L_d - 1."""
    steps = _checked(levels) - 1
    return jnp.round(0.5 * (z + 1.0) * steps.astype(z.dtype)).astype(int)


def value(
    k: Int[Array, " D"], levels: Sequence[int], dtype: jnp.dtype
) -> Float[Array, " D"]:
    """The latents at these levels: the inverse of `index`."""
    steps = _checked(levels) - 1
    return 2.0 * k.astype(dtype) / steps.astype(dtype) - 1.0


def perplexity(z: Float[np.ndarray, "N D"]) -> Float[np.ndarray, " D"]:
    """exp of the entropy of each latent's values over N codes: at most L_d.

    Over a whole split: over a batch it could not exceed the batch's size.
    """
    entropies = []
    for of_latent in z.T:
        share = np.unique(of_latent, return_counts=True)[1] / len(z)
        entropies.append(-(share * np.log(share)).sum())
    return np.exp(entropies)


def _checked(levels: Sequence[int]) -> np.ndarray:
    if not levels or min(levels) < 2:
        raise ValueError(
            f"levels must be two or more of each of one latent or more, got {levels}"
        )
    return np.asarray(levels)
