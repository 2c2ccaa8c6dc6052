"""Observation models p(x | h), where h is the decoder's output for one latent.

Every builder takes the shape of one observation and lays h out in it. Terms are nats
per entry of x, so that missing entries are a masked sum; the log-likelihood is their
sum.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.types import Likelihood, PRNGKey, PyTree


def bernoulli_terms(
    logits: Float[Array, "*X"], x: Float[Array, "*X"]
) -> Float[Array, "*X"]:
    r"""Per-entry log Bernoulli(x; sigmoid(logits)) in nats, finite for finite logits.

    AEVB (arXiv:1312.6114) appendix C.1, written as x l - log(1 + exp(l)): the form
    through log(1 - sigmoid(l)) gives NaN gradients at a logit of 90. An infinite logit
    is a certain bit, of log-probability zero where x is that bit and minus infinity
    where it is not, with a gradient of zero. A real-valued x in [0, 1] is accepted as a
    soft target; the result is then minus a cross-entropy and no log-probability.
    """
    certain = jnp.isinf(logits)
    finite = jnp.where(certain, 0.0, logits)
    missed = jnp.where(logits > 0.0, x != 1.0, x != 0.0)
    ends = jnp.where(missed, -jnp.inf, 0.0)
    return jnp.where(certain, ends, x * finite - numerics.softplus(finite))


def normal_terms(
    mean: Float[Array, "*X"], log_std: Float[Array, "*X"], x: Float[Array, "*X"]
) -> Float[Array, "*X"]:
    """Per-entry log N(x; mean, std^2) in nats (a log-density: it may be positive).

    The squared error is its only term in `mean` for a fixed std alone, and even then
    up to the constant that this keeps.
    """
    eps = (x - mean) * jnp.exp(-log_std)
    return -(0.5 * eps**2 + log_std + 0.5 * jnp.log(2.0 * jnp.pi))


def likelihood(
    x_shape: tuple[int, ...],
    *,
    width: int,
    sample: Callable[[PRNGKey, PyTree, Array], Array],
    mean: Callable[[PyTree, Array], Array],
    log_prob_terms: Callable[[PyTree, Array, Array], Array],
    quantity: Callable[[np.ndarray], str],
    init: Callable[[PRNGKey], PyTree] = lambda key: (),
) -> Likelihood:
    """An observation model that compares what it is given with what it declares.

    Args:
        x_shape: shape of one observation.
        width: length of h.
        sample: key, params, h -> x.
        mean: params, h -> E[x | h].
        log_prob_terms: params, h, x -> nats whose sum is log p(x | h).
        quantity: rows of x, complete entries alone and flat -> what the number is, or
            a ValueError where p has no number for them.
        init: key -> own parameters; none by default.

    Raises:
        ValueError: when traced, if h is not [width] or x not of x_shape.
    """

    def check_h(h: Array) -> None:
        if h.shape != (width,):
            raise ValueError(
                f"the likelihood of x of shape {x_shape} reads h of {width} entries, "
                f"got {h.shape}"
            )

    def checked_sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        check_h(h)
        return sample(key, params, h)

    def checked_mean(params: PyTree, h: Array) -> Array:
        check_h(h)
        return mean(params, h)

    def checked_terms(params: PyTree, h: Array, x: Array) -> Array:
        check_h(h)
        if x.shape != x_shape:
            raise ValueError(f"the likelihood is of x of {x_shape}, got {x.shape}")
        return log_prob_terms(params, h, x)

    def of_rows(x: np.ndarray) -> str:
        entries = np.asarray(x).ravel()
        return quantity(entries[~np.isnan(entries)])

    return Likelihood(width, init, checked_sample, checked_mean, checked_terms, of_rows)


def bernoulli(x_shape: tuple[int, ...]) -> Likelihood:
    """Independent Bernoulli entries; h holds their logits.

    On x of 0. and 1. its number is a log-likelihood; on x inside [0, 1] minus a
    cross-entropy, and no log-probability.
    """

    def logits(h: Array) -> Array:
        return h.reshape(x_shape)

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        del params
        p = jax.nn.sigmoid(logits(h))
        return jax.random.bernoulli(key, p).astype(h.dtype)

    def mean(params: PyTree, h: Array) -> Array:
        del params
        return jax.nn.sigmoid(logits(h))

    def log_prob_terms(params: PyTree, h: Array, x: Array) -> Array:
        del params
        # Flat, then shaped: loops over a short last axis vectorize badly.
        return bernoulli_terms(h, x.reshape(-1)).reshape(x_shape)

    def quantity(x: np.ndarray) -> str:
        if not np.all((x >= 0.0) & (x <= 1.0)):
            raise ValueError(
                f"a Bernoulli likelihood needs x in [0, 1], got {x.min()} to {x.max()}"
            )
        return "log-likelihood" if np.all((x == 0) | (x == 1)) else "cross-entropy"

    return likelihood(
        x_shape,
        width=_size(x_shape),
        sample=sample,
        mean=mean,
        log_prob_terms=log_prob_terms,
        quantity=quantity,
    )


def normal(
    x_shape: tuple[int, ...],
    *,
    std: float,
    squash: Callable[[Array], Array] | None = None,
) -> Likelihood:
    """Independent normal entries of one fixed standard deviation; h is their mean.

    Args:
        x_shape: shape of one observation.
        std: the standard deviation, in the units of x.
        squash: maps h to the mean, e.g. `jax.nn.sigmoid` for data in [0, 1].

    Raises:
        ValueError: if std is not positive and finite.
    """
    log_std = _log_of("std", std)

    def moments(params: PyTree, h: Array) -> tuple[Array, Array]:
        del params
        mean = _mean(h, x_shape, squash)
        return mean, jnp.full_like(mean, log_std)

    return _normal(x_shape, _size(x_shape), lambda key: (), moments)


def normal_learned_std(
    x_shape: tuple[int, ...],
    *,
    initial_std: float = 1.0,
    min_std: float = 1e-3,
    squash: Callable[[Array], Array] | None = None,
) -> Likelihood:
    """Independent normal entries sharing one learned standard deviation; h the mean.

    The parameter is log_std, bounded below at log(min_std) by a clamp: a model that
    reproduces a training image exactly would otherwise raise its density without limit
    (Mattei & Frellsen 2018, arXiv:1802.04826). At the clamp its gradient is zero.

    Raises:
        ValueError: unless 0 < min_std <= initial_std.
    """
    floor, start = _log_of("min_std", min_std), _log_of("initial_std", initial_std)
    if start < floor:
        raise ValueError(f"initial_std {initial_std} is below min_std {min_std}")

    def init(key: PRNGKey) -> PyTree:
        del key
        return {"log_std": jnp.asarray(start, jnp.result_type(float))}

    def moments(params: PyTree, h: Array) -> tuple[Array, Array]:
        mean = _mean(h, x_shape, squash)
        log_std = jnp.maximum(params["log_std"], floor).astype(h.dtype)
        return mean, jnp.broadcast_to(log_std, mean.shape)

    return _normal(x_shape, _size(x_shape), init, moments)


def normal_per_pixel_std(
    x_shape: tuple[int, ...],
    *,
    min_std: float = 1e-2,
    squash: Callable[[Array], Array] | None = None,
) -> Likelihood:
    """Independent normal entries whose mean and log std the decoder gives.

    h = [mean, log_std], the Gaussian decoder of AEVB (arXiv:1312.6114) appendix C.2,
    with log std bounded below: log_std = log(min_std) + softplus(h - log(min_std)),
    smooth, close to h where h is well above the bound, and never below log(min_std).
    The density of one entry is then at most 1 / (min_std sqrt(2 pi)).

    Args:
        x_shape: shape of one observation.
        min_std: greatest lower bound of the standard deviation, in the units of x.
        squash: maps the first half of h to the mean; the paper's choice for Frey Face
            is the logistic function.

    Raises:
        ValueError: if min_std is not positive and finite.
    """
    floor = _log_of("min_std", min_std)

    def moments(params: PyTree, h: Array) -> tuple[Array, Array]:
        del params
        first, second = jnp.split(h, 2)
        log_std = floor + numerics.softplus(second - floor)
        return _mean(first, x_shape, squash), log_std.reshape(x_shape)

    return _normal(x_shape, 2 * _size(x_shape), lambda key: (), moments)


def _normal(
    x_shape: tuple[int, ...],
    width: int,
    init: Callable[[PRNGKey], PyTree],
    moments: Callable[[PyTree, Array], tuple[Array, Array]],
) -> Likelihood:
    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        mean, log_std = moments(params, h)
        return mean + jnp.exp(log_std) * jax.random.normal(key, x_shape, h.dtype)

    def mean(params: PyTree, h: Array) -> Array:
        return moments(params, h)[0]

    def log_prob_terms(params: PyTree, h: Array, x: Array) -> Array:
        return normal_terms(*moments(params, h), x)

    def quantity(x: np.ndarray) -> str:
        if not np.all(np.isfinite(x)):
            raise ValueError("a normal likelihood needs finite x")
        return "log-density"

    return likelihood(
        x_shape,
        width=width,
        init=init,
        sample=sample,
        mean=mean,
        log_prob_terms=log_prob_terms,
        quantity=quantity,
    )


def _mean(
    h: Array, x_shape: tuple[int, ...], squash: Callable[[Array], Array] | None
) -> Array:
    mean = h.reshape(x_shape)
    return mean if squash is None else squash(mean)


def _size(x_shape: tuple[int, ...]) -> int:
    if min(x_shape, default=1) < 1:
        raise ValueError(f"x_shape must have positive sizes, got {x_shape}")
    return int(np.prod(x_shape))


def _log_of(name: str, value: float) -> float:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return math.log(value)
