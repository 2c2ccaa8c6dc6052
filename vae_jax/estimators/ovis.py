r"""OVIS: score-function gradients of the K-sample bound that do not drown in noise.

Lievin et al. 2020 (arXiv:2010.15524). With $h_k = \nabla_\phi\log q(z_k|x)$, the
normalized weights $v_k$ and the drawn bound $\hat L$, phi's gradient of L_K is the mean
of $\sum_k (d_k - c_k) h_k$ with $d_k = \hat L - v_k$, for any $c_k$ that does not read
z_k. What is chosen here keeps the ratio of signal to noise growing as sqrt(K), which
the ordinary gradient's and VIMCO's do not. Latents may be discrete or continuous; theta
has the ordinary gradient.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vae_jax import bounds, numerics
from vae_jax.estimators import importance
from vae_jax.types import ExampleObjective, Model, Params, PRNGKey, Scalar

Signal = Callable[[PRNGKey, Params, Array, Array], Array]
"""key, params, x, log w [K] -> d_k - c_k [K]."""

_WHY_TWO = ": a sample's baseline comes from the others"


def ovis(
    model: Model, *, num_samples: int, gamma: float | Scalar = 0.0
) -> ExampleObjective:
    r"""OVIS~: what the best c_k tends to where many weights count, or one alone.

    Equation 17 of the paper: $c_k = \log\hat Z_{-k} - \gamma v_k + (1 - \gamma) \log(1
    - 1/K)$ with $\hat Z_{-k}$ the mean of the other weights, so that

    $d_k - c_k = -\log(1 - v_k) - (1 - \gamma) v_k + \gamma\log(1 - 1/K)$,

    without further samples. gamma = 0 is the limit of one weight that outweighs all,
    gamma = 1 that of many.

    Value: one draw of L_K. Gradient: unbiased for that of L_K in theta, and in phi at
    gamma = 0. Else $c_k$ reads z_k, and phi's mean is biased by $\gamma E[\sum_k v_k
    h_k]$: gamma times the wake phase's gradient (`wake_sleep.reweighted_wake_sleep`),
    which pulls q to the posterior and vanishes where q is the posterior. Theta's is
    biased likewise where q reads it, as on a ladder.

    Args:
        model: the joint p(x, z) and q, reparameterized or not.
        num_samples: K.
        gamma: in [0, 1]; it may be traced.

    Raises:
        ValueError: if num_samples is below two, or gamma is a number outside [0, 1].
    """
    numerics.check_at_least(2, num_samples=num_samples, why=_WHY_TWO)
    numerics.check_in("[0, 1]", gamma=gamma)
    log_share = math.log1p(-1.0 / num_samples)

    def signal(key: PRNGKey, params: Params, x: Array, log_w: Array) -> Array:
        del key, params, x
        v = jax.nn.softmax(log_w)
        others = numerics.log_sum_exp_without_each(log_w)
        log_rest = others - jax.nn.logsumexp(log_w)
        signals = gamma * log_share - log_rest - (1.0 - gamma) * v
        # Where the others are all zero c_k is minus infinity: any constant does.
        return jnp.where(jnp.isneginf(others), bounds.iwae(log_w) - v, signals)

    return _of_signal(model, signal, num_samples=num_samples)


def ovis_monte_carlo(
    model: Model, *, num_samples: int, num_auxiliary: int | None = None
) -> ExampleObjective:
    r"""OVIS-MC: c_k is what d_k is on average over further samples of z_k.

    Equation 12 of the paper: $c_k = \frac1S\sum_s d_k(z^{(s)}, z_{-k})$ over S samples
    of q, the same for every k. Value: one draw of L_K of the K samples. Gradient:
    unbiased for that of L_K, theta and phi alike, whatever S is.

    Args:
        model: the joint p(x, z) and q, reparameterized or not.
        num_samples: K.
        num_auxiliary: S, decoded beside the K; as many by default.

    Raises:
        ValueError: if num_samples is below two or num_auxiliary below one.
    """
    numerics.check_at_least(2, num_samples=num_samples, why=_WHY_TWO)
    if num_auxiliary is None:
        num_auxiliary = num_samples
    numerics.check_positive(num_auxiliary=num_auxiliary)
    draw = importance.log_densities(model, num_samples=num_auxiliary)

    def signal(key: PRNGKey, params: Params, x: Array, log_w: Array) -> Array:
        log_p, log_q = draw(key, params, x)
        others = numerics.log_sum_exp_without_each(log_w)
        v = jax.nn.softmax(log_w)
        d = jax.nn.logsumexp(log_w) - v
        total = jnp.logaddexp(others[:, None], (log_p - log_q)[None])  # [K, S]
        is_zero = jnp.isneginf(total)  # where any constant does
        total = jnp.where(is_zero, 0.0, total)
        replaced = total - jnp.exp((log_p - log_q)[None] - total)
        return d - replaced.mean(1)

    return _of_signal(model, signal, num_samples=num_samples)


def _of_signal(model: Model, signal: Signal, *, num_samples: int) -> ExampleObjective:
    """A draw of L_K, and sum_k v_k grad log p + signal_k grad log q as its gradient."""
    draw = importance.log_densities(model, num_samples=num_samples)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        key_z, key_signal = jax.random.split(key)
        log_p, log_q = draw(key_z, params, x)
        log_w = stop_gradient(log_p - log_q)
        weights: Float[Array, " K"] = stop_gradient(
            signal(key_signal, params, x, log_w)
        )
        surrogate = jax.nn.softmax(log_w) @ log_p + weights @ log_q
        return numerics.attach_gradient(bounds.iwae(log_w), surrogate)

    return objective
