"""Where EM for Gaussian mixtures starts, and the best of several fits.

These take whole data sets, and check them on the host.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax import compilation, numerics
from vae_jax.latent_models import gmm_em, gmm_scales
from vae_jax.types import Batch, Params, PRNGKey, PyTree


def start(
    key: PRNGKey,
    x: Float[Array, "N D"],
    *,
    num_components: int,
    covariance: str = "full",
    min_variance: float = 1e-6,
    weight: Float[Array, " N"] | None = None,
) -> Params:
    """Means from k-means++, shares of the nearest mean, one covariance for all.

    Arthur & Vassilvitskii 2007 (k-means++: the advantages of careful seeding): each
    mean is a row drawn with probability proportional to its weight and its squared
    distance to the nearest mean before it. The covariance is that of rows about their
    nearest mean, of eigenvalues at least min_variance. A missing entry (NaN) counts as
    its feature's mean. May be traced and vmapped over keys, and then checks no values:
    `check_data` does.

    Raises:
        ValueError: for fewer rows than components, a num_components below one, an
            unknown covariance or a min_variance that is not positive.
    """
    gmm_scales.check(covariance)
    gmm_em.check_variances(min_variance=min_variance, added_variance=0.0)
    _check_size(x, num_components)
    weight = jnp.ones(x.shape[:1], x.dtype) if weight is None else weight
    x = _filled(x, weight)
    # In units in which squares do not overflow; a power of two, so that the means are
    # rows to the last digit.
    unit = gmm_scales.magnitude(x)
    x = x / unit
    mean = _plus_plus(key, x, weight, num_components)
    nearest = jnp.argmin(_squared_distances(x, mean), axis=1)
    one_hot = weight[:, None] * jax.nn.one_hot(nearest, num_components, dtype=x.dtype)
    scale = gmm_scales.unit(mean, covariance=covariance)
    kind = gmm_scales.kind(scale)
    # About one mean, that of every row's own: the covariances of a single component.
    single = scale[:1]
    eps = (x - mean[nearest]).T[None]
    second = kind.second_moments(single, weight[None], eps) / weight.sum()
    least_std = gmm_scales.least_std(
        single,
        jnp.ones((1,), x.dtype),
        jnp.zeros_like(mean[:1]),
        min_std=math.sqrt(min_variance) / unit,
    )
    pooled, _ = kind.rescale(
        single, second, second, least_std=least_std, added_variance=0.0
    )
    # A mean that no row is nearest to starts with the share of one.
    one_row = jnp.minimum(1.0, weight.mean())
    logits = jnp.log(jnp.maximum(one_hot.sum(0), one_row) / weight.sum())
    scale = jnp.broadcast_to(kind.enlarge(pooled, unit), scale.shape)
    mixture = gmm_scales.Tables(jax.nn.log_softmax(logits), unit * mean, scale)
    return Params(gmm_scales.parameters(mixture, covariance=covariance), ())


def fit(
    key: PRNGKey,
    x: Float[Array, "N D"],
    *,
    num_components: int,
    run: Callable[[PRNGKey, Params, Batch], Any],
    num_starts: int = 1,
    covariance: str = "full",
    min_variance: float = 1e-6,
    weight: Float[Array, " N"] | None = None,
    missing: bool = False,
) -> PyTree:
    """Runs from num_starts starts side by side; what `run` gives of the best one.

    The best has the greatest info.log_p, of its last step. Runs under `vmap` take as
    many steps as the slowest, and hold the intermediate arrays of all.

    Args:
        key: for the starts and the runs.
        x: the data, NaN at missing entries.
        num_components: K.
        run: for example `loop.until_converged(gmm.em(), value=lambda info: info.log_p,
            tolerance=1e-6, max_steps=500)`, with the floor and `missing` as here. It
            gives a record with `state` and `info`.
        num_starts: how many.
        covariance: its type.
        min_variance: as in `start`.
        weight: of each row; ones where none is given.
        missing: whether NaN may stand in x.

    Raises:
        ValueError: as `start` and `check_data`, or if num_starts is below one.
    """
    numerics.check_positive(num_starts=num_starts)
    check_data(x, num_components=num_components, missing=missing, weight=weight)
    weight = jnp.ones(x.shape[:1], x.dtype) if weight is None else weight
    batch = Batch(x, jnp.arange(x.shape[0]), weight)

    @compilation.program
    @jax.vmap
    def from_start(key: PRNGKey) -> PyTree:
        key_start, key_run = jax.random.split(key)
        params = start(
            key_start,
            x,
            num_components=num_components,
            covariance=covariance,
            min_variance=min_variance,
            weight=weight,
        )
        return run(key_run, params, batch)

    runs = from_start(jax.random.split(key, num_starts))
    best = jnp.argmax(runs.info.log_p)
    return jax.tree.map(lambda leaf: leaf[best], runs)


def check_data(
    x: Float[Array, "N D"],
    *,
    num_components: int,
    missing: bool = False,
    weight: Float[Array, " N"] | None = None,
) -> None:
    """Refuses data that no mixture can be fitted to; reads the values.

    Raises:
        ValueError: for fewer rows than components, an infinite value, NaN where it does
            not stand for missing, a feature with no value at all, or weights that are
            negative, not finite, or of fewer rows than components.
    """
    _check_size(x, num_components)
    values = np.asarray(x)
    if np.isinf(values).any():
        raise ValueError(f"x has {np.isinf(values).sum()} infinite values")
    absent = np.isnan(values)
    if absent.any() and not missing:
        raise ValueError(
            f"x has NaN in {absent.any(1).sum()} rows; pass missing=True to integrate "
            "over missing entries"
        )
    if absent.all(0).any():
        raise ValueError(
            f"x has no value of features {np.flatnonzero(absent.all(0)).tolist()}"
        )
    if weight is None:
        return
    weights = np.asarray(weight)
    if weights.shape != values.shape[:1] or not np.isfinite(weights).all():
        raise ValueError(f"weight must be finite, one for each of {len(values)} rows")
    if (weights < 0.0).any() or (weights > 0.0).sum() < num_components:
        raise ValueError(
            f"weight must not be negative, and positive in at least {num_components} "
            "rows, one for each component"
        )


def _check_size(x: Float[Array, "N D"], num_components: int) -> None:
    if x.ndim != 2:
        raise ValueError(f"x must be [N, D], got {x.shape}")
    numerics.check_positive(num_components=num_components)
    if x.shape[0] < num_components:
        raise ValueError(
            f"x has {x.shape[0]} rows, fewer than num_components={num_components}"
        )


def _filled(x: Float[Array, "N D"], weight: Float[Array, " N"]) -> Float[Array, "N D"]:
    """x with the weighted mean of each feature in place of NaN."""
    present = ~jnp.isnan(x)
    share = jnp.where(present, weight[:, None], 0.0)
    total = jnp.where(present, share * x, 0.0).sum(0)
    mean = total / jnp.maximum(share.sum(0), jnp.finfo(x.dtype).tiny)
    return jnp.where(present, x, mean[None])


def _plus_plus(
    key: PRNGKey, x: Float[Array, "N D"], weight: Float[Array, " N"], num: int
) -> Float[Array, "K D"]:
    """Rows of x, spread out; a row again where every row is among them already."""
    key_first, key_rest = jax.random.split(key)
    first = x[jax.random.categorical(key_first, jnp.log(weight))]
    nearest = _squared_distances(x, first[None])[:, 0]
    means = jnp.zeros((num, x.shape[1]), x.dtype).at[0].set(first)
    if num == 1:
        return means

    def add(carry: tuple[Array, Array], i: Array) -> tuple[tuple, None]:
        means, nearest = carry
        key = jax.random.fold_in(key_rest, i)
        odds = weight * nearest
        odds = jnp.where(odds.sum() > 0.0, odds, weight)
        chosen = x[jax.random.categorical(key, jnp.log(odds))]
        distance = _squared_distances(x, chosen[None])[:, 0]
        return (means.at[i].set(chosen), jnp.minimum(nearest, distance)), None

    return numerics.scan(add, (means, nearest), jnp.arange(1, num))[0][0]


def _squared_distances(
    x: Float[Array, "N D"], means: Float[Array, "K D"]
) -> Float[Array, "N K"]:
    """As differences, one mean at a time: expanded squares cancel in float32."""
    return jax.lax.map(lambda mean: ((x - mean[None]) ** 2).sum(1), means).T
