"""What importance weights say of log p(x), and whether they can be trusted.

The weights of one example are streamed: memory is a chunk of them and the largest
3 sqrt(k) so far, which hold all that the shape of their tail is read from.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.types import Scalar

LARGEST_PARETO_K = 0.7  # Vehtari et al. 2024 (arXiv:1507.02646): unreliable above
SMALLEST_SAMPLE_SIZE = 10.0
SMALLEST_TAIL = 5  # weights
TIES = 64.0  # units in the last place of a log weight that may be rounding alone


class LogEvidence(NamedTuple):
    """An estimate of log p(x) with its diagnostics.

    Attributes:
        log_p: log p-hat, nats: in expectation a lower bound on log p(x).
        standard_error: of log p-hat, nats, by the delta method; inf: not measured.
        effective_sample_size: (sum w)^2 / sum w^2, between 1 and k; 0 without w.
        pareto_k: shape of the tail: 1 / k-hat finite moments; inf: not measured.
    """

    log_p: Scalar
    standard_error: Scalar
    effective_sample_size: Scalar
    pareto_k: Scalar


class Running(NamedTuple):
    """Sums of the weights so far, relative to the largest, and their tail.

    Attributes:
        largest: log w.
        first: sum_k exp(log w_k - largest).
        second: sum_k exp(2 (log w_k - largest)).
        tail: the largest log w, the largest first.
    """

    largest: Scalar
    first: Scalar
    second: Scalar
    tail: Float[Array, " M+1"]


def tail_size(num_samples: int) -> int:
    """M, how many of k weights the shape of the tail is fitted to.

    min(k / 5, 3 sqrt(k)), rounded down: Vehtari et al. 2024 (arXiv:1507.02646).
    """
    return min(num_samples // 5, math.isqrt(9 * num_samples))


def start(num_samples: int, dtype: DTypeLike) -> Running:
    """No weight yet of the num_samples that are to come.

    Raises:
        ValueError: if num_samples is below one.
    """
    numerics.check_positive(num_samples=num_samples)
    zero, least = jnp.zeros((), dtype), jnp.full((), -jnp.inf, dtype)
    return Running(
        least, zero, zero, jnp.full((tail_size(num_samples) + 1,), least, dtype)
    )


def add(state: Running, log_w: Float[Array, " C"]) -> Running:
    """The state with a chunk of log weights in nats, of any length."""
    largest = jnp.maximum(state.largest, log_w.max())
    # All weights zero so far: any finite reference avoids inf - inf.
    reference = jnp.where(jnp.isfinite(largest), largest, 0.0)
    old, ratios = state.largest - reference, log_w - reference
    first = state.first * jnp.exp(old) + jnp.exp(ratios).sum()
    second = state.second * jnp.exp(2.0 * old) + jnp.exp(2.0 * ratios).sum()
    candidates = jnp.concatenate([state.tail, stop_gradient(log_w)])
    tail = jax.lax.top_k(candidates, state.tail.shape[0])[0]
    return Running(largest, first, second, tail)


def summary(state: Running, num_samples: int) -> LogEvidence:
    """log p-hat of all num_samples weights, with its diagnostics."""
    none = jnp.isneginf(state.largest)  # no weight above zero
    size = state.first**2 / jnp.where(none, 1.0, state.second)
    log_p = state.largest + jnp.log(state.first / num_samples)
    variance = jnp.maximum(1.0 / size - 1.0 / num_samples, 0.0)
    error = jnp.sqrt(numerics.unbiased(variance, num_samples))
    return LogEvidence(log_p, error, size, pareto_k(state.tail))


def of_all(log_w: Float[Array, " K"]) -> LogEvidence:
    """The summary of log weights [K] in nats that are all at hand.

    Raises:
        ValueError: if there is none.
    """
    num_samples = log_w.shape[0]
    return summary(add(start(num_samples, log_w.dtype), log_w), num_samples)


def pareto_k(tail: Float[Array, " M+1"]) -> Scalar:
    r"""k-hat: the shape of a generalized Pareto fitted to the largest weights.

    The M exceedances $e_i = w_i - u$ over the next largest weight u are taken for draws
    of a density with tail $e^{-1-1/k}$, which has finite moments up to 1/k: above 1/2
    the weights have no variance, above 1 no mean. The fit is that of Zhang & Stephens
    2009 (A new and efficient estimation method for the generalized Pareto
    distribution): a mean over candidates $b_j$, weighted by their profile likelihood
    $n(\log(-b_j / k_j) - k_j - 1)$, with $k_j$ the mean of $\log(1 - b_j e_i)$. It is
    shrunk toward 1/2 by the worth of ten exceedances (Vehtari et al. 2024,
    arXiv:1507.02646, Pareto smoothed importance sampling).

    Everything is relative and in logarithms, so the weights may span any range.
    Weights that tie with u are no exceedances. With none, as where q is the posterior,
    or where the tail spans rounding errors alone, k-hat is minus infinity: the weights
    are bounded, and all is well. It is plus infinity, which no fit is, where it is not
    measured: where one to four are left, too few to tell, as always below k = 25, and
    where no weight is above zero or one is infinite. It is NaN where a weight is.

    Args:
        tail: the M + 1 largest log weights in nats, the largest first.
    """
    size, dtype = tail.shape[0] - 1, tail.dtype
    if size < SMALLEST_TAIL:
        return jnp.where(jnp.isnan(tail[0]), tail[0], jnp.inf)
    largest, u = tail[0], tail[-1]
    exceeds = tail[:-1] > u
    gap = jnp.where(exceeds, u - tail[:-1], -jnp.inf)
    log_e = tail[:-1] + jnp.log(-jnp.expm1(gap))
    num = exceeds.sum()
    n = num.astype(dtype)

    # In units of the first quartile of e, as the candidates are: g = -b e_quartile.
    log_quartile = log_e[num - (num + 2) // 4]
    log_e = log_e - log_quartile
    num_candidates = 30.0 + jnp.floor(jnp.sqrt(n))
    j = jnp.arange(1, 31 + math.isqrt(size), dtype=dtype)
    steps = jnp.sqrt(num_candidates / (j - 0.5)) - 1.0
    g = steps / 3.0 - jnp.exp(-log_e[0])
    g = jnp.where(g == 0.0, jnp.finfo(dtype).eps, g)

    def shape(g: Scalar) -> Scalar:
        """The mean of log(1 + g e), which for g < 0 is above log(0)."""
        log_ratio = jnp.log(jnp.abs(g)) + log_e
        bounded = jnp.log1p(-jnp.exp(jnp.minimum(log_ratio, 0.0)))
        terms = jnp.where(g > 0.0, jnp.logaddexp(log_ratio, 0.0), bounded)
        return jnp.where(exceeds, terms, 0.0).sum() / n

    k = jax.vmap(shape)(g)
    profile = n * (jnp.log(g / k) - k - 1.0)
    share = jax.nn.softmax(jnp.where(j <= num_candidates, profile, -jnp.inf))
    fitted = (n * shape(share @ g) + 5.0) / (n + 10.0)

    rounding = TIES * jnp.finfo(dtype).eps * jnp.maximum(jnp.abs(largest), 1.0)
    few = jnp.where(num < SMALLEST_TAIL, jnp.inf, fitted)
    bounded = jnp.where(largest - u <= rounding, -jnp.inf, few)
    unknown = jnp.where(jnp.isnan(largest), largest, jnp.inf)
    return jnp.where(jnp.isfinite(largest), bounded, unknown)


def doubts(evidence: LogEvidence) -> list[str]:
    """Why estimates of any leading shape should not be believed, a line for each.

    On the host. Empty where nothing speaks against them, which is no proof: weights
    that were never drawn are not seen.
    """
    log_p, _, size, shape = (np.asarray(f, np.float64).reshape(-1) for f in evidence)

    def share(where: np.ndarray) -> str:
        return f"{where.sum()} of {where.size} examples"

    reasons = []
    heavy = np.isfinite(shape) & (shape > LARGEST_PARETO_K)
    if heavy.any():
        reasons.append(
            f"pareto_k is above {LARGEST_PARETO_K} in {share(heavy)}, at most "
            f"{shape[heavy].max():.2f}: few weights carry the sum, log p-hat is likely "
            f"too low and its standard error too small; widen the proposal."
        )
    small = (size < SMALLEST_SAMPLE_SIZE) & np.isfinite(log_p)
    if small.any():
        reasons.append(
            f"the effective sample size is below {SMALLEST_SAMPLE_SIZE:.0f} in "
            f"{share(small)}, at least {size[small].min():.1f}: log p-hat rests on "
            f"that many weights; take more samples or a better proposal."
        )
    lost = ~np.isfinite(log_p)
    if lost.any():
        reasons.append(
            f"log p-hat is not finite in {share(lost)}: no sample has a finite weight "
            f"above zero, or one is not a number."
        )
    return reasons
