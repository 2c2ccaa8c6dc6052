"""Numerically safe primitives."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vae_jax.types import PRNGKey, Scalar


def log_mean_exp(log_w: Float[Array, " K"]) -> Scalar:
    """log (1/K) sum_k exp(log_w_k), without overflow; minus infinity if all are."""
    return jax.nn.logsumexp(log_w) - jnp.log(jnp.asarray(log_w.shape[0], log_w.dtype))


def attach_gradient(value: Scalar, surrogate: Scalar) -> Scalar:
    """Returns a scalar that reads as `value` and differentiates as `surrogate`.

    An estimator whose surrogate is not its bound ends here, so the number that is
    logged is the bound and never the surrogate. The difference is taken between
    equal numbers: `stop_gradient(value - surrogate) + surrogate` loses the value's
    digits when the surrogate is large.
    """
    return stop_gradient(value) + (surrogate - stop_gradient(surrogate))


def over_samples(
    key: PRNGKey, function: Callable[[PRNGKey], Array], *, num_samples: int
) -> Float[Array, "K *Y"]:
    """Stacks function(key_k) over K keys split from `key`.

    A single sample gets `key` itself and no batch axis inside: under the vmap over
    examples a second axis of length one costs the AEVB step a tenth of its time.

    Raises:
        ValueError: if num_samples is below one.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be positive, got {num_samples}.")
    if num_samples == 1:
        return function(key)[None]
    return jax.vmap(function)(jax.random.split(key, num_samples))


@jax.custom_jvp
def softplus(x: Float[Array, "*X"]) -> Float[Array, "*X"]:
    """log(1 + exp(x)), finite with all its derivatives for any finite x.

    The derivative is given as the logistic function: differentiating the stable
    form max(x, 0) + log1p(exp(-|x|)) gives a second derivative of 0 at x = 0.
    """
    return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return softplus(x), jax.nn.sigmoid(x) * dx
