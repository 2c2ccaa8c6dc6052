r"""The posterior gap log p(x) - ELBO = KL(q || p(z | x)), and what it is made of.

With q* the best member of q's family for each x by itself (Cremer et al. 2018,
arXiv:1801.03558),

$$\log p(x) - L[q] = \underbrace{\log p(x) - L[q^*]}_{approximation} +
\underbrace{L[q^*] - L[q]}_{amortization},$$

the first as the family is too small, the second as the encoder is not good enough. All
of one example, in nats. log p(x) comes as two numbers that it lies between, which are
one where it is exact; so do the gaps that are measured from it.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vae_jax import bounds, numerics, vae
from vae_jax.estimators import importance
from vae_jax.inference import variational_em
from vae_jax.types import (
    Conditional,
    ExampleObjective,
    Family,
    Generative,
    Params,
    PRNGKey,
    PyTree,
    Scalar,
    conditional,
)


class Between(NamedTuple):
    """A number known from both sides, in nats; the two are equal where it is exact.

    Attributes:
        lower: at most the number.
        upper: at least the number.
    """

    lower: Scalar
    upper: Scalar


Evidence: TypeAlias = Callable[[PRNGKey, Params, Array], Between]
"""(key, params, x) -> two numbers that log p(x) lies between, nats."""

Start: TypeAlias = Callable[[Params, Array], Array]  # params, x -> h


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
        log_p: log p(x).
        best_bound: L[q*], of the best q of the family for x.
        bound: L[q], of the q that the encoder gives.
    """

    log_p: Between
    best_bound: Scalar
    bound: Scalar

    @property
    def approximation(self) -> Between:
        """log p(x) - L[q*]: what the family cannot do."""
        return _less(self.log_p, self.best_bound)

    @property
    def amortization(self) -> Scalar:
        """L[q*] - L[q]: what the encoder does not do."""
        return self.best_bound - self.bound

    @property
    def inference(self) -> Between:
        """log p(x) - L[q], the sum of both: the posterior gap."""
        return _less(self.log_p, self.bound)


def exactly(log_p: Callable[[Params, Array], Scalar]) -> Evidence:
    """The evidence of a model whose log p(x) is exact: both sides are the same."""

    def evidence(key: PRNGKey, params: Params, x: Array) -> Between:
        del key
        value = log_p(params, x)
        return Between(value, value)

    return evidence


def posterior_gap(
    evidence: Evidence, bound: ExampleObjective
) -> Callable[[PRNGKey, Params, Array], Between]:
    """(key, params, x) -> log p(x) - L[q] = KL(q || p(z | x)), nats, from both sides.

    Exact where both arguments are. Where the bound is a draw of few samples a gap below
    zero is noise; where log p(x) is by quadrature it is an error of that.

    Args:
        evidence: of log p(x), such as `exactly(exact.grid_quadrature(...))`, or a
            stochastic lower and upper bound (arXiv:1511.02543).
        bound: (key, params, x) -> the ELBO of q, such as `sgvb.sgvb_b`.
    """

    def gap(key: PRNGKey, params: Params, x: Array) -> Between:
        key_evidence, key_bound = jax.random.split(key)
        value = bound(key_bound, params, x)
        return _less(evidence(key_evidence, params, x), value)

    return gap


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
    if not tolerance > 0.0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
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


def split(
    evidence: Evidence,
    bound: ExampleObjective,
    fit: Callable[[PRNGKey, Params, Array, Array], LocalFit],
    *,
    start: Start,
) -> Callable[[PRNGKey, Params, Array], tuple[Gaps, LocalFit]]:
    """(key, params, x) -> the gap in its two parts, and the q* found.

    Args:
        evidence: of log p(x).
        bound: L[q], of enough samples that its noise is below the gaps.
        fit: of `fit_local`; the family need not be the encoder's own.
        start: (params, x) -> the h that the search for q* starts from, such as
            `recognition.encode`, from which q* is not below q but for noise.
    """

    def gaps(key: PRNGKey, params: Params, x: Array) -> tuple[Gaps, LocalFit]:
        key_evidence, key_bound, key_fit = jax.random.split(key, 3)
        best = fit(key_fit, params, x, start(params, x))
        value = bound(key_bound, params, x)
        return Gaps(evidence(key_evidence, params, x), best.bound, value), best

    return gaps


def mean(gaps: Gaps) -> Gaps:
    """The means of gaps that are stacked on examples."""
    return jax.tree.map(jnp.mean, gaps)


def generalization(train: Gaps, test: Gaps) -> Gaps:
    """Train less test of two means: what log p(x), each bound and each gap lose.

    The amortization gap of the result is by how much the encoder is better on the rows
    it was trained on, with the sign changed (arXiv:1801.03558).
    """
    log_p = Between(
        train.log_p.lower - test.log_p.upper, train.log_p.upper - test.log_p.lower
    )
    return Gaps(log_p, train.best_bound - test.best_bound, train.bound - test.bound)


def _less(number: Between, value: Scalar) -> Between:
    return Between(number.lower - value, number.upper - value)
