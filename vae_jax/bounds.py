r"""Bounds on log p(x) as functions of log weights, for one example.

A log weight is log w_k = log p(x, z_k) - log q(z_k | x) with z_k ~ q. The average
$\hat p = \frac1K\sum_k w_k$ is an unbiased estimate of p(x) for every K, because
E_q[w] = integral of p(x, z) dz. Its logarithm is not an unbiased estimate of log p(x):
the logarithm is concave, so by Jensen's inequality E[log p-hat] <= log E[p-hat] =
log p(x), with equality only where p-hat is constant. For weights of finite variance the
bias is -Var(w) / (2 K p(x)^2) + o(1/K): it falls with K and is never zero, so the mean
of log p-hat over repeats is a lower bound, however many repeats there are.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.types import Scalar


def elbo(log_w: Float[Array, " K"]) -> Scalar:
    r"""Mean of the log weights: an unbiased estimate of the ELBO, in nats.

    $E_q[\log p(x, z) - \log q(z|x)] = \log p(x) - KL(q(z|x) || p(z|x))$, AEVB
    (arXiv:1312.6114) equations 1 and 2. More samples reduce its variance and leave the
    bound where it is; `iwae` is the bound that tightens.
    """
    _check(log_w)
    return log_w.mean()


def iwae(log_w: Float[Array, " K"]) -> Scalar:
    r"""Log of the mean weight: one draw of the K-sample bound, in nats.

    $L_K = E[\log\frac1K\sum_k w_k]$, Burda et al. 2016 (arXiv:1509.00519), equation 8:
    L_1 is the ELBO, L_K does not decrease in K, and L_K <= log p(x).
    """
    _check(log_w)
    return numerics.log_mean_exp(log_w)


def renyi(log_w: Float[Array, " K"], *, alpha: float) -> Scalar:
    r"""One draw of the K-sample variational Renyi bound of order alpha, in nats.

    $\frac{1}{1-\alpha}\log\frac1K\sum_k w_k^{1-\alpha}$, Li & Turner 2016
    (arXiv:1602.02311), section 4.1: alpha = 1 is the ELBO (the limit), 0 is IWAE, minus
    infinity is VR-max, the largest log weight. It does not increase in alpha, so in
    expectation it is below log p(x) for every alpha >= 0; a negative alpha gives a
    bound from above as K grows, which a small K pulls down by an unknown amount. At
    alpha >= 1 a single weight of zero makes it minus infinity.

    Raises:
        ValueError: if alpha is NaN or plus infinity.
    """
    _check(log_w)
    check_alpha(alpha)
    if alpha == -math.inf:
        return log_w.max()
    if alpha == 1.0:
        return elbo(log_w)
    # The weight that counts most becomes one, so that no power overflows. Beyond this
    # power no other weight counts.
    limit = float(jnp.finfo(log_w.dtype).max) ** 0.5
    power = min(max(1.0 - alpha, -limit), limit)
    chief = numerics.pivot(log_w.max() if power > 0.0 else log_w.min())
    powers = power * (log_w - chief)
    # Near alpha = 1 what is divided by 1 - alpha is as small, and must keep its digits.
    is_near = jnp.all(jnp.abs(powers) < 0.5)
    near = jnp.log1p(jnp.expm1(jnp.where(is_near, powers, 0.0)).mean())
    far = numerics.log_mean_exp(jnp.where(is_near, 0.0, powers))
    return chief + jnp.where(is_near, near, far) / power


def check_alpha(alpha: float) -> None:
    """Refuses an order that no Renyi bound has.

    Raises:
        ValueError: if alpha is NaN or plus infinity.
    """
    if math.isnan(alpha) or alpha == math.inf:
        raise ValueError(f"alpha must be a number below infinity, got {alpha}")


def ciwae(log_w: Float[Array, " K"], *, beta: float | Scalar) -> Scalar:
    """beta ELBO + (1 - beta) IWAE from the same samples: a lower bound, in nats.

    The combination of Rainforth et al. 2018 (arXiv:1802.04537), section 5. At beta = 0
    a weight of zero is IWAE's alone.

    Raises:
        ValueError: if beta is a number outside [0, 1].
    """
    numerics.check_in("[0, 1]", beta=beta)
    return numerics.times_log(beta, elbo(log_w)) + numerics.times_log(
        1.0 - beta, iwae(log_w)
    )


def miwae(log_w: Float[Array, "M K"]) -> Scalar:
    """Mean over M rows of the K-sample bound: L_K with a Mth of its variance, in nats.

    Rainforth et al. 2018 (arXiv:1802.04537), section 5. The logarithm is of means over
    the last axis, so M does not tighten the bound and K does.
    """
    if log_w.ndim != 2 or 0 in log_w.shape:
        raise ValueError(f"log_w must have shape [M, K], got {log_w.shape}")
    return jax.vmap(iwae)(log_w).mean()


def jackknife(log_w: Float[Array, " K"], *, order: int) -> Scalar:
    r"""Jackknife-corrected draw of the K-sample bound, in nats; no lower bound.

    $\sum_{j=0}^m c_j \bar L_{K-j}$, $c_j = (-1)^j (K-j)^m / (j!\,(m-j)!)$, where
    $\bar L_{K-j}$ is the mean of L_{K-j} over the subsets that leave j samples out:
    Nowozin 2018 (ICLR, "Debiasing Evidence Approximations"). The bias for
    log p(x) falls from O(1/K) to O(1/K^(m+1)); it may have either sign, so its mean may
    lie above log p(x). Order 0 is IWAE. Costs O(K^(m+1)). Terms of the size of K^m
    times the spread of log w cancel: in float32 a K of 100 leaves some 0.01 nats of
    rounding at order 2. Minus infinity where all weights of a subset are zero.

    Raises:
        ValueError: if order is not 0, 1 or 2, or leaves no sample of K.
    """
    _check(log_w)
    num_samples = log_w.shape[0]
    check_order(order, num_samples)
    top = numerics.pivot(log_w.max())  # the factors sum to one: it comes back whole
    means = [_mean_without(log_w - top, left_out) for left_out in range(order + 1)]
    total = jnp.zeros((), log_w.dtype)
    for left_out, mean in enumerate(means):
        scale = math.factorial(left_out) * math.factorial(order - left_out)
        factor = (-1) ** left_out * (num_samples - left_out) ** order / scale
        total += factor * mean
    # The smallest subsets are the first to have no weight.
    return jnp.where(jnp.isneginf(means[-1]), -jnp.inf, top + total)


def check_order(order: int, num_samples: int) -> None:
    """Refuses an order of the jackknife that there is not, or not of so few samples.

    Raises:
        ValueError: if order is not 0, 1 or 2, or num_samples is not above it.
    """
    if order not in (0, 1, 2):
        raise ValueError(f"order must be 0, 1 or 2, got {order}")
    if num_samples <= order:
        raise ValueError(f"num_samples must be above order {order}, got {num_samples}")


def _mean_without(log_w: Float[Array, " K"], left_out: int) -> Scalar:
    """The mean of L over all subsets that leave that many samples out."""
    num_samples = log_w.shape[0]
    out = list(itertools.combinations(range(num_samples), left_out))
    included = np.ones((len(out), num_samples), bool)
    for row, dropped in zip(included, out, strict=True):
        row[list(dropped)] = False
    rows = jnp.broadcast_to(log_w, included.shape)
    log_sums = jax.nn.logsumexp(rows, axis=1, where=included)
    return log_sums.mean() - math.log(num_samples - left_out)


def _check(log_w: Float[Array, " K"]) -> None:
    if log_w.ndim != 1 or log_w.shape[0] == 0:
        raise ValueError(f"log_w must have shape [K] with K >= 1, got {log_w.shape}")
