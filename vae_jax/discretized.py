"""Observation models of values on a grid, x = k / (K - 1) for k = 0..K-1.

What they give is a log-probability of the stored values themselves
(`numerics.bits_per_dimension`). Inside, a density lives on u = 2x - 1
in [-1, 1] and value k owns the bin between its edges; the first and the last bin reach
to infinity, so that every model sums to one over its K values at any parameters, to
float32's rounding.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax import likelihoods, numerics
from vae_jax.types import Likelihood, PRNGKey, PyTree

MIN_LOG_SCALE = -7.0
"""Where log scales are cut off, as PixelCNN++ (arXiv:1701.05517) has it: bins of 256
values are wider than seven such scales."""

_LATTICE = 256  # points of the lattice that a mixture's mean in color is taken over
# Fractions of a rank-one lattice in two dimensions: Roberts' generalized golden ratio.
_STEPS = (0.7548776662466927, 0.5698402909980532)


def logistic_terms(
    mean: Float[Array, "*X"],
    log_scale: Float[Array, "*X"],
    x: Float[Array, "*X"],
    *,
    num_values: int,
) -> Float[Array, "*X"]:
    r"""Per-entry log-probability in nats of a logistic density's bin.

    $\log P(k) = -\mathrm{softplus}(-a) - \mathrm{softplus}(b) + \log(1 - e^{-w/s})$
    with a and b the bin's upper and lower edge less the mean, in units of the scale s,
    and w its width: sigmoid(a) - sigmoid(b), without its cancellation. The first and
    the last bin have one edge. Salimans et al. 2017 (arXiv:1701.05517) switch to the
    density times w where the difference is small, which is off by nats where the
    scale is small; this needs no such threshold.

    Args:
        mean: of u = 2x - 1.
        log_scale: log s, cut off at MIN_LOG_SCALE, below which it has no gradient.
        x: values k / (K - 1).
        num_values: K.
    """
    k = jnp.round(x * (num_values - 1))
    log_scale = jnp.maximum(log_scale, MIN_LOG_SCALE)
    inverse = jnp.exp(-log_scale)
    # Both edges by one formula: neighbors share theirs to the last bit.
    a = (_upper_edge(k, num_values) - mean) * inverse
    b = (_upper_edge(k - 1.0, num_values) - mean) * inverse
    below = jnp.where(k == num_values - 1, 0.0, -numerics.softplus(-a))
    above = jnp.where(k == 0.0, 0.0, -numerics.softplus(b))
    log_width = math.log(2.0 / (num_values - 1)) - log_scale
    inner = (k > 0.0) & (k < num_values - 1)
    return below + above + jnp.where(inner, _log1m_exp_of_exp(log_width), 0.0)


def logistic(x_shape: tuple[int, ...], *, num_values: int) -> Likelihood:
    """Independent entries, each a logistic density in bins; h = [mean, log scale].

    Kingma et al. 2016 (arXiv:1606.04934), with edge bins. See `logistic_terms`.

    Raises:
        ValueError: if num_values is below two.
    """
    _check_num_values(num_values)

    def read(h: Array) -> tuple[Array, Array]:
        mean, log_scale = h.reshape(2, *x_shape)
        return mean, jnp.maximum(log_scale, MIN_LOG_SCALE)

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        del params
        mean, log_scale = read(h)
        noise = jax.random.logistic(key, x_shape, h.dtype)
        return _to_grid(mean + jnp.exp(log_scale) * noise, num_values)

    def mean(params: PyTree, h: Array) -> Array:
        del params
        return _mean_on_grid(*read(h), num_values)

    def log_prob_terms(params: PyTree, h: Array, x: Array) -> Array:
        del params
        return logistic_terms(*read(h), x, num_values=num_values)

    return likelihoods.likelihood(
        x_shape,
        width=2 * math.prod(x_shape),
        planes=2,
        sample=sample,
        mean=mean,
        log_prob_terms=log_prob_terms,
        quantity=_quantity(num_values),
    )


def categorical(x_shape: tuple[int, ...], *, num_values: int) -> Likelihood:
    """Independent entries, each a choice among K values; h holds their logits.

    h is K planes of x's shape. It knows no order of the values.

    Raises:
        ValueError: if num_values is below two.
    """
    _check_num_values(num_values)

    def log_probs(params: PyTree, h: Array) -> Float[Array, "K *X"]:
        del params
        return jax.nn.log_softmax(h.reshape(num_values, *x_shape), axis=0)

    return _of_log_probs(
        x_shape,
        log_probs,
        num_values=num_values,
        width=num_values * math.prod(x_shape),
        planes=num_values,
    )


def ordinal(
    x_shape: tuple[int, ...], *, num_values: int, shares: Any = None
) -> Likelihood:
    r"""Independent entries of K ordered values; h holds their locations.

    The cumulative logit of McCullagh 1980: $P(k \le j) = \sigma(c_j - h)$, the
    logistic density around h in bins whose K - 1 edges are parameters of each entry:
    the first, and the logarithms of the widths of the others' bins.

    Args:
        x_shape: shape of one observation.
        num_values: K.
        shares: probabilities [K, *X] at h = 0 to start from, above zero; equal ones by
            default.

    Raises:
        ValueError: if num_values is below two.
    """
    _check_num_values(num_values)
    if shares is None:
        shares = np.full((num_values, *x_shape), 1.0 / num_values)
    below = np.cumsum(shares, axis=0)[:-1]
    edges = np.log(below) - np.log1p(-below)

    def init(key: PRNGKey) -> PyTree:
        del key
        start = np.concatenate([edges[:1], np.log(np.diff(edges, axis=0))])
        return {"edges": jnp.asarray(start, jnp.result_type(float))}

    def log_probs(params: PyTree, h: Array) -> Float[Array, "K *X"]:
        first, log_widths = jnp.split(params["edges"].astype(h.dtype), [1])
        widths = jnp.cumsum(jnp.exp(log_widths), axis=0)
        places = jnp.concatenate([first, first + widths]) - h.reshape(x_shape)[None]
        none = jnp.zeros((1, *x_shape), h.dtype)
        below = jnp.concatenate([-numerics.softplus(-places), none])
        above = jnp.concatenate([none, -numerics.softplus(places)])
        inner = _log1m_exp_of_exp(log_widths)
        return below + above + jnp.concatenate([none, inner, none])

    return _of_log_probs(
        x_shape,
        log_probs,
        num_values=num_values,
        width=math.prod(x_shape),
        init=init,
    )


def _of_log_probs(
    x_shape: tuple[int, ...],
    log_probs: Callable[[PyTree, Array], Float[Array, "K *X"]],
    *,
    num_values: int,
    **described: Any,
) -> Likelihood:
    """Independent entries, whose K values have such log-probabilities, given h."""

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        k = jax.random.categorical(key, log_probs(params, h), axis=0)
        return k.astype(h.dtype) / (num_values - 1)

    def mean(params: PyTree, h: Array) -> Array:
        values = jnp.linspace(0.0, 1.0, num_values, dtype=h.dtype)
        return jnp.tensordot(values, jnp.exp(log_probs(params, h)), axes=1)

    def log_prob_terms(params: PyTree, h: Array, x: Array) -> Array:
        k = jnp.round(x * (num_values - 1)).astype(int)
        return jnp.take_along_axis(log_probs(params, h), k[None], axis=0)[0]

    return likelihoods.likelihood(
        x_shape,
        sample=sample,
        mean=mean,
        log_prob_terms=log_prob_terms,
        quantity=_quantity(num_values),
        **described,
    )


class _Mixture(NamedTuple):
    """The numbers of M components at every pixel, each of C channels.

    Attributes:
        logits: of the components.
        means: of u, each channel's.
        log_scales: each channel's, cut off.
        coefficients: of red in green, then of red and of green in blue.
    """

    logits: Float[Array, "M H W"]
    means: Float[Array, "C M H W"]
    log_scales: Float[Array, "C M H W"]
    coefficients: Float[Array, "3 M H W"] | None


def logistic_mixture(
    x_shape: tuple[int, ...], *, num_values: int, num_components: int
) -> Likelihood:
    r"""Pixels that are each a mixture of logistic densities in bins.

    Salimans et al. 2017 (arXiv:1701.05517) section 2, of x [H, W] or of colors
    [H, W, 3]. All channels of a pixel are of one component; within it the mean of green
    is $m_g + c_0 u_r$ and that of blue $m_b + c_1 u_r + c_2 u_g$, with the observed
    $u = 2x - 1$ and c in (-1, 1). Samples are drawn in that order and each channel is
    put on the grid before the next reads it, so that they are of the distribution that
    `log_prob_terms` gives.

    h is [H, W] planes: M logits, then C M means, C M log scales, and in color 3 M
    coefficients. The terms are nats a pixel, [H, W]: in color they are not of an entry,
    and holes in single channels are refused (`vae.masked`). Where the last channels of
    x are NaN the terms are of those before, which do not read them; there is no
    gradient then. `mean` is exact for one
    channel and for red; green's and blue's are sums over a lattice of quantiles.

    Raises:
        ValueError: for another shape of x, num_values below two or num_components
            below one.
    """
    _check_num_values(num_values)
    numerics.check_positive(num_components=num_components)
    is_color = len(x_shape) == 3 and x_shape[2] == 3
    if len(x_shape) != 2 and not is_color:
        raise ValueError(f"x must be [H, W] or [H, W, 3], got a shape of {x_shape}")
    num_channels = 3 if is_color else 1
    planes = (10 if is_color else 3) * num_components

    def read(h: Array) -> _Mixture:
        maps = h.reshape(-1, num_components, *x_shape[:2])
        logits, means, log_scales, rest = jnp.split(
            maps, np.cumsum([1, num_channels, num_channels])
        )
        coefficients = jnp.tanh(rest) if is_color else None
        log_scales = jnp.maximum(log_scales, MIN_LOG_SCALE)
        return _Mixture(logits[0], means, log_scales, coefficients)

    def channel_mean(of: _Mixture, channel: int, u: list[Array]) -> Array:
        """The mean of a channel in each component, given the channels before it."""
        if of.coefficients is None or channel == 0:
            return of.means[channel]
        first, second, third = of.coefficients
        if channel == 1:
            return of.means[1] + first * u[0]
        return of.means[2] + second * u[0] + third * u[1]

    def log_prob_terms(params: PyTree, h: Array, x: Array) -> Array:
        del params
        of = read(h)
        channels = [x[None, ..., c] for c in range(3)] if is_color else [x[None]]
        u = [2.0 * one - 1.0 for one in channels]
        joint = jax.nn.log_softmax(of.logits, axis=0)
        for c, one in enumerate(channels):
            mean = channel_mean(of, c, u)
            every = jnp.broadcast_to(one, mean.shape)
            terms = logistic_terms(mean, of.log_scales[c], every, num_values=num_values)
            joint += jnp.where(jnp.isnan(one), 0.0, terms)
        return jax.nn.logsumexp(joint, axis=0)

    def draw(of: _Mixture, noise: Array) -> Array:
        """x [C, M, H, W] of every component from logistic noise of that shape."""
        x, u = [], []
        for c in range(num_channels):
            at = channel_mean(of, c, u) + jnp.exp(of.log_scales[c]) * noise[c]
            x.append(_to_grid(at, num_values))
            u.append(2.0 * x[-1] - 1.0)
        return jnp.stack(x)

    def shaped(x: Array) -> Array:
        return jnp.moveaxis(x, 0, -1) if is_color else x[0]

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        del params
        key_component, key_noise = jax.random.split(key)
        of = read(h)
        chosen = jax.random.categorical(key_component, of.logits, axis=0)
        x = draw(of, jax.random.logistic(key_noise, of.means.shape, h.dtype))
        return shaped(jnp.take_along_axis(x, chosen[None, None], axis=1)[:, 0])

    def mean(params: PyTree, h: Array) -> Array:
        del params
        of = read(h)
        weights = jax.nn.softmax(of.logits, axis=0)[None]
        exact = _mean_on_grid(of.means[0], of.log_scales[0], num_values)[None]
        if not is_color:
            return shaped((weights * exact).sum(1))
        # Of red and green at the lattice's quantiles, the mean of what reads them.
        points = (np.arange(_LATTICE)[:, None] * np.array(_STEPS) + 0.5) % 1.0
        at = jnp.asarray(np.log(points / (1.0 - points)), h.dtype)

        def one(quantiles: Array) -> Array:
            noise = jnp.concatenate([quantiles, jnp.zeros(1, h.dtype)])
            x = draw(of, jnp.broadcast_to(noise[:, None, None, None], of.means.shape))
            u = [2.0 * channel - 1.0 for channel in x]
            return jnp.stack(
                [
                    _mean_on_grid(
                        channel_mean(of, c, u[:c]), of.log_scales[c], num_values
                    )
                    for c in (1, 2)
                ]
            )

        rest = jax.lax.map(one, at).mean(0)
        return shaped((weights * jnp.concatenate([exact, rest])).sum(1))

    return likelihoods.likelihood(
        x_shape,
        width=planes * math.prod(x_shape[:2]),
        planes=planes,
        sample=sample,
        mean=mean,
        log_prob_terms=log_prob_terms,
        quantity=_quantity(num_values),
    )


def mixture_around(
    mean: Float[Array, "*X"], *, num_components: int
) -> Float[Array, " H"]:
    """The first planes of an h of `logistic_mixture` around a mean; the others are 0.

    Of equal components, of scale e^-2 each, at equal quantiles of a logistic density of
    scale e^-1 around u = 2 mean - 1: where all start at scale 1, as of h = 0, half
    of their mass lies beyond the range of x, and no component differs from
    another. Its mean is that of x but for what is cut off at the ends of the range.

    Args:
        mean: [H, W] or [H, W, 3], in [0, 1].
        num_components: M.

    Raises:
        ValueError: for num_components below one.
    """
    numerics.check_positive(num_components=num_components)
    u = 2.0 * mean - 1.0
    channels = jnp.moveaxis(u, -1, 0) if u.ndim == 3 else u[None]
    quantiles = (np.arange(num_components) + 0.5) / num_components
    apart = math.exp(-1.0) * np.log(quantiles / (1.0 - quantiles))
    means = channels[:, None] + apart.astype(u.dtype)[None, :, None, None]
    logits = jnp.zeros(means.shape[1:], u.dtype)
    log_scales = jnp.full_like(means, -2.0)
    return jnp.concatenate([x.ravel() for x in (logits, means, log_scales)])


def _upper_edge(k: Array, num_values: int) -> Array:
    """Of value k's bin, in u."""
    return (2.0 * k + 1.0) / (num_values - 1) - 1.0


