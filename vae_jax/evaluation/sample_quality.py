r"""How samples of a model compare with data, by distances between rows alone.

No network judges: distances are Euclidean, in whatever space the rows are given, pixels
or codes. In pixels they see little of what an eye sees. Each number is to be read
beside the same one of fresh data in the place of the samples.

Rows are [N, D]. Squared distances are expanded into products, about the mean of the
rows they are taken to, at the "highest" precision: small distances of rows of size s
are good to some sqrt(1e-7) s in float32. Memory holds a batch of rows of distances.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vae_jax import compilation, numerics
from vae_jax.types import Scalar

_BATCH = 256  # rows of distances held at a time
_ROUNDING = 16.0  # of expanded squares, in units of eps and of their terms
_BANDWIDTH_ROWS = 500  # of data and of samples, whose distances are all held


class Nearest(NamedTuple):
    """The nearest of some other rows, for each row.

    Attributes:
        distance: to it.
        row: its place among the others.
    """

    distance: Float[Array, " N"]
    row: Int[Array, " N"]


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1].

    Attributes:
        precision: of the samples that lie among the data.
        recall: of the data that lie among the samples.
    """

    precision: Scalar
    recall: Scalar


class Comparison(NamedTuple):
    """Samples beside test rows, and fresh training rows beside the same test rows.

    Attributes:
        nearest_train_samples: median distance of a sample to its nearest training row.
        nearest_train_test: the same of test rows.
        share_closer: P(a sample is closer to the training rows than a test row).
        precision: share of samples among the test rows.
        recall: share of test rows among the samples.
        precision_of_train: of training rows in the samples' place.
        recall_of_train: likewise.
        bandwidth: of the kernel, the median distance of test rows and samples.
        mmd: squared, of samples and test rows; NaN where the bandwidth is zero.
        mmd_of_train: of training rows and test rows.
    """

    nearest_train_samples: float
    nearest_train_test: float
    share_closer: float
    precision: float
    recall: float
    precision_of_train: float
    recall_of_train: float
    bandwidth: float
    mmd: float
    mmd_of_train: float


def nearest(rows: Float[Array, "N D"], others: Float[Array, "M D"]) -> Nearest:
    """The nearest of `others` to each row; the distance itself is not expanded.

    Raises:
        ValueError: if the two are not rows of one length, or there are no others.
    """
    _check(rows, others)
    centered, others_centered = _centered(rows, others)

    def one(pair: tuple[Array, Array]) -> Nearest:
        row, row_centered = pair
        index = jnp.argmin(_squared_distances(row_centered, others_centered))
        return Nearest(jnp.linalg.norm(row - others[index]), index)

    return jax.lax.map(one, (rows, centered), batch_size=_BATCH)


def share_closer(
    distances: Float[Array, " N"], references: Float[Array, " M"]
) -> Scalar:
    r"""P(distance < reference) of a random pair, ties for half: Mann-Whitney's U / NM.

    With the distances of samples to their nearest training row, and of test rows to
    theirs as references, 1/2 is what fresh data would give. Well above it the samples
    lie closer to the training rows than data do, which is what copying looks like;
    below it they lie farther (Meehan et al. 2020, arXiv:2004.05675). By chance it is
    off 1/2 by some sqrt((N + M + 1) / (12 N M)).
    """
    ordered = jnp.sort(references)
    below = jnp.searchsorted(ordered, distances, side="left")
    within = jnp.searchsorted(ordered, distances, side="right")
    above = ordered.shape[0] - 0.5 * (below + within).astype(distances.dtype)
    return above.mean() / ordered.shape[0]


