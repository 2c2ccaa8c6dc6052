r"""Score-function estimators: gradients for phi that need no derivative of z.

$\nabla_\phi E_q[f(z)] = E_q[(f(z) - b)\,\nabla_\phi\log q(z|x)]$ for any b that does
not depend on z: the naive estimator of AEVB (arXiv:1312.6114) section 2.2, known as
REINFORCE (Williams 1992). It holds for discrete and continuous latents. The baseline b
leaves the mean where it is and decides the variance. The learning signal is
f = log w = log p(x, z) - log q(z|x); its own derivative in phi, minus the score, has
mean zero and is left out. For theta all of these have the ordinary gradient.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vae_jax import bounds, numerics
from vae_jax.estimators import importance
from vae_jax.types import (
    ExampleObjective,
    Model,
    Network,
    Params,
    PRNGKey,
    Scalar,
)

Signal = Callable[[Params, Array, Array], Array]  # params, x, log w [K] -> [K]

_WHY_TWO = ": a sample's baseline comes from the others; use score_function with one"


def score_function(
    model: Model,
    *,
    num_samples: int,
    baseline: float | Scalar = 0.0,
    scale: float | Scalar = 1.0,
) -> ExampleObjective:
    """The naive estimator, with a constant baseline and scale for its signal.

    AEVB section 2.2. Value: an unbiased draw of the ELBO. Gradient: unbiased for theta;
    for phi unbiased at scale 1, and 1/scale of that else (the variance normalization of
    Mnih & Gregor 2014, arXiv:1402.0030).

    Args:
        model: the joint p(x, z) and q, reparameterized or not.
        num_samples: L, averaged.
        baseline: b in nats; it may be traced, and must not depend on this draw.
            `running_baseline.running_baseline` keeps both numbers from step to step.
        scale: what the signal is divided by; it may be traced.

    Raises:
        ValueError: if num_samples is below one or scale is not a positive number.
    """
    numerics.check_in("(0, inf)", scale=scale)

    def signal(params: Params, x: Array, log_w: Array) -> Array:
        del params, x
        return (log_w - baseline) / scale

    return _of_elbo(model, signal, num_samples=num_samples)


def leave_one_out(model: Model, *, num_samples: int) -> ExampleObjective:
    """Each sample's baseline is the mean log weight of the others.

    Kool et al. 2019 (ICLR workshop, "Buy 4 REINFORCE samples, get a baseline for
    free!"). Value: an unbiased draw of the ELBO. Gradient: unbiased for theta and phi.
    Phi's is that of minus half the variance of the K log weights at fixed samples:
    VarGrad, Richter et al. 2020 (arXiv:2010.10436).

    Raises:
        ValueError: if num_samples is below two.
    """
    numerics.check_at_least(2, num_samples=num_samples, why=_WHY_TWO)

    def signal(params: Params, x: Array, log_w: Array) -> Array:
        del params, x
        # log_w - mean of the others = (log_w - mean of all) K / (K - 1).
        return (log_w - log_w.mean()) * (num_samples / (num_samples - 1))

    return _of_elbo(model, signal, num_samples=num_samples)


def nvil(
    model: Model,
    *,
    network: Network,
    num_samples: int,
    baseline: float | Scalar = 0.0,
    scale: float | Scalar = 1.0,
) -> ExampleObjective:
    """A baseline learned from x beside a constant one: b(x) + baseline.

    Mnih & Gregor 2014 (arXiv:1402.0030), section 2.3. The network's parameters are
    `params.recognition["baseline"]` (`vae.with_baseline` puts them there); they receive
    the gradient of minus half the mean squared signal before scaling, and phi's other
    parameters none through b. Value: an unbiased draw of the ELBO. Gradient: as in
    `score_function`.

    Args:
        model: the joint p(x, z) and q, with a baseline.
        network: x -> [1]; it sees zeros in the place of NaN (`vae.masked`).
        num_samples: L, averaged.
        baseline: as in `score_function`.
        scale: as in `score_function`.

    Raises:
        ValueError: if num_samples is below one or scale is not a positive number.
    """
    numerics.check_in("(0, inf)", scale=scale)

    def predict(params: Params, x: Array) -> Scalar:
        seen = jnp.where(jnp.isnan(x), 0.0, x)
        return network.apply(params.recognition["baseline"], seen)[0] + baseline

    def signal(params: Params, x: Array, log_w: Array) -> Array:
        return (log_w - predict(params, x)) / scale

    plain = _of_elbo(model, signal, num_samples=num_samples)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        value = plain(key, params, x)
        # The squared error has the derivative signal * db, and log w's mean will do.
        error = stop_gradient(value) - predict(params, x)
        return numerics.attach_gradient(value, value - 0.5 * error**2)

    return objective


def vimco(model: Model, *, num_samples: int) -> ExampleObjective:
    r"""Score-function gradient of the K-sample bound with a baseline for each sample.

    Mnih & Rezende 2016 (arXiv:1602.06725): sample k's signal is the drawn bound less
    what it would be with w_k replaced by the geometric mean of the other weights; the
    drawn bound alone, less a constant, where the others are all zero.
    Value: one draw of L_K (`bounds.iwae`). Gradient: unbiased for that of L_K, theta
    and phi alike. It is $\sum_k (\hat L - \hat L_{-k})\nabla\log q(z_k|x) +
    \sum_k\tilde w_k\nabla\log w_k$.

    Raises:
        ValueError: if num_samples is below two.
    """
    numerics.check_at_least(2, num_samples=num_samples, why=_WHY_TWO)
    draw = importance.log_densities(model, num_samples=num_samples)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        log_p, log_q = draw(key, params, x)
        bound = bounds.iwae(log_p - log_q)
        signal = stop_gradient(bound - _without_each(log_p - log_q))
        return numerics.attach_gradient(bound, bound + signal @ log_q)

    return objective


def _without_each(log_w: Float[Array, " K"]) -> Float[Array, " K"]:
    """The bound with w_k replaced by the geometric mean of the others, for each k.

    0 where these are all zero: any constant is a baseline that reads them alone.
    """
    num_samples = log_w.shape[0]
    # Summed without w_k, which may be zero, as differences, which round as gaps do.
    top = numerics.pivot(log_w.max())
    gaps = jnp.where(jnp.eye(num_samples, dtype=bool), 0.0, (log_w - top)[None])
    replaced = top + gaps.sum(1) / (num_samples - 1)
    others = numerics.log_sum_exp_without_each(log_w)
    bound = jnp.logaddexp(others, replaced) - jnp.log(
        jnp.asarray(num_samples, log_w.dtype)
    )
    return jnp.where(jnp.isneginf(others), 0.0, bound)


def _of_elbo(model: Model, signal: Signal, *, num_samples: int) -> ExampleObjective:
    """The mean log weight, with signal times score as its gradient for phi."""
    draw = importance.log_densities(model, num_samples=num_samples)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        log_p, log_q = draw(key, params, x)
        log_w = stop_gradient(log_p - log_q)
        weights = stop_gradient(signal(params, x, log_w))
        surrogate = (log_p + weights * log_q).mean()
        return numerics.attach_gradient(bounds.elbo(log_w), surrogate)

    return objective