def _to_grid(u: Array, num_values: int) -> Array:
    """The x whose bin u lies in."""
    k = jnp.round((u + 1.0) * (0.5 * (num_values - 1)))
    return jnp.clip(k, 0, num_values - 1) / (num_values - 1)


def _mean_on_grid(mean: Array, log_scale: Array, num_values: int) -> Array:
    """E[x] of a logistic density in bins: the sum of P(value > k) over k < K - 1."""
    inverse = jnp.exp(-log_scale)

    def add(total: Array, k: Array) -> tuple[Array, None]:
        return total + jax.nn.sigmoid(
            (mean - _upper_edge(k, num_values)) * inverse
        ), None

    total, _ = numerics.scan(
        add, jnp.zeros_like(mean), jnp.arange(num_values - 1, dtype=mean.dtype)
    )
    return total / (num_values - 1)


def _log1m_exp_of_exp(log_t: Array) -> Array:
    """log(1 - exp(-t)) at t = exp(log_t) > 0, for any finite log_t."""
    is_small = log_t < 0.0
    # Each branch reads log_t as it is: of a tie, at 0, `minimum` and `clip` pass half.
    t = jnp.exp(jnp.where(is_small, log_t, 0.0))
    # A quotient of two small numbers has no derivative where its square underflows.
    is_tiny = t < 1e-2
    series = t * (-0.5 + t * (1.0 / 24.0 - t**2 / 2880.0))
    safe = jnp.where(is_tiny, 1.0, t)
    small = jnp.where(is_tiny, series, jnp.log(-jnp.expm1(-safe) / safe))
    large = jnp.exp(jnp.where(is_small, 0.0, jnp.minimum(log_t, 5.0)))
    return jnp.where(is_small, log_t + small, jnp.log1p(-jnp.exp(-large)))


def _check_num_values(num_values: int) -> None:
    numerics.check_at_least(2, num_values=num_values)


def _quantity(num_values: int) -> Callable[[np.ndarray], str]:
    most_off = max(1e-3, 2.0 * num_values * float(np.finfo(np.float32).eps))

    def quantity(x: np.ndarray) -> str:
        k = np.asarray(x, np.float64) * (num_values - 1)
        if not np.all((x >= 0.0) & (x <= 1.0) & (np.abs(k - np.round(k)) < most_off)):
            raise ValueError(
                f"a likelihood of {num_values} values needs x = k / {num_values - 1} "
                f"for whole k, got values from {x.min()} to {x.max()} beside the grid"
            )
        return "log-likelihood"

    return quantity
