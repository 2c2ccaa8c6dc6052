"""The E-step of Gaussian mixtures: weighted moments of all rows, block by block."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.latent_models import gmm_missing, gmm_scales
from vae_jax.types import Scalar

_MISSING_ROWS = 8  # a block of incomplete rows is this many times shorter


class Moments(NamedTuple):
    """Sums over rows under the responsibilities r, with the rows' weights.

    `b` and `second` are in the coordinates eps = L_k^{-1} (x - mu_k).

    Attributes:
        n: sum r.
        b: sum r eps.
        second: sum r eps eps^T, in the shape of the scale.
        entropy: of q(z), and of the missing entries given z: nats.
        bound: sum r (log p(x, z) - log r).
        log_p: log-sum-exp.
        total: the sum of the weights.
    """

    n: Float[Array, " K"]
    b: Float[Array, "K D"]
    second: Array
    entropy: Scalar
    bound: Scalar
    log_p: Scalar
    total: Scalar


class _Rows(NamedTuple):
    """What a block of R rows says of every component.

    Attributes:
        eps: whitened; the expectation at missing entries.
        log_density: of the observed entries, nats.
        entropy: of the missing entries.
        spread: shares [K, R] -> what they add to `second`.
    """

    eps: Float[Array, "K D R"]
    log_density: Float[Array, "K R"]
    entropy: Float[Array, "K R"]
    spread: Callable[[Array], Array]


def over_rows(
    mixture: gmm_scales.Tables,
    x: Float[Array, "B D"],
    weight: Float[Array, " B"],
    *,
    block_size: int,
    missing: bool,
) -> Moments:
    """One pass over x in blocks of rows, the last one filled with weightless rows.

    A row of weight 0 is not read, so it may hold anything.

    Raises:
        ValueError: when traced, if the rows have not as many entries as the means.
    """
    event = mixture.mean.shape[1:]
    if x.shape[1:] != event:
        raise ValueError(f"the mixture is of x of {event}, got rows of {x.shape[1:]}")
    size = max(1, block_size // _MISSING_ROWS) if missing else block_size
    size = min(size, x.shape[0])
    rows_of = _incomplete if missing else _complete
    # Both sides of x - mu about the middle of the means, so that float32 keeps the
    # digits of the difference.
    shares = jax.nn.softmax(mixture.logits)
    center = jnp.matmul(shares, mixture.mean, precision="highest")
    centered = mixture._replace(mean=mixture.mean - center[None])

    def block(rows: tuple[Array, Array]) -> Moments:
        x, weight = rows
        x = jnp.where((weight > 0.0)[:, None], x - center[None], 0.0)
        return _moments(centered, rows_of(centered, x), weight)

    blocks = _blocks(x, size), _blocks(weight, size)
    first = jax.tree.map(lambda leaf: leaf[0], blocks)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(block, first)
    )

    def add(total: Moments, rows: tuple[Array, Array]) -> tuple[Moments, None]:
        return jax.tree.map(jnp.add, total, block(rows)), None

    return numerics.scan(add, zeros, blocks)[0]


def _blocks(rows: Float[Array, "B *X"], size: int) -> Float[Array, "S R *X"]:
    pad = -rows.shape[0] % size
    rows = jnp.pad(rows, [(0, pad)] + [(0, 0)] * (rows.ndim - 1))
    return rows.reshape(-1, size, *rows.shape[1:])


def _moments(
    mixture: gmm_scales.Tables, rows: _Rows, weight: Float[Array, " R"]
) -> Moments:
    log_joint = jax.nn.log_softmax(mixture.logits)[:, None] + rows.log_density
    log_p = jax.nn.logsumexp(log_joint, axis=0)
    log_r = log_joint - log_p[None]
    shares = weight[None] * jnp.exp(log_r)
    kind = gmm_scales.kind(mixture.scale)
    second = kind.second_moments(mixture.scale, shares, rows.eps)
    return Moments(
        shares.sum(1),
        (shares[:, None, :] * rows.eps).sum(2),
        second + rows.spread(shares),
        (shares * (rows.entropy - log_r)).sum(),
        (shares * (log_joint - log_r)).sum(),
        (weight * log_p).sum(),
        weight.sum(),
    )


def _complete(mixture: gmm_scales.Tables, x: Float[Array, "R D"]) -> _Rows:
    kind, num_features = gmm_scales.kind(mixture.scale), x.shape[1]
    eps = kind.whiten(mixture.scale, mixture.mean, x.T)
    log_det = kind.log_det(mixture.scale, num_features)[:, None]
    constant = log_det + 0.5 * num_features * jnp.log(2.0 * jnp.pi)
    log_density = -0.5 * (eps**2).sum(1) - constant
    return _Rows(
        eps,
        log_density,
        jnp.zeros_like(log_density),
        lambda shares: jnp.zeros_like(mixture.scale),
    )


def _incomplete(mixture: gmm_scales.Tables, x: Float[Array, "R D"]) -> _Rows:
    if mixture.scale.ndim == 3:
        return _incomplete_by_factors(mixture, x)
    return _incomplete_by_logarithms(mixture, x)


def _incomplete_by_factors(mixture: gmm_scales.Tables, x: Float[Array, "R D"]) -> _Rows:
    num_components, num_features = mixture.mean.shape
    shape = (num_components, num_features, num_features)
    scales = jnp.broadcast_to(mixture.scale, shape)
    of_row = jax.vmap(gmm_missing.complete, in_axes=(0, 0, None))
    got = jax.vmap(of_row, in_axes=(None, None, 0), out_axes=1)(scales, mixture.mean, x)

    def spread(shares: Array) -> Array:
        total = jnp.einsum("kr,krij->kij", shares, got.covariance, precision="highest")
        return gmm_scales.pool(mixture.scale, total)

    return _Rows(got.eps.mT, got.terms.sum(2), got.entropy, spread)


def _incomplete_by_logarithms(
    mixture: gmm_scales.Tables, x: Float[Array, "R D"]
) -> _Rows:
    missing = jnp.isnan(x).T  # [D, R]
    log_std = jnp.broadcast_to(mixture.scale, mixture.mean.shape)
    kind = gmm_scales.kind(mixture.scale)
    eps = kind.whiten(mixture.scale, mixture.mean, x.T)
    eps = jnp.where(missing[None], 0.0, eps)
    constant = (log_std + 0.5 * jnp.log(2.0 * jnp.pi))[:, :, None]
    terms = jnp.where(missing[None], 0.0, -0.5 * eps**2 - constant)
    entropies = jnp.where(missing[None], constant + 0.5, 0.0)

    def spread(shares: Array) -> Array:
        return kind.second_moments(mixture.scale, shares, missing[None].astype(x.dtype))

    return _Rows(eps, terms.sum(1), entropies.sum(1), spread)
