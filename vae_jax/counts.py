r"""Observation models of counts, x = 0, 1, 2, ...

A log-probability of counts in the thousands is a difference of numbers in the millions,
which float32 does not hold. Here it is a sum of parts that are small where it is, the
deviance and the errors of Stirling's formula (Loader 2000, "Fast and accurate
computation of binomial probabilities"), so that what float32 rounds off is some units
in the last place of the log-probability and of its slope in the log mean, and a
negative binomial of dispersion 1e8 is the Poisson to as much. Gradients are those at a
mean that is off in its last place; in a great dispersion's logarithm they have fewer
digits (`negative_binomial_terms`).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax import likelihoods, numerics
from vae_jax.types import Likelihood, PRNGKey, PyTree, Scalar

DISPERSIONS = ("shared", "column", "entry")
"""One learned number for all entries, one for each, or one that the decoder gives."""

_MOST_LOG_MEAN = 30.0  # beyond it, and below its negative, h has no gradient
_LOG_DISPERSIONS = (-10.0, 20.0)  # where log dispersions are cut off
_MOST_RATE = 1e9  # of a sample, which is an int32
_HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)


def poisson_terms(
    log_mean: Float[Array, "*X"], x: Float[Array, "*X"]
) -> Float[Array, "*X"]:
    r"""Per-entry log Poisson(x; mean) in nats.

    $x \log\mu - \mu - \log x!$, for x > 0 as minus the deviance
    $x \log(x/\mu) + \mu - x$, half of $\log(2\pi x)$ and the error of Stirling's
    formula at x.
    """
    mean = jnp.exp(log_mean)
    some = jnp.where(x == 0.0, 1.0, x)
    ratio = (some - mean) / some
    deviance = some * _excess(ratio, _log_quotient(log_mean, some))
    positive = -deviance - _stirling_error(some) - 0.5 * jnp.log(some) - _HALF_LOG_2_PI
    return jnp.where(x == 0.0, -mean, positive)


def negative_binomial_terms(
    log_mean: Float[Array, "*X"],
    log_dispersion: Float[Array, "*X"],
    x: Float[Array, "*X"],
) -> Float[Array, "*X"]:
    r"""Per-entry log-probability in nats of a Poisson whose rate is Gamma-distributed.

    $\binom{x+r-1}{x}\left(\frac{r}{r+\mu}\right)^r\left(\frac{\mu}{r+\mu}\right)^x$
    at the mean $\mu$ and the dispersion r: the variance is $\mu + \mu^2/r$, and the
    limit of large r the Poisson. For x > 0 it is made of the deviances of r and x from
    what the mean makes of x + r, and of errors of Stirling's formula.

    The gradient in log r is a small difference of large parts where r is far above the
    mean and x: at 1e7 or 1e8 it has two to four digits of a number near 1, and none
    of a gradient below 1e-3.
    """
    mean, r = jnp.exp(log_mean), jnp.exp(log_dispersion)
    none = -r * numerics.softplus(log_mean - log_dispersion)
    some = jnp.where(x == 0.0, 1.0, x)
    beyond = (some - mean) / (r + mean)
    # log((x + r) / (mu + r)), from a difference that is small or the quotient.
    is_near = jnp.abs(beyond) < 0.5
    near = jnp.log1p(jnp.where(is_near, beyond, 0.0))
    far = -jnp.log((mean + r) / (some + r))
    log_ratio = jnp.where(is_near, near, far)
    of_r = r * _excess(-beyond, log_ratio)
    log_rest = log_ratio + _log_quotient(log_mean, some)
    of_x = some * _excess(beyond * (r / some), log_rest)
    errors = _stirling_error(some + r) - _stirling_error(r) - _stirling_error(some)
    width = 0.5 * (jnp.log1p(some / r) + jnp.log(some)) + _HALF_LOG_2_PI
    return jnp.where(x == 0.0, none, errors - of_r - of_x - width)


def zero_inflated_terms(
    logit: Float[Array, "*X"], terms: Float[Array, "*X"], x: Float[Array, "*X"]
) -> Float[Array, "*X"]:
    """Per-entry log-probability in nats of x that is 0 for certain, or as it was.

    Args:
        logit: of being 0 for certain.
        terms: log-probabilities of x otherwise.
        x: counts.
    """
    counted = terms - numerics.softplus(logit)
    return jnp.where(
        x == 0.0, jnp.logaddexp(-numerics.softplus(-logit), counted), counted
    )


def beta_binomial_terms(
    logit: Float[Array, "*X"],
    log_concentration: Float[Array, "*X"],
    x: Float[Array, "*X"],
    *,
    num_trials: int,
) -> Float[Array, "*X"]:
    r"""Per-entry log-probability in nats of x successes of a Beta-distributed share.

    Beta(s p, s (1 - p)) at p = sigmoid(logit) and the concentration s. As Pólya's urn,
    whose n draws add up to
    $\prod_{k<x}(p+k/s)\prod_{k<n-x}(1-p+k/s)/\prod_{k<n}(1+k/s)$ times the binomial
    coefficient, $\prod_{k<\min(x,n-x)}(n-k)/(k+1)$: the limit of large s is the
    binomial, at any s without a difference of gamma functions. The sum over n draws
    rounds off about ten times as much as float32 does of a number near n.

    Args:
        logit: of p.
        log_concentration: log s.
        x: successes, 0 to n.
        num_trials: n.
    """
    k = jnp.arange(num_trials, dtype=x.dtype).reshape(-1, *(1 for _ in x.shape))
    share = jnp.log(k) - log_concentration[None]
    of_ones = jnp.logaddexp(-numerics.softplus(-logit)[None], share)
    of_zeros = jnp.logaddexp(-numerics.softplus(logit)[None], share)
    ones, zeros = k < x[None], k < num_trials - x[None]
    urn = jnp.where(ones, of_ones, 0.0) + jnp.where(zeros, of_zeros, 0.0)
    of_coefficient = k < jnp.minimum(x, num_trials - x)[None]
    ways = jnp.where(of_coefficient, jnp.log((num_trials - k) / (k + 1.0)), 0.0)
    terms = (urn + ways - numerics.softplus(share)).sum(0)
    return jnp.where(x <= num_trials, terms, -jnp.inf)


def poisson(x_shape: tuple[int, ...], *, log_size: Scalar | float = 0.0) -> Likelihood:
    """Independent Poisson entries; h holds the logarithms of their means.

    Args:
        x_shape: shape of one observation.
        log_size: logarithm of its size factor, such as the depth or the length that it
            was counted over: all means are multiplied by that.
    """

    def log_mean(h: Array) -> Array:
        return _log_mean(h.reshape(x_shape) + log_size)

    def rate(h: Array) -> Array:
        return jnp.exp(log_mean(h))

    return likelihoods.likelihood(
        x_shape,
        width=math.prod(x_shape),
        sample=lambda key, params, h: _poisson_sample(key, rate(h)),
        mean=lambda params, h: rate(h),
        log_prob_terms=lambda params, h, x: poisson_terms(log_mean(h), x),
        quantity=_quantity("Poisson"),
    )


def negative_binomial(
    x_shape: tuple[int, ...], *, dispersion: str, log_size: Scalar | float = 0.0
) -> Likelihood:
    """Independent negative binomial entries; h holds the logarithms of their means.

    See `negative_binomial_terms`. The logarithm of the dispersion, which is 1 at first,
    is a parameter, or a second plane of h.

    Args:
        x_shape: shape of one observation.
        dispersion: "shared", "column" (a parameter an entry) or "entry" (of h).
        log_size: as `poisson`'s; the dispersion does not depend on it.

    Raises:
        ValueError: for another dispersion.
    """
    numbers = _dispersion(x_shape, dispersion, num_planes=1)

    def log_mean(planes: Array) -> Array:
        return _log_mean(planes[0] + log_size)

    def terms(planes: Array, log_dispersion: Array, x: Array) -> Array:
        return negative_binomial_terms(log_mean(planes), log_dispersion, x)

    return _dispersed(
        "negative binomial",
        x_shape,
        numbers,
        sample=lambda key, planes, log_r: _gamma_poisson(key, log_mean(planes), log_r),
        mean=lambda planes: jnp.exp(log_mean(planes)),
        terms=terms,
    )


def zero_inflated_negative_binomial(
    x_shape: tuple[int, ...], *, dispersion: str, log_size: Scalar | float = 0.0
) -> Likelihood:
    """Entries that are 0 for certain, or `negative_binomial`; independent.

    h holds the logarithms of the means of the latter, then the logits of the former,
    then the dispersion's where it is of h. Lopez et al. 2018, "Deep generative modeling
    for single-cell transcriptomics". A size factor is of the counts that are not 0 for
    certain.

    Raises:
        ValueError: as `negative_binomial`.
    """
    numbers = _dispersion(x_shape, dispersion, num_planes=2)

    def log_mean(planes: Array) -> Array:
        return _log_mean(planes[0] + log_size)

    def sample(key: PRNGKey, planes: Array, log_dispersion: Array) -> Array:
        key_zero, key_count = jax.random.split(key)
        is_zero = jax.random.bernoulli(key_zero, jax.nn.sigmoid(planes[1]))
        count = _gamma_poisson(key_count, log_mean(planes), log_dispersion)
        return jnp.where(is_zero, 0.0, count)

    def mean(planes: Array) -> Array:
        return jax.nn.sigmoid(-planes[1]) * jnp.exp(log_mean(planes))

    def terms(planes: Array, log_dispersion: Array, x: Array) -> Array:
        counted = negative_binomial_terms(log_mean(planes), log_dispersion, x)
        return zero_inflated_terms(planes[1], counted, x)

    return _dispersed(
        "zero-inflated negative binomial",
        x_shape,
        numbers,
        sample=sample,
        mean=mean,
        terms=terms,
    )


def beta_binomial(x_shape: tuple[int, ...], *, num_trials: int) -> Likelihood:
    """Independent counts of successes; h = [logit of their share, log concentration].

    See `beta_binomial_terms`.

    Args:
        x_shape: shape of one observation.
        num_trials: n, the most that an entry can be.

    Raises:
        ValueError: if num_trials is below one.
    """
    numerics.check_positive(num_trials=num_trials)

    def read(h: Array) -> tuple[Array, Array]:
        logit, log_concentration = h.reshape(2, *x_shape)
        return logit, jnp.clip(log_concentration, *_LOG_DISPERSIONS)

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        del params
        logit, log_s = read(h)
        s, key_share, key_count = jnp.exp(log_s), *jax.random.split(key)
        a, b = s * jax.nn.sigmoid(logit), s * jax.nn.sigmoid(-logit)
        share = jax.random.beta(key_share, a, b, x_shape, h.dtype)
        return jax.random.binomial(key_count, num_trials, share, x_shape, h.dtype)

    def quantity(x: np.ndarray) -> str:
        if x.size and x.max() > num_trials:
            raise ValueError(
                f"a beta-binomial likelihood of {num_trials} trials needs x of at most "
                f"as many, got {x.max():g}"
            )
        return _quantity("beta-binomial")(x)

    return likelihoods.likelihood(
        x_shape,
        width=2 * math.prod(x_shape),
        planes=2,
        sample=sample,
        mean=lambda params, h: num_trials * jax.nn.sigmoid(read(h)[0]),
        log_prob_terms=lambda params, h, x: beta_binomial_terms(
            *read(h), x, num_trials=num_trials
        ),
        quantity=quantity,
    )


class _Dispersion(NamedTuple):
    """Where the dispersion of each entry comes from.

    Attributes:
        num_planes: of h in all.
        init: key -> own parameters.
        read: params, planes of h [P, *X] -> its logarithm [*X], cut off.
    """

    num_planes: int
    init: Callable[[PRNGKey], PyTree]
    read: Callable[[PyTree, Array], Array]


def _dispersion(x_shape: tuple[int, ...], kind: str, *, num_planes: int) -> _Dispersion:
    if kind not in DISPERSIONS:
        raise ValueError(
            f"dispersion must be one of {', '.join(DISPERSIONS)}, got {kind!r}"
        )
    if kind == "entry":
        return _Dispersion(
            num_planes + 1,
            lambda key: (),
            lambda params, planes: jnp.clip(planes[-1], *_LOG_DISPERSIONS),
        )
    shape = x_shape if kind == "column" else ()

    def init(key: PRNGKey) -> PyTree:
        del key
        return {"log_dispersion": jnp.zeros(shape, jnp.result_type(float))}

    def read(params: PyTree, planes: Array) -> Array:
        log_r = jnp.clip(params["log_dispersion"], *_LOG_DISPERSIONS)
        return jnp.broadcast_to(log_r.astype(planes.dtype), x_shape)

    return _Dispersion(num_planes, init, read)


def _dispersed(
    name: str,
    x_shape: tuple[int, ...],
    numbers: _Dispersion,
    *,
    sample: Callable[[PRNGKey, Array, Array], Array],
    mean: Callable[[Array], Array],
    terms: Callable[[Array, Array, Array], Array],
) -> Likelihood:
    """The likelihood of functions of planes of h [P, *X] and log dispersions [*X]."""

    def read(h: Array) -> Array:
        return h.reshape(numbers.num_planes, *x_shape)

    return likelihoods.likelihood(
        x_shape,
        width=numbers.num_planes * math.prod(x_shape),
        planes=numbers.num_planes,
        init=numbers.init,
        sample=lambda key, params, h: sample(
            key, read(h), numbers.read(params, read(h))
        ),
        mean=lambda params, h: mean(read(h)),
        log_prob_terms=lambda params, h, x: terms(
            read(h), numbers.read(params, read(h)), x
        ),
        quantity=_quantity(name),
    )


def _log_mean(h: Array) -> Array:
    return jnp.clip(h, -_MOST_LOG_MEAN, _MOST_LOG_MEAN)


def _poisson_sample(key: PRNGKey, rate: Array) -> Array:
    x = jax.random.poisson(key, jnp.minimum(rate, _MOST_RATE))
    return x.astype(rate.dtype)


def _gamma_poisson(key: PRNGKey, log_mean: Array, log_dispersion: Array) -> Array:
    key_rate, key_count = jax.random.split(key)
    gamma = jax.random.loggamma(key_rate, jnp.exp(log_dispersion))
    log_rate = log_mean + gamma - log_dispersion
    return _poisson_sample(key_count, jnp.exp(log_rate))


def _log_quotient(log_a: Array, b: Array) -> Array:
    """log(a / b): a difference of two large logarithms has lost its last digits."""
    far = jax.lax.stop_gradient(jnp.where(jnp.abs(log_a) < 60.0, 0.0, log_a))
    return jnp.log(jnp.exp(log_a - far) / b) + far


def _excess(t: Array, log_rest: Array) -> Array:
    """-log(1 - t) - t, of t below one and log(1 - t), which is known better far off."""
    is_near = jnp.abs(t) < 0.3
    near = jnp.where(is_near, t, 0.0)
    # -log(1 - t) = 2 artanh(v), of which t v is the first term less t.
    v = near / (2.0 - near)
    square = v * v
    series = sum(square**j / (2 * j + 3) for j in range(9))
    return jnp.where(
        is_near,
        near * v + 2.0 * v * square * series,
        -log_rest - jnp.where(is_near, 0.0, t),
    )


def _stirling_error(n: Array) -> Array:
    """log n! less Stirling's formula (n + 1/2) log n - n + log(2 pi) / 2, of n > 0."""
    is_large = n > 8.0
    large, small = jnp.where(is_large, n, 9.0), jnp.where(is_large, 1.0, n)
    inverse = 1.0 / (large * large)
    series = 1 / 1188 - inverse * (691 / 360360 - inverse / 156)
    series = 1 / 1260 - inverse * (1 / 1680 - inverse * series)
    series = (1 / 12 - inverse * (1 / 360 - inverse * series)) / large
    direct = jax.lax.lgamma(small + 1.0) - (small + 0.5) * jnp.log(small) + small
    return jnp.where(is_large, series, direct - _HALF_LOG_2_PI)


def _quantity(name: str) -> Callable[[np.ndarray], str]:
    def quantity(x: np.ndarray) -> str:
        others = x[~((x >= 0.0) & (x == np.floor(x)) & (x < np.inf))]
        if others.size:
            raise ValueError(
                f"a {name} likelihood needs counts 0, 1, 2, ..., got {others[0]:g}"
            )
        return "log-likelihood"

    return quantity
