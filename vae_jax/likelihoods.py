"""Observation models p(x | h), where h is the decoder's output for one latent.

Every builder takes the shape of one observation and lays h out in it. Terms are nats
per entry of x, so that missing entries are a masked sum; the log-likelihood is their
sum.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax import numerics, reparameterize
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


def logit_of_mean(mean: Array, *, least: float = 1e-3) -> Array:
    """The logits of the means of x in [0, 1], which are kept off both ends.

    Where a decoder's output bias may start, as in Burda et al. 2016 (arXiv:1509.00519);
    also of a normal's mean behind a sigmoid.

    Args:
        mean: E[x] of each entry.
        least: distance that it keeps from 0 and from 1.
    """
    p = jnp.clip(mean, least, 1.0 - least)
    return jnp.log(p) - jnp.log1p(-p)


def normal_terms(
    mean: Float[Array, "*X"], log_std: Float[Array, "*X"], x: Float[Array, "*X"]
) -> Float[Array, "*X"]:
    """Per-entry log N(x; mean, std^2) in nats (a log-density: it may be positive).

    The squared error is its only term in `mean` for a fixed std alone, and even then
    up to the constant that this keeps.
    """
    eps = (x - mean) * jnp.exp(-log_std)
    return -(0.5 * eps**2 + log_std + 0.5 * jnp.log(2.0 * jnp.pi))


def log_normal_terms(
    mean: Float[Array, "*X"], log_std: Float[Array, "*X"], x: Float[Array, "*X"]
) -> Float[Array, "*X"]:
    """Per-entry log-density in nats of x > 0 with log x ~ N(mean, std^2).

    The normal's at log x less log x, the Jacobian; minus infinity for any other x.
    """
    log_x = jnp.log(jnp.where(x > 0.0, x, 1.0))
    return jnp.where(x > 0.0, normal_terms(mean, log_std, log_x) - log_x, -jnp.inf)


def continuous_bernoulli_terms(
    logits: Float[Array, "*X"], x: Float[Array, "*X"]
) -> Float[Array, "*X"]:
    r"""Per-entry log-density in nats of x in [0, 1] (it may be positive).

    $\log p(x) = \eta x - \log((e^\eta - 1) / \eta)$ at the logit $\eta$
    (Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845, in its natural parameter): the
    Bernoulli's cross-entropy with what makes it a density. Near zero the normalizer is
    a series, where the quotient loses its digits; elsewhere x is measured from the end
    where its density is greatest, or large logits would cancel there.
    """
    size = jnp.abs(logits)
    is_small = size < 0.1
    near = jnp.where(is_small, logits, 0.0)
    square = near**2
    series = 0.5 * near + square * (1 / 24 - square * (1 / 2880 - square / 181440))
    far = jnp.where(is_small, 1.0, size)
    from_end = jnp.where(logits > 0.0, 1.0 - x, x)
    ends = jnp.log(far) - jnp.log1p(-jnp.exp(-far)) - far * from_end
    return jnp.where(is_small, near * x - series, ends)


def laplace_terms(
    mean: Float[Array, "*X"], log_scale: Float[Array, "*X"], x: Float[Array, "*X"]
) -> Float[Array, "*X"]:
    """Per-entry log Laplace(x; mean, scale) in nats; the scale is mean |x - mean|."""
    return -(jnp.abs(x - mean) * jnp.exp(-log_scale) + log_scale + jnp.log(2.0))


def student_t_terms(
    mean: Float[Array, "*X"],
    log_scale: Float[Array, "*X"],
    x: Float[Array, "*X"],
    *,
    degrees: float,
) -> Float[Array, "*X"]:
    """Per-entry log t(x; degrees of freedom, mean, scale) in nats."""
    eps = (x - mean) * jnp.exp(-log_scale)
    shifts, weights, rest = numerics.gamma_ratio(1)
    half: Any = 0.5 * degrees
    # The difference of two log-gammas has no digits left where degrees are many.
    constant = float(weights @ np.log(half + shifts) + rest(half))
    constant -= 0.5 * math.log(degrees * math.pi)
    return constant - log_scale - (half + 0.5) * jnp.log1p(eps**2 / degrees)


def likelihood(
    x_shape: tuple[int, ...],
    *,
    width: int,
    sample: Callable[[PRNGKey, PyTree, Array], Array],
    mean: Callable[[PyTree, Array], Array],
    log_prob_terms: Callable[[PyTree, Array, Array], Array],
    quantity: Callable[[np.ndarray], str],
    planes: int = 1,
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
        planes: h is as many arrays, one behind the other, of one layout of the pixels.
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

    return Likelihood(
        width, planes, init, checked_sample, checked_mean, checked_terms, of_rows
    )


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
        _check_unit_interval("Bernoulli", x)
        return "log-likelihood" if np.all((x == 0) | (x == 1)) else "cross-entropy"

    return likelihood(
        x_shape,
        width=_size(x_shape),
        sample=sample,
        mean=mean,
        log_prob_terms=log_prob_terms,
        quantity=quantity,
    )


def continuous_bernoulli(x_shape: tuple[int, ...]) -> Likelihood:
    """Independent entries in [0, 1] of density proportional to exp(logit x).

    h holds the logits. Its number is a log-density, where a Bernoulli's on the same x
    would be minus a cross-entropy.
    """

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        del params
        # Open: at a logit of 60 a p of 0 would be an x of 0, of no mass to speak of.
        p = reparameterize.open_uniform(key, h.shape, h.dtype)
        return _inverse_cdf(h, p).reshape(x_shape)

    def mean(params: PyTree, h: Array) -> Array:
        del params
        # The slope of the normalizer, which is what is left of the density at x = 0.
        slope = jax.grad(
            lambda h: continuous_bernoulli_terms(h, jnp.zeros_like(h)).sum()
        )
        return -slope(h).reshape(x_shape)

    def log_prob_terms(params: PyTree, h: Array, x: Array) -> Array:
        del params
        return continuous_bernoulli_terms(h, x.reshape(-1)).reshape(x_shape)

    def quantity(x: np.ndarray) -> str:
        _check_unit_interval("continuous Bernoulli", x)
        return "log-density"

    return likelihood(
        x_shape,
        width=_size(x_shape),
        sample=sample,
        mean=mean,
        log_prob_terms=log_prob_terms,
        quantity=quantity,
    )


def laplace(x_shape: tuple[int, ...], *, min_scale: float = 1e-2) -> Likelihood:
    """Independent Laplace entries; h = [mean, log scale], bounded as a normal's std.

    The log scale is bounded below as in `normal_per_pixel_std`.

    Raises:
        ValueError: if min_scale is not positive and finite.
    """

    def sample(key: PRNGKey, dtype: Any) -> Array:
        return jax.random.laplace(key, x_shape, dtype)

    floor = numerics.log_of("min_scale", min_scale)
    return _location_and_scale("Laplace", x_shape, floor, sample, laplace_terms)


def student_t(
    x_shape: tuple[int, ...], *, degrees: float, min_scale: float = 1e-2
) -> Likelihood:
    """Independent entries of Student's t; h = [mean, log scale], as `laplace`.

    Raises:
        ValueError: if min_scale is not positive and finite, or degrees not above one,
            where the mean that it reports exists.
    """
    numerics.check_in("(1, inf)", degrees=degrees)

    def sample(key: PRNGKey, dtype: Any) -> Array:
        return jax.random.t(key, degrees, x_shape, dtype)

    floor = numerics.log_of("min_scale", min_scale)
    terms = functools.partial(student_t_terms, degrees=degrees)
    return _location_and_scale("Student t", x_shape, floor, sample, terms)


def log_normal(x_shape: tuple[int, ...], *, min_std: float = 1e-2) -> Likelihood:
    """Independent positive entries; h = [mean, log std] of their logarithms.

    The log std is bounded below as in `normal_per_pixel_std`.

    Raises:
        ValueError: if min_std is not positive and finite.
    """
    floor = numerics.log_of("min_std", min_std)

    def read(h: Array) -> tuple[Array, Array]:
        mean, second = h.reshape(2, *x_shape)
        return mean, _above(floor, second)

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        del params
        mean, log_std = read(h)
        return jnp.exp(
            mean + jnp.exp(log_std) * jax.random.normal(key, x_shape, h.dtype)
        )

    def mean(params: PyTree, h: Array) -> Array:
        del params
        mean, log_std = read(h)
        return jnp.exp(mean + 0.5 * jnp.exp(2.0 * log_std))

    def quantity(x: np.ndarray) -> str:
        if not np.all((x > 0.0) & (x < np.inf)):
            raise ValueError(f"a log-normal likelihood needs x > 0, got {x.min():g}")
        return "log-density"

    return likelihood(
        x_shape,
        width=2 * _size(x_shape),
        planes=2,
        sample=sample,
        mean=mean,
        log_prob_terms=lambda params, h, x: log_normal_terms(*read(h), x),
        quantity=quantity,
    )


def _location_and_scale(
    name: str,
    x_shape: tuple[int, ...],
    floor: float,
    standard: Callable[[PRNGKey, Any], Array],
    terms: Callable[[Array, Array, Array], Array],
) -> Likelihood:
    """x = mean + scale * noise, with the log scale above a floor."""

    def read(h: Array) -> tuple[Array, Array]:
        mean, second = h.reshape(2, *x_shape)
        return mean, _above(floor, second)

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        del params
        mean, log_scale = read(h)
        return mean + jnp.exp(log_scale) * standard(key, h.dtype)

    return likelihood(
        x_shape,
        width=2 * _size(x_shape),
        planes=2,
        sample=sample,
        mean=lambda params, h: read(h)[0],
        log_prob_terms=lambda params, h, x: terms(*read(h), x),
        quantity=_density_of_reals(name),
    )


def _above(floor: float, x: Array) -> Array:
    """x, bent smoothly so as to stay above a floor."""
    return floor + numerics.softplus(x - floor)


def _check_unit_interval(name: str, x: np.ndarray) -> None:
    if not np.all((x >= 0.0) & (x <= 1.0)):
        raise ValueError(
            f"a {name} likelihood needs x in [0, 1], got {x.min()} to {x.max()}"
        )


def _density_of_reals(name: str) -> Callable[[np.ndarray], str]:
    def quantity(x: np.ndarray) -> str:
        if not np.all(np.isfinite(x)):
            raise ValueError(f"a {name} likelihood needs finite x")
        return "log-density"

    return quantity


def _inverse_cdf(eta: Array, p: Array) -> Array:
    """x with P(X <= x) = p under the density proportional to exp(eta x) on [0, 1]."""
    size = jnp.abs(eta)
    is_small = size < 1e-3
    far = jnp.where(is_small, 1.0, size)
    # From above, where x is near one: 1 - x has density exp(-size (1 - x)).
    q = jnp.where(eta > 0.0, 1.0 - p, p)
    y = -jnp.log1p(q * jnp.expm1(-far)) / far
    near = p + 0.5 * eta * p * (1.0 - p)
    x = jnp.where(is_small, near, jnp.where(eta > 0.0, 1.0 - y, y))
    return jnp.clip(x, 0.0, 1.0)


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
    log_std = numerics.log_of("std", std)

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
    shared: bool = True,
) -> Likelihood:
    """Independent normal entries sharing one learned standard deviation; h the mean.

    The parameter is log_std, bounded below at log(min_std) by a clamp: a model that
    reproduces a training image exactly would otherwise raise its density without limit
    (Mattei & Frellsen 2018, arXiv:1802.04826). Below it the gradient is zero.

    Args:
        x_shape: shape of one observation.
        initial_std: where it starts, in the units of x.
        min_std: its least value.
        squash: maps h to the mean.
        shared: whether all entries have one, or each a parameter of its own.

    Raises:
        ValueError: unless 0 < min_std <= initial_std.
    """
    floor = numerics.log_of("min_std", min_std)
    start = numerics.log_of("initial_std", initial_std)
    if start < floor:
        raise ValueError(f"initial_std {initial_std} is below min_std {min_std}")

    def init(key: PRNGKey) -> PyTree:
        del key
        shape = () if shared else x_shape
        return {"log_std": jnp.full(shape, start, jnp.result_type(float))}

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
    floor = numerics.log_of("min_std", min_std)

    def moments(params: PyTree, h: Array) -> tuple[Array, Array]:
        del params
        first, second = jnp.split(h, 2)
        log_std = _above(floor, second)
        return _mean(first, x_shape, squash), log_std.reshape(x_shape)

    return _normal(x_shape, 2 * _size(x_shape), lambda key: (), moments, planes=2)


def _normal(
    x_shape: tuple[int, ...],
    width: int,
    init: Callable[[PRNGKey], PyTree],
    moments: Callable[[PyTree, Array], tuple[Array, Array]],
    *,
    planes: int = 1,
) -> Likelihood:
    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        mean, log_std = moments(params, h)
        return mean + jnp.exp(log_std) * jax.random.normal(key, x_shape, h.dtype)

    def mean(params: PyTree, h: Array) -> Array:
        return moments(params, h)[0]

    def log_prob_terms(params: PyTree, h: Array, x: Array) -> Array:
        return normal_terms(*moments(params, h), x)

    return likelihood(
        x_shape,
        width=width,
        planes=planes,
        init=init,
        sample=sample,
        mean=mean,
        log_prob_terms=log_prob_terms,
        quantity=_density_of_reals("normal"),
    )


def _mean(
    h: Array, x_shape: tuple[int, ...], squash: Callable[[Array], Array] | None
) -> Array:
    mean = h.reshape(x_shape)
    return mean if squash is None else squash(mean)


def _size(x_shape: tuple[int, ...]) -> int:
    numerics.check_sizes(x_shape=x_shape)
    return int(np.prod(x_shape))
