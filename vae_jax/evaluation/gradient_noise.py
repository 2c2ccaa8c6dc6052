r"""How noisy a gradient estimator is: variance, signal-to-noise ratio and bias.

`moments` draws on the device and keeps no draw; what is made of moments is computed on
the host in double precision. A quantity of the mean that is squared is corrected for
the mean's own noise: $E|\bar g|^2 = |E g|^2 + \mathrm{tr}\,\mathrm{cov}(g) / n$.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax import compilation, numerics
from vae_jax.types import ExampleObjective, Params, PRNGKey, PyTree, each_example


class Moments(NamedTuple):
    """Mean and variance of independent draws of a tree, entry by entry.

    Of G groups of draws every leaf has a leading axis G.

    Attributes:
        mean: of the draws.
        variance: of one draw, unbiased.
        num_draws: how many there were, n, a number of each group.
    """

    mean: PyTree
    variance: PyTree
    num_draws: PyTree


class Estimate(NamedTuple):
    """A number with its standard error.

    Attributes:
        value: the number.
        standard_error: of it.
    """

    value: float
    standard_error: float


class Bias(NamedTuple):
    """How far a mean gradient is from the one expected, relative to the latter's norm.

    Of an expected gradient of zero infinite, or NaN where there is no distance either.

    Attributes:
        value: the distance, corrected for the noise of both; 0 where that explains it.
        noise: the root mean square distance that noise alone gives.
    """

    value: float
    noise: float


class Noise(NamedTuple):
    """The figures of one estimator's gradients.

    Attributes:
        variance: of the whole gradient, the trace of its covariance.
        relative_variance: to another estimator's; infinite where that has none, NaN
            where neither has.
        snr: |mean| / sqrt(variance).
        bias: as `Bias.value`; None where the expectation is not known.
        noise_of_bias: as `Bias.noise`, likewise.
    """

    variance: float
    relative_variance: float
    snr: float
    bias: float | None
    noise_of_bias: float | None


def of_batch(objective: ExampleObjective) -> Callable[[PRNGKey, Params, Array], Params]:
    """(key, params, x [B, *X]) -> the gradient of the mean over the batch."""
    each = each_example(objective)

    def mean(key: PRNGKey, params: Params, x: Float[Array, "B *X"]) -> Array:
        return each(key, params, x).mean()

    return jax.grad(mean, argnums=1)


def moments(
    draw: Callable[..., PyTree], *, num_draws: int, batch_size: int = 1
) -> Callable[..., Moments]:
    """(key, *inputs) -> the moments of num_draws draws of draw(key, *inputs).

    In one pass, batch_size draws side by side, whose number they do not depend on but
    for rounding (Welford 1962, Note on a method for calculating corrected sums of
    squares and products).

    Raises:
        ValueError: if num_draws is below two, or no multiple of batch_size.
    """
    numerics.check_positive(batch_size=batch_size)
    if num_draws < 2 or num_draws % batch_size:
        raise ValueError(
            f"num_draws must be 2 or more and a multiple of batch_size={batch_size}, "
            f"got {num_draws}"
        )

    def run(key: PRNGKey, *inputs: Any) -> Moments:
        draws = jax.vmap(lambda key: draw(key, *inputs))

        def step(
            carry: tuple[PyTree, PyTree], row: tuple[Array, Array]
        ) -> tuple[tuple[PyTree, PyTree], None]:
            (mean, squares), (n, keys) = carry, row
            values = draws(keys)
            new = jax.tree.map(
                lambda m, v: m + (v - m[None]).sum(0) / n.astype(v.dtype), mean, values
            )
            squares = jax.tree.map(
                lambda s, v, m, old: s + ((v - m[None]) * (v - old[None])).sum(0),
                *(squares, values, new, mean),
            )
            return (new, squares), None

        one = jax.eval_shape(draw, key, *inputs)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one)
        counts = jnp.arange(batch_size, num_draws + 1, batch_size)
        keys = jax.random.split(key, (len(counts), batch_size))
        (mean, squares), _ = jax.lax.scan(step, (zeros, zeros), (counts, keys))
        variance = jax.tree.map(lambda s: s / (num_draws - 1), squares)
        return Moments(mean, variance, jnp.asarray(num_draws))

    return run


def seconds_per_draw(
    draw: Callable[..., PyTree], *, num_draws: int, num_rounds: int = 5
) -> Callable[..., float]:
    """(key, *inputs) -> the time of one draw among num_draws in a compiled scan.

    The median of rounds that follow the compilation.

    Raises:
        ValueError: if a number is not positive.
    """
    numerics.check_positive(num_draws=num_draws, num_rounds=num_rounds)

    @compilation.program
    def run(key: PRNGKey, *inputs: Any) -> PyTree:
        def step(total: PyTree, key: PRNGKey) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, draw(key, *inputs)), None

        one = jax.eval_shape(draw, key, *inputs)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one)
        return jax.lax.scan(step, zeros, jax.random.split(key, num_draws))[0]

    def seconds(key: PRNGKey, *inputs: Any) -> float:
        times = []
        for _ in range(1 + num_rounds):
            started = time.perf_counter()
            jax.block_until_ready(run(jax.random.clone(key), *inputs))
            times.append(time.perf_counter() - started)
        return float(np.median(times[1:])) / num_draws

    return seconds


def pool(groups: Moments) -> Moments:
    """The moments of the draws of G groups together, leaves [G, ...] -> [...].

    Chan, Golub & LeVeque 1983 (Algorithms for computing the sample variance).
    """
    num = np.asarray(groups.num_draws, np.float64)
    total = num.sum()

    def weigh(weight: np.ndarray, leaf: Array | np.ndarray) -> np.ndarray:
        return np.tensordot(weight, np.asarray(leaf, np.float64), axes=1)

    def spread(within: Array, means: Array, mean: np.ndarray) -> np.ndarray:
        between = (np.asarray(means, np.float64) - mean) ** 2
        return (weigh(num - 1.0, within) + weigh(num, between)) / (total - 1.0)

    mean = jax.tree.map(lambda leaf: weigh(num, leaf) / total, groups.mean)
    variance = jax.tree.map(spread, groups.variance, groups.mean, mean)
    return Moments(mean, variance, num.sum())


def part(moments: Moments, name: str) -> Moments:
    """The moments of "generative" or "recognition" alone, of moments of `Params`."""
    mean, variance = getattr(moments.mean, name), getattr(moments.variance, name)
    return Moments(mean, variance, moments.num_draws)


def total_variance(moments: Moments) -> float:
    """The trace of the covariance of one draw."""
    return float(_flat(moments.variance).sum())


def snr(moments: Moments) -> float:
    """|E g| / sqrt(tr cov g), the signal-to-noise ratio of the whole gradient.

    Without noise infinite, and NaN where there is no signal either.
    """
    variance = total_variance(moments)
    squared = (_flat(moments.mean) ** 2).sum() - variance / float(moments.num_draws)
    return math.sqrt(_ratio(max(0.0, float(squared)), variance))


def log_snr(moments: Moments) -> float:
    """log sqrt(mean_d (E g_d)^2 / var g_d): Rainforth et al. 2018 (arXiv:1802.04537).

    Over the entries that vary; NaN without one, or where the noise leaves no signal.
    """
    mean, variance = _flat(moments.mean), _flat(moments.variance)
    mean, variance = mean[variance > 0.0], variance[variance > 0.0]
    if not len(variance):
        return float("nan")
    squared = np.mean((mean**2 - variance / float(moments.num_draws)) / variance)
    return float(0.5 * np.log(squared)) if squared > 0.0 else float("nan")


def bias(moments: Moments, expected: Sequence[tuple[float, Moments]]) -> Bias:
    """The distance of a mean from a weighted sum of others, (weight, moments) each."""
    mean = np.sum([weight * _flat(m.mean) for weight, m in expected], axis=0)
    noise = sum(
        weight**2 * total_variance(m) / float(m.num_draws)
        for weight, m in [(1.0, moments), *expected]
    )
    squared = ((_flat(moments.mean) - mean) ** 2).sum() - noise
    size = math.sqrt((mean**2).sum())
    distance = math.sqrt(max(0.0, squared))
    return Bias(_ratio(distance, size), _ratio(math.sqrt(noise), size))


def noise(
    moments: Moments,
    *,
    relative_to: Moments,
    expected: Sequence[tuple[float, Moments]] | None,
) -> Noise:
    """Variance, signal and bias of gradients with these moments.

    Args:
        moments: of the gradients.
        relative_to: moments whose variance theirs is a multiple of.
        expected: as of `bias`; None where the expectation is not known.
    """
    variance = total_variance(moments)
    ratio = _ratio(variance, total_variance(relative_to))
    distance = (None, None) if expected is None else bias(moments, expected)
    return Noise(variance, ratio, snr(moments), *distance)


def jackknife(
    statistic: Callable[[Sequence[Moments]], float], groups: Sequence[Moments]
) -> Estimate:
    r"""A statistic of pooled moments with its standard error, G groups each.

    $\sqrt{\frac{G - 1}{G} \sum_g (s_{-g} - \bar s)^2}$ over the statistics $s_{-g}$
    without group g (Efron & Stein 1981, The jackknife estimate of variance).

    Args:
        statistic: of the pooled moments, in the order of `groups`.
        groups: moments of G groups of as many draws each, with a leading axis G.

    Raises:
        ValueError: for groups of unlike number, or fewer than two.
    """
    groups = jax.tree.map(np.asarray, list(groups))
    sizes = {len(m.num_draws) for m in groups}
    if len(sizes) != 1 or min(sizes) < 2:
        raise ValueError(f"moments must be of the same G >= 2 groups, got {sizes}")
    (num_groups,) = sizes

    def of_groups(rows: np.ndarray) -> float:
        return statistic(
            [pool(jax.tree.map(lambda leaf: leaf[rows], m)) for m in groups]
        )

    every = np.arange(num_groups)
    values = np.array([of_groups(every[every != g]) for g in every])
    squares = ((values - values.mean()) ** 2).sum()
    error = np.sqrt((num_groups - 1) / num_groups * squares)
    return Estimate(float(of_groups(every)), float(error))


def _ratio(number: float, other: float) -> float:
    """Of numbers that are not negative, also where the other is 0."""
    if other == 0.0:
        return math.inf if number > 0.0 else math.nan
    return number / other


def _flat(tree: PyTree) -> np.ndarray:
    """All entries of all leaves, in double precision."""
    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
