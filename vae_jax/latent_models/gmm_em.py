r"""Expectation maximization for Gaussian mixtures, as an `Algorithm`.

The E-step sets q(z) to the responsibilities r = p(z | x; theta_t), at which the bound
sum_z r (log p(x, z) - log r) is log p(x); the M-step maximizes the bound at that q over
theta. So, for whole data and no floor, bound(q_t, theta_t) = log p(theta_t) <=
bound(q_t, theta_{t+1}) <= log p(theta_{t+1}): Neal & Hinton 1998 (A view of the EM
algorithm that justifies incremental, sparse, and other variants).

Moments are summed in the whitened coordinates of the current parameters, eps = L_k^{-1}
(x - mu_k), and the new factor is L_k times the Cholesky factor of a matrix that is the
identity at the fixed point. Rounding is then relative to each component's own scale:
E[x x^T] - mu mu^T loses every digit in float32 where means are far from zero.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vae_jax import numerics
from vae_jax.latent_models import gmm_moments, gmm_scales
from vae_jax.types import Algorithm, Batch, Params, PRNGKey, Scalar


class EMState(NamedTuple):
    """The parameters and the steps taken.

    Attributes:
        params: theta, and phi as it was.
        step: steps taken.
    """

    params: Params
    step: Int[Array, ""]


class EMInfo(NamedTuple):
    """What one step reports; weighted means over rows, nats per example.

    Attributes:
        bound_after_e_step: sum_z r (log p(x, z) - log r) before the M-step.
        bound_after_m_step: the same r at the new parameters.
        log_p: log-sum-exp, before the M-step.
        num_collapsed: components that hold less than one row.
        num_at_floor: covariances that min_variance holds up.
    """

    bound_after_e_step: Scalar
    bound_after_m_step: Scalar
    log_p: Scalar
    num_collapsed: Int[Array, ""]
    num_at_floor: Int[Array, ""]


def em(
    *,
    min_variance: float = 1e-6,
    added_variance: float = 0.0,
    step_size: Callable[[Int[Array, ""]], Scalar] | None = None,
    block_size: int = 1000,
    missing: bool = False,
) -> Algorithm:
    r"""EM for the mixture whose parameters it starts from, of any covariance type.

    `step` reads batch.x [B, D] and batch.weight [B]: whole-data EM where the batch is
    the data set. Its key is not read.

    Weights count rows: 2 is the row twice. A component that holds less than one row (of
    the mean weight, where that is below one) keeps its mean and scale and is counted in
    `num_collapsed`; its share is still updated. A batch without weight leaves all as it
    is, and reports zeros. A covariance with an eigenvalue below
    min_variance has it raised, which is the M-step under that constraint, so that the
    bounds still rise, to rounding; it is counted in `num_at_floor`.

    Where the dtype does not resolve min_variance beside larger numbers, the constraint
    is Sigma >= diag(f^2), with f_d the largest of sqrt(min_variance), 16 eps times the
    distance in feature d of the component's mean from the mixture's and, for full and
    tied, 128 eps times the component's own standard deviation of d. In float32 these
    are 2e-6 and 1.5e-5 of them. Such a floor moves with its component, and the bounds
    may fall by what raising it costs; between rows as near to each other as the floor,
    rounding is a small share of a standard deviation and no longer of the last digit.

    With finite rows parameters are finite in float32 too, where no row is 1e18 of the
    start's standard deviations away. Under `vmap` the singular values that the floor
    needs are computed at every step.

    Args:
        min_variance: the floor of every covariance's eigenvalues, in squared units of
            x. Not scale-free: choose it for the data.
        added_variance: added to each variance after the M-step, as scikit-learn's
            `reg_covar` is. With it the M-step does not maximize the bound, which may
            fall near the fixed point.
        step_size: number of steps taken -> gamma in (0, 1], as `stepwise` gives it,
            for batches of a part of the data; none for whole data.
        block_size: rows of which intermediate arrays [K, D, rows] are held; about
            1,000 keep them in a CPU's cache. With `missing` they are [rows, K, D, D],
            of an eighth as many rows.
        missing: whether NaN marks an entry missing at random, to be integrated out
            (Ghahramani & Jordan 1994). The bound's q is then over z and the missing
            entries.

    Raises:
        ValueError: if min_variance is not positive and finite, added_variance is
            negative, or given with step_size, or block_size is below one.
    """
    check_variances(min_variance=min_variance, added_variance=added_variance)
    numerics.check_positive(block_size=block_size)
    if step_size is not None and added_variance:
        raise ValueError(
            f"added_variance must be 0 with step_size, which would add it anew to a "
            f"running average at every step, got {added_variance}"
        )

    def init(key: PRNGKey, start: Params) -> EMState:
        del key
        return EMState(start, jnp.zeros((), jnp.int32))

    def step(key: PRNGKey, state: EMState, batch: Batch) -> tuple[EMState, EMInfo]:
        del key
        theta = state.params.generative
        old = gmm_scales.tables(theta)
        moments = gmm_moments.over_rows(
            old, batch.x, batch.weight, block_size=block_size, missing=missing
        )
        rate = jnp.ones((), old.mean.dtype)
        if step_size is not None:
            rate = jnp.asarray(step_size(state.step), old.mean.dtype)
        num_rows = (batch.weight > 0.0).sum(dtype=batch.weight.dtype)
        mean_weight = moments.total / jnp.maximum(num_rows, 1.0)
        one_row = jnp.where(num_rows > 0.0, jnp.minimum(1.0, mean_weight), 1.0)
        new, shift, num_collapsed, num_at_floor = _maximize(
            old, moments, rate, one_row, min_variance, added_variance
        )
        total = jnp.maximum(moments.total, jnp.finfo(rate.dtype).tiny)
        info = EMInfo(
            moments.bound / total,
            _bound(old, new, shift, moments) / total,
            moments.log_p / total,
            num_collapsed,
            num_at_floor,
        )
        theta = gmm_scales.parameters(new, covariance=gmm_scales.covariance_of(theta))
        params = Params(theta, state.params.recognition)
        return EMState(params, state.step + 1), info

    return Algorithm(init, step)


def stepwise(
    *, delay: float = 2.0, power: float = 0.6
) -> Callable[[Int[Array, ""]], Scalar]:
    r"""gamma_t = (t + delay)^{-power}, the step size of online EM.

    Cappé & Moulines 2009 (arXiv:0712.4273), whose condition for convergence is power in
    (1/2, 1].

    Raises:
        ValueError: if delay is below one or power not in (0.5, 1].
    """
    numerics.check_in("[1, inf)", delay=delay)
    numerics.check_in("(0.5, 1]", power=power)
    return lambda step: (step.astype(float) + delay) ** -power


def check_variances(*, min_variance: float, added_variance: float) -> None:
    """Refuses a floor that leaves no positive variance.

    Raises:
        ValueError: if min_variance is not positive and finite, or added_variance is
            negative or not finite.
    """
    numerics.check_in("(0, inf)", min_variance=min_variance)
    numerics.check_in("[0, inf)", added_variance=added_variance)


def _maximize(
    old: gmm_scales.Tables,
    moments: gmm_moments.Moments,
    rate: Scalar,
    one_row: Scalar,
    min_variance: float,
    added_variance: float,
) -> tuple[gmm_scales.Tables, Float[Array, "K D"], Array, Array]:
    """The new mixture, the means' shifts in the old coordinates, and two counts.

    In the old coordinates the running averages of online EM are those of a unit normal,
    (pi_k, 0, pi_k I), so that the parameters are all the state there is.
    """
    kind, tiny = gmm_scales.kind(old.scale), jnp.finfo(rate.dtype).tiny
    total = jnp.maximum(moments.total, tiny)
    share, weight = jax.nn.softmax(old.logits), rate / total
    identity = kind.identity(old.scale)
    n = (1.0 - rate) * share + weight * moments.n
    b = weight * moments.b
    running = gmm_scales.pool(old.scale, (1.0 - rate) * share)
    second = gmm_scales.expand(old.scale, running) * identity
    second = second + weight * moments.second

    # A share in rows: those of the batch, or as many as the running average holds.
    collapsed = n * total / rate < one_row
    shift = jnp.where(collapsed[:, None], 0.0, b / jnp.maximum(n, tiny)[:, None])
    pooled = gmm_scales.pool(old.scale, n)
    unchanged = gmm_scales.expand(old.scale, pooled * total / rate < one_row)
    rows = gmm_scales.expand(old.scale, jnp.maximum(pooled, tiny))
    variance = kind.about(second, n, b, shift) / rows
    mean = old.mean + kind.unwhiten(old.scale, shift)
    center = jnp.matmul(share, old.mean, precision="highest")
    scale, at_floor = kind.rescale(
        old.scale,
        jnp.where(unchanged, identity, variance),
        jnp.where(unchanged, identity, second / rows),
        least_std=gmm_scales.least_std(
            old.scale,
            share,
            jnp.abs(mean - center[None]),
            min_std=math.sqrt(min_variance),
        ),
        added_variance=added_variance,
    )
    new = gmm_scales.Tables(
        jnp.where(moments.total > 0.0, jnp.log(jnp.maximum(n, tiny)), old.logits),
        mean,
        jnp.where(unchanged, old.scale, scale),
    )
    return new, shift, collapsed.sum(), (at_floor & ~unchanged.ravel()).sum()


def _bound(
    old: gmm_scales.Tables,
    new: gmm_scales.Tables,
    shift: Float[Array, "K D"],
    moments: gmm_moments.Moments,
) -> Scalar:
    """Sum over rows of E_q[log p(x, z; new) - log q], from the moments alone."""
    kind, num_features = gmm_scales.kind(old.scale), old.mean.shape[1]
    second = kind.about(moments.second, moments.n, moments.b, shift)
    log_shares = jax.nn.log_softmax(new.logits)
    log_density = -kind.log_det(new.scale, num_features)
    log_density = log_density - 0.5 * num_features * jnp.log(2.0 * jnp.pi)
    quadratic = kind.quadratic(new.scale, old.scale, second, num_features)
    expected = (moments.n * (log_shares + log_density)).sum() - 0.5 * quadratic
    return expected + moments.entropy
