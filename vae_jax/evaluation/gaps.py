r"""The posterior gap log p(x) - ELBO = KL(q || p(z | x)), and what it is made of.

With q* the best member of q's family for each x by itself (Cremer et al. 2018,
arXiv:1801.03558),

$$\log p(x) - L[q] = \underbrace{\log p(x) - L[q^*]}_{approximation} +
\underbrace{L[q^*] - L[q]}_{amortization},$$

the first as the family is too small, the second as the encoder is not good enough. All
of one example, in nats.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vae_jax import bounds, numerics, vae
from vae_jax.estimators import importance
from vae_jax.inference import variational_em
from vae_jax.types import (
    Conditional,
    Family,
    Generative,
    Params,
    PRNGKey,
    PyTree,
    Scalar,
    conditional,
)


class LocalFit(NamedTuple):
    """The best q of a family that was found for one example.

    Attributes:
        h: what q(z | h) reads.
        bound: at h, nats, on samples that the search has not seen.
        change: of the bound by the last round, nats; kept if it is a rise.
        num_rounds: of the search.
        converged: whether that change was below the tolerance.
    """

    h: Float[Array, " H"]
    bound: Scalar
    change: Scalar
    num_rounds: Int[Array, ""]
    converged: Bool[Array, ""]


class Gaps(NamedTuple):
    """log p(x) and two bounds on it, nats, of one example or stacked on many.

    Attributes:
        log_p: log p(x), or an estimate of it.
        best_bound: L[q*], of the best q of the family for x.
        bound: L[q], of the q that the encoder gives.
    """

    log_p: Float[Array | np.ndarray, "..."]
    best_bound: Float[Array | np.ndarray, "..."]
    bound: Float[Array | np.ndarray, "..."]

    @property
    def approximation(self) -> Float[Array | np.ndarray, "..."]:
        """log p(x) - L[q*]: what the family cannot do."""
        return self.log_p - self.best_bound

    @property
    def amortization(self) -> Float[Array | np.ndarray, "..."]:
        """L[q*] - L[q]: what the encoder does not do."""
        return self.best_bound - self.bound

    @property
    def inference(self) -> Float[Array | np.ndarray, "..."]:
        """log p(x) - L[q], the sum of both: the posterior gap."""
        return self.log_p - self.bound


def fit_local(
    generative: Generative,
    posterior: Conditional,
    *,
    num_samples: int = 10,
    num_steps: int = 100,
    learning_rate: float = 0.05,
    tolerance: float = 0.01,
    max_rounds: int = 20,
    num_evaluated: int = 1000,
) -> Callable[[PRNGKey, Params, Array, Array], LocalFit]:
    r"""(key, params, x, start [H]) -> $q^* = \arg\max_h L[q(z | h)]$ for one x.

    Rounds of `variational_em.search`, each an Adam whose rate falls to zero. After a
    round the bound is estimated where it began and where it ended, on the same noise;
    the better is kept, and the search ends once a round has changed the bound by less
    than the tolerance. So the result is never below the start by that estimate, and
    `converged` means: num_steps more steps change it by less than `tolerance` nats. A
    search that never comes to rest, its rate too high or its samples too few, is not
    converged. The bound returned is on fresh samples, without the optimism of a maximum
    over noise.

    Under `vmap` all examples take part until the last one has converged; those at rest
    stay as they were.

    Args:
        generative: the joint p(x, z).
        posterior: q(z | h), reparameterized and without parameters of its own: a
            `posteriors.diag_normal`, or any q made so by `with_parameters_in_h`.
        num_samples: L, of every estimate in the search.
        num_steps: of a round.
        learning_rate: where a round's Adam starts, in the units of h.
        tolerance: nats.
        max_rounds: at most.
        num_evaluated: samples of the bound, taken num_samples at a time; a multiple of
            that.

    Raises:
        ValueError: if a number is not positive, or num_evaluated no multiple of
            num_samples.
    """
    model = vae.model(generative, variational_em.free(posterior))
    draw = importance.log_weights(model, num_samples=num_samples)
    numerics.check_in("(0, inf]", tolerance=tolerance)
    numerics.check_positive(max_rounds=max_rounds)
    if num_evaluated < 1 or num_evaluated % num_samples:
        raise ValueError(
            f"num_evaluated must be a positive multiple of num_samples={num_samples}, "
            f"got {num_evaluated}"
        )
    search = variational_em.search(
        model,
        num_samples=num_samples,
        num_steps=num_steps,
        learning_rate=learning_rate,
    )

    def bound(key: PRNGKey, params: Params, x: Array, h: Array) -> Scalar:
        """The mean over num_evaluated samples, in memory for num_samples."""

        def add(total: Scalar, i: Array) -> tuple[Scalar, None]:
            log_w = draw(jax.random.fold_in(key, i), params, x, h)
            return total + bounds.elbo(log_w), None

        num_chunks = num_evaluated // num_samples
        zero = jnp.zeros((), h.dtype)
        return numerics.scan(add, zero, jnp.arange(num_chunks))[0] / num_chunks

    def fit(key: PRNGKey, params: Params, x: Array, start: Array) -> LocalFit:
        if start.shape != (posterior.width,):
            raise ValueError(f"start must be [{posterior.width}], got {start.shape}")
        key_rounds, key_bound = jax.random.split(key)

        def one_round(at: LocalFit) -> LocalFit:
            key_round = jax.random.fold_in(key_rounds, at.num_rounds)
            key_search, key_compare = jax.random.split(key_round)
            fitted, _ = search(key_search, params, x, at.h)
            ends = jnp.stack([at.h, fitted])
            before, after = jax.lax.map(
                lambda h: bound(jax.random.clone(key_compare), params, x, h), ends
            )
            return LocalFit(
                jnp.where(after > before, fitted, at.h),  # the start where it is NaN
                at.bound,
                after - before,
                at.num_rounds + 1,
                jnp.abs(after - before) < tolerance,
            )

        unknown = jnp.zeros((), start.dtype)  # until a round, and until the end
        at = numerics.while_loop(
            lambda at: ~at.converged & (at.num_rounds < max_rounds),
            one_round,
            LocalFit(
                start,
                unknown,
                unknown,
                jnp.zeros((), jnp.int32),
                jnp.zeros((), bool),
            ),
        )
        return at._replace(bound=bound(key_bound, params, x, at.h))

    return fit


def with_parameters_in_h(posterior: Conditional) -> Conditional:
    """The same density without parameters of its own: they are the end of h, in a row.

    So every example may have its own: a local flow is
    `fit_local(generative, with_parameters_in_h(posteriors.flow(base, flow)))`.
    `parameters_into_h` makes its h.
    """
    # Sizes alone; the precision is that of h.
    like = jax.eval_shape(posterior.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(like)
    sizes = [leaf.size for leaf in leaves]
    width = posterior.width + sum(sizes)

    def read(h: Array) -> tuple[PyTree, Array]:
        if h.shape != (width,):
            raise ValueError(f"h must be [{width}], got {h.shape}")
        start, fitted = posterior.width, []
        for leaf, size in zip(leaves, sizes, strict=True):
            fitted.append(h[start : start + size].reshape(leaf.shape))
            start += size
        return jax.tree.unflatten(tree, fitted), h[: posterior.width]

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        del params
        return posterior.sample(key, *read(h))

    def log_prob(params: PyTree, h: Array, z: Array) -> Scalar:
        del params
        return posterior.log_prob(*read(h), z)

    def sample_and_log_prob(
        key: PRNGKey, params: PyTree, h: Array
    ) -> tuple[Array, Scalar]:
        del params
        return posterior.sample_and_log_prob(key, *read(h))

    return conditional(
        Family(f"{posterior.family.name} with parameters in h"),
        posterior.shape,
        width=width,
        sample=sample,
        log_prob=log_prob,
        sample_and_log_prob=sample_and_log_prob,
    )


def parameters_into_h(
    posterior_params: PyTree, h: Float[Array, " H"]
) -> Float[Array, " G"]:
    """The h of `with_parameters_in_h` at which it is the density of these two."""
    leaves = [leaf.reshape(-1) for leaf in jax.tree.leaves(posterior_params)]
    return jnp.concatenate([h, *leaves])
