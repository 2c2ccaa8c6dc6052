"""SUMO: log p(x) without bias, by Russian roulette over ever tighter bounds."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int, UInt32

from vae_jax import numerics
from vae_jax.estimators import importance
from vae_jax.types import ExampleObjective, Model, Params, PRNGKey, Scalar

KNEE, LATER = 80, 0.9  # Luo et al. 2020, section 3.2


def sumo(
    model: Model,
    *,
    num_samples: int,
    max_terms: int = 200,
    baseline: float | Scalar = 0.0,
    scale: float | Scalar = 1.0,
) -> ExampleObjective:
    r"""Log p(x) and its gradient for theta; for phi the variance of that.

    Luo et al. 2020 (arXiv:2004.00353), equation 9: with $\hat L_k$ the log of the mean
    of the first k weights, and a random K,

    $S = \hat L_m + \sum_{k=1}^K \frac{\hat L_{m+k} - \hat L_{m+k-1}}{P(K \ge k)}$

    has log p(x) as its mean, for P(K >= k) > 0 at every k (`survival`). As that mean
    does not depend on phi, phi descends half of (S - baseline)^2 / scale, whose
    gradient is the variance's at any baseline. S is no bound and has heavy tails: the
    square of a difference falls like 1 / k^2 at best, so that its share in the variance
    falls like 1 / k up to the KNEE of `survival` and then grows. `evaluation.debiased`
    reports the tails' index.

    Value: one draw of S. As one program serves all K, m + max_terms samples are decoded
    at each step and K ends at max_terms: so the mean is that of L_{m + max_terms}. At
    the default the chance of a larger K is below 2^-24. Gradient: for theta unbiased
    for the value's; for phi as stated.

    Args:
        model: the joint p(x, z), whose prior must not read phi, and q, reparameterized.
        num_samples: m.
        max_terms: the largest K.
        baseline: what S is compared with, in nats; it may be traced, and must not
            depend on this draw. `running_baseline.running_baseline` keeps both numbers.
        scale: what phi's gradient is divided by; it may be traced.

    Raises:
        ValueError: if a count is below one or scale is not a positive number.
    """
    numerics.check_in("(0, inf)", scale=scale)
    draw = draws(model, num_samples=num_samples, max_terms=max_terms)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        value = stop_gradient(draw(key, params, x)[0])
        factor = (baseline - value) / scale
        phi = jax.tree.map(
            lambda leaf: numerics.scale_gradient(leaf, factor), params.recognition
        )
        path, _ = draw(jax.random.clone(key), params._replace(recognition=phi), x)
        return numerics.attach_gradient(value, path)

    return objective


def draws(
    model: Model, *, num_samples: int, max_terms: int
) -> Callable[[PRNGKey, Params, Array], tuple[Scalar, Int[Array, ""]]]:
    """(key, params, x) -> S in nats and its K, with the gradient of every path.

    Raises:
        ValueError: if a count is below one.
    """
    numerics.check_positive(num_samples=num_samples, max_terms=max_terms)
    log_weights = importance.log_weights(model, num_samples=num_samples + max_terms)
    survives = jnp.asarray(survival(max_terms), jnp.float32)

    def draw(key: PRNGKey, params: Params, x: Array) -> tuple[Scalar, Int[Array, ""]]:
        key_terms, key_z = jax.random.split(key)
        log_w = log_weights(key_z, params, x, model.recognition.encode(params, x))
        num_terms = (
            uniform(jax.random.bits(key_terms, (2,), jnp.uint32)) <= survives
        ).sum()
        return roulette(log_w, num_terms, num_samples=num_samples), num_terms

    return draw


def roulette(
    log_w: Float[Array, " m+T"], num_terms: Int[Array, ""], *, num_samples: int
) -> Scalar:
    """S of m + T log weights in nats and one K between 1 and T, as of `sumo`."""
    num_all = log_w.shape[0]
    counts = jnp.arange(1, num_all + 1, dtype=log_w.dtype)
    means = (jax.lax.cumlogsumexp(log_w) - jnp.log(counts))[num_samples - 1 :]
    max_terms = num_all - num_samples
    runs = jnp.arange(1, max_terms + 1) <= num_terms
    inverse = jnp.asarray(1.0 / survival(max_terms), log_w.dtype)
    shares = jnp.where(runs, inverse, 0.0)
    # Of m zero weights it is minus infinity whatever follows, and no difference of it.
    steps = jnp.diff(jnp.where(jnp.isneginf(means[0]), 0.0, means))
    return means[0] + (shares * steps).sum()


def uniform(bits: UInt32[Array, "2"]) -> Scalar:
    """A number in (0, 1] in single precision, whose steps near 0 are 2^-64.

    `jax.random.uniform` has steps of 2^-23, and so no K whose chance is below that.
    """
    high, low = bits.astype(jnp.float32)
    return (high + (low + 1.0) * 2.0**-32) * 2.0**-32


def survival(max_terms: int) -> Float[np.ndarray, " T"]:
    """P(K >= k) for k = 1, ..., max_terms: 1 / k, and from KNEE on LATER at each step.

    The first keeps the variance low, the second the mean of K finite.
    """
    k = np.arange(1, max_terms + 1)
    return np.where(k < KNEE, 1.0 / k, LATER ** np.maximum(k - KNEE, 0) / KNEE)