def precision_recall(
    data: Float[Array, "N D"], samples: Float[Array, "M D"], *, num_neighbors: int = 3
) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991).

    Rows stand for the union of balls around them, each as wide as the distance to its
    k-th nearest fellow. Precision is the share of samples inside the data's balls,
    recall the share of data inside the samples'. Both grow with the number of rows, so
    that numbers of other sizes do not compare; one outlier's ball covers much.

    Args:
        data: as many rows as samples, as the paper has it.
        samples: of the model.
        num_neighbors: k, 3 in the paper.

    Raises:
        ValueError: if the two are not rows of one length, or num_neighbors is below one
            or not below the number of either's rows.
    """
    _check(data, samples)
    for name, rows in (("data", data), ("samples", samples)):
        if not 1 <= num_neighbors < rows.shape[0]:
            raise ValueError(
                f"num_neighbors must be at least 1 and below the {rows.shape[0]} rows "
                f"of {name}, got {num_neighbors}"
            )
    return PrecisionRecall(
        _covered(samples, data, num_neighbors), _covered(data, samples, num_neighbors)
    )


def mmd(x: Float[Array, "N D"], y: Float[Array, "M D"], *, bandwidth: float) -> Scalar:
    r"""Unbiased estimate of MMD^2 for the kernel exp(-|x - y|^2 / (2 bandwidth^2)).

    $\frac{1}{N(N-1)}\sum_{i\ne j}k(x_i,x_j) + \frac{1}{M(M-1)}\sum_{i\ne j}k(y_i,y_j)
    - \frac{2}{NM}\sum_{ij}k(x_i,y_j)$: Gretton et al. 2012 (A kernel two-sample test,
    JMLR 13), equation 3. Zero in expectation for two sets of one distribution, and then
    negative half of the time.

    Args:
        x: rows of one distribution.
        y: rows of the other.
        bandwidth: such as `median_distance` of both; the same for numbers that are
            compared.

    Raises:
        ValueError: if the two are not rows of one length, either has fewer than two, or
            bandwidth is not positive.
    """
    _check(x, y)
    if min(x.shape[0], y.shape[0]) < 2:
        raise ValueError(
            f"mmd needs two rows or more of each, got {x.shape[0]} and {y.shape[0]}"
        )
    numerics.check_in("(0, inf)", bandwidth=bandwidth)
    rate = -0.5 / bandwidth**2

    def means(rows: Array, others: Array) -> Array:
        rows, others = _centered(rows, others)
        return jax.lax.map(
            lambda row: jnp.exp(rate * _squared_distances(row, others)).mean(),
            rows,
            batch_size=_BATCH,
        )

    def within(rows: Array) -> Scalar:
        num, places = rows.shape[0], jnp.arange(rows.shape[0])
        rows, _ = _centered(rows, rows)

        def one(pair: tuple[Array, Array]) -> Scalar:
            i, row = pair
            kernel = jnp.exp(rate * _squared_distances(row, rows))
            return jnp.where(places == i, 0.0, kernel).sum() / (num - 1)

        return jax.lax.map(one, (places, rows), batch_size=_BATCH).mean()

    return within(x) + within(y) - 2.0 * means(x, y).mean()


def median_distance(rows: Float[Array, "N D"]) -> Scalar:
    """The median distance of two different rows: the usual bandwidth of `mmd`.

    Holds all pairs at once: give it a thousand rows or so. Zero where more than half of
    the pairs are equal, which is no bandwidth.

    Raises:
        ValueError: for fewer than two rows.
    """
    num_rows = rows.shape[0]
    numerics.check_at_least(2, num_rows=num_rows, why=": a distance is of two")
    centered, _ = _centered(rows, rows)
    squared = jax.vmap(_squared_distances, (0, None))(centered, centered)
    lengths = (centered**2).sum(axis=1)
    rounding = _ROUNDING * jnp.finfo(rows.dtype).eps
    is_apart = squared > rounding * (lengths[:, None] + lengths[None])
    squared = jnp.where(is_apart, squared, 0.0)
    return jnp.sqrt(jnp.median(squared[jnp.triu_indices(num_rows, 1)]))


def compare(
    train: Float[Array, "L D"],
    test: Float[Array, "N D"],
    samples: Float[Array, "N D"],
    *,
    num_neighbors: int = 3,
) -> Comparison:
    """Every measure of this module, each beside that of data in the samples' place.

    Args:
        train: rows that the model was fitted to, in random order, N or more.
        test: rows that it was not fitted to, in random order.
        samples: draws of the model.
        num_neighbors: k of precision and recall.

    Raises:
        ValueError: as `precision_recall`.
    """
    fresh = train[: len(test)]
    of_samples, of_test = _nearest(samples, train), _nearest(test, train)
    judge = _judge(num_neighbors)
    judged, reference = judge(test, samples), judge(test, fresh)
    pooled = [test[:_BANDWIDTH_ROWS], samples[:_BANDWIDTH_ROWS]]
    bandwidth = float(median_distance(jnp.concatenate(pooled)))

    to_test = compilation.program(partial(mmd, bandwidth=bandwidth))
    mmds = [to_test(of, test) if bandwidth else jnp.nan for of in (samples, fresh)]

    return Comparison(
        nearest_train_samples=float(jnp.median(of_samples.distance)),
        nearest_train_test=float(jnp.median(of_test.distance)),
        share_closer=float(share_closer(of_samples.distance, of_test.distance)),
        precision=float(judged.precision),
        recall=float(judged.recall),
        precision_of_train=float(reference.precision),
        recall_of_train=float(reference.recall),
        bandwidth=bandwidth,
        mmd=float(mmds[0]),
        mmd_of_train=float(mmds[1]),
    )


_nearest = compilation.program(nearest)


@cache
def _judge(num_neighbors: int) -> Callable[[Array, Array], PrecisionRecall]:
    return compilation.program(partial(precision_recall, num_neighbors=num_neighbors))


def _check(rows: Array, others: Array) -> None:
    if rows.ndim != 2 or others.ndim != 2 or rows.shape[1] != others.shape[1]:
        raise ValueError(
            f"rows must be [N, D] and [M, D], got {rows.shape} and {others.shape}"
        )
    if not others.shape[0]:
        raise ValueError("there are no rows to measure distances to")


def _centered(rows: Array, others: Array) -> tuple[Array, Array]:
    """Both less the mean of the others: far from zero, squares cancel."""
    center = others.mean(axis=0, keepdims=True)
    return rows - center, others - center


def _squared_distances(row: Float[Array, " D"], others: Float[Array, "M D"]) -> Array:
    """[M], never negative."""
    product = jnp.matmul(others, row, precision="highest")
    return jnp.maximum((row**2).sum() + (others**2).sum(axis=1) - 2.0 * product, 0.0)


def _covered(rows: Array, others: Array, num_neighbors: int) -> Scalar:
    """The share of rows inside the balls of the others.

    Of bits and bytes many a row is as far away as the ball is wide: inside. Rounding
    would settle that by chance, so what it cannot tell from the edge is inside too.
    """
    rows, others = _centered(rows, others)
    places = jnp.arange(others.shape[0])
    lengths = (others**2).sum(axis=1)
    rounding = _ROUNDING * jnp.finfo(rows.dtype).eps

    def radius(pair: tuple[Array, Array]) -> Scalar:
        i, row = pair
        squared = jnp.where(places == i, jnp.inf, _squared_distances(row, others))
        return -jax.lax.top_k(-squared, num_neighbors)[0][-1]

    radii = jax.lax.map(radius, (places, others), batch_size=_BATCH)

    def is_inside(row: Array) -> Bool[Array, ""]:
        edges = radii + rounding * (lengths + (row**2).sum())
        return (_squared_distances(row, others) <= edges).any()

    inside = jax.lax.map(is_inside, rows, batch_size=_BATCH)
    return inside.mean(dtype=rows.dtype)
