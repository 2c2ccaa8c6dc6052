"""Tables of mixed columns: each has a family, and numbers that its training rows gave.

x is a row [D] in the table's own units: reals and counts as they are, 0 and 1, and one
of K levels as k / (K - 1) (`discretized`). NaN is a missing entry. p(x | h) is of these
units and q sees standardized ones (`likelihood`, `reading`), so that log p(x) does not
depend on how anything was scaled.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax import counts, discretized, likelihood_transforms, likelihoods
from vae_jax.types import Likelihood


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        family: one of `FAMILIES`.
        numbers: what `Family.fit` made of the training rows.
    """

    family: str
    numbers: tuple[float, ...]


class Family(NamedTuple):
    """What a column can be, of N columns with M numbers each.

    Attributes:
        kind: of values: "real", "positive", "count", or "level" of some number.
        fit: values, number of levels -> numbers.
        build: numbers [M, N], further settings -> the likelihood of [N] entries.
        read: x [N], numbers [M, N] -> what q sees, [N] or more.
    """

    kind: str
    fit: Callable[[np.ndarray, int], tuple[float, ...]]
    build: Callable[..., Likelihood]
    read: Callable[[Array, Array], Array]


def fit(family: str, values: Float[np.ndarray, " R"], *, num_levels: int = 0) -> Column:
    """A column of a family, with the numbers of its training rows, NaN left out.

    Args:
        family: one of `FAMILIES`.
        values: of the training rows.
        num_levels: K of a column of levels.

    Raises:
        ValueError: if the values tell nothing of a scale: none is there, or all equal;
            if a number of the fit is not finite.
    """
    there = np.asarray(values, np.float64)
    there = there[~np.isnan(there)]
    if not there.size or there.min() == there.max():
        said = f"only {there[0]:g}" if there.size else "nothing"
        raise ValueError(f"its training rows hold {said}: leave it out")
    with np.errstate(all="ignore"):
        numbers = FAMILIES[family].fit(there, num_levels)
    if not np.all(np.isfinite(numbers)):
        raise ValueError(
            f"its training rows, {there.min():g} to {there.max():g}, have no finite "
            f"fit of {family}: choose another family"
        )
    return Column(family, numbers)


def likelihood(columns: Sequence[Column], **settings: Any) -> Likelihood:
    """p(x | h) of rows of a table, independent given h.

    At h = 0 a column is around its training rows: a normal has their mean and standard
    deviation, levels their shares, counts their mean, with a dispersion of 1 where they
    have one. A Student's t has their mean, and their standard deviation times
    1 + min_std as its scale; a log-normal the mean of their logarithms, and as its
    spread theirs plus min_std, which is in units of log x and not of that spread.

    Args:
        columns: of the table, in order.
        settings: keywords of the families' builders: min_std, degrees, dispersion; and
            log_size, of the counts.

    Raises:
        ValueError: as `likelihood_transforms.columns` and the families' builders.
    """
    parts = []
    for family, numbers, places in _groups(columns):
        parts.append((FAMILIES[family].build(numbers, **settings), places))
    return likelihood_transforms.columns(parts)


def reading(columns: Sequence[Column]) -> Callable[[Array], Array]:
    """A row [D] -> what q sees of it [F], standardized, and zeros for what is missing.

    Reals less their mean in units of their standard deviation, so too the logarithms of
    positive numbers and of counts (and one); a level as zeros and a one, less the
    shares of the levels.
    """
    groups = list(_groups(columns))

    def read(x: Float[Array, " D"]) -> Float[Array, " F"]:
        features = []
        for family, numbers, places in groups:
            of_group = jnp.asarray(numbers, x.dtype)
            seen = FAMILIES[family].read(x[np.asarray(places)], of_group).ravel()
            features.append(jnp.where(jnp.isnan(seen), 0.0, seen))
        return jnp.concatenate(features)

    return read


def log1p_reading(x: Array) -> Array:
    """Counts as q sees them: log(1 + x), and zero for what is missing."""
    return jnp.where(jnp.isnan(x), 0.0, jnp.log1p(x))


def num_features(columns: Sequence[Column]) -> int:
    """F of `reading`."""
    wide = ("categorical", "ordinal")
    return sum(len(c.numbers) if c.family in wide else 1 for c in columns)


def _groups(
    columns: Sequence[Column],
) -> list[tuple[str, Float[np.ndarray, "M N"], tuple[int, ...]]]:
    """Columns of one family and as many numbers: those numbers, and the places."""
    places: dict[tuple[str, int], list[int]] = {}
    for place, column in enumerate(columns):
        places.setdefault((column.family, len(column.numbers)), []).append(place)
    return [
        (family, np.array([columns[i].numbers for i in at]).T, tuple(at))
        for (family, _), at in places.items()
    ]


def _center_and_scale(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std())


def _standardized(x: Array, numbers: Array) -> Array:
    return (x - numbers[0]) / numbers[1]


def _of_reals(
    build: Callable[..., Likelihood], **named: str
) -> Callable[..., Likelihood]:
    """A density of standardized values, in the table's units."""

    def in_units(numbers: np.ndarray, **settings: Any) -> Likelihood:
        center, scale = numbers
        keywords = {keyword: settings[name] for keyword, name in named.items()}
        observed = build(center.shape, **keywords)
        return likelihood_transforms.rescaled(observed, center=center, scale=scale)

    return in_units


def _normal(x_shape: tuple[int, ...], *, min_std: float) -> Likelihood:
    start = max(1.0, min_std)
    return likelihoods.normal_learned_std(
        x_shape, initial_std=start, min_std=min_std, shared=False
    )


def _log_normal(numbers: np.ndarray, **settings: Any) -> Likelihood:
    center, scale = numbers
    observed = likelihoods.log_normal(center.shape, min_std=settings["min_std"])
    return likelihood_transforms.around(
        observed, np.concatenate([center, np.log(scale)])
    )


def _of_counts(name: str, *, counted: float = 1.0) -> Family:
    """Around each column's mean, the last of its numbers.

    Args:
        name: of the builder in `counts`.
        counted: share of the entries, at h = 0, that are not 0 for certain.
    """

    def fit(values: np.ndarray, num_levels: int) -> tuple[float, ...]:
        del num_levels
        return (*_center_and_scale(np.log1p(values)), float(values.mean()))

    def build(numbers: np.ndarray, **settings: Any) -> Likelihood:
        means = numbers[2]
        kinds = ("log_size",) if name == "poisson" else ("log_size", "dispersion")
        read = {kind: settings[kind] for kind in kinds if kind in settings}
        observed = getattr(counts, name)(means.shape, **read)
        rest = np.zeros(observed.width - means.size)
        return likelihood_transforms.around(
            observed, np.concatenate([np.log(means / counted), rest])
        )

    return Family(
        "count", fit, build, lambda x, numbers: _standardized(jnp.log1p(x), numbers)
    )


def _shares(values: np.ndarray, num_levels: int) -> tuple[float, ...]:
    """Of each level, as if each had been seen half a time more."""
    k = np.round(values * (num_levels - 1)).astype(int)
    seen = np.bincount(k, minlength=num_levels) + 0.5
    return tuple((seen / seen.sum()).tolist())


def _bits(numbers: np.ndarray, **settings: Any) -> Likelihood:
    del settings
    logits = np.log(numbers[1]) - np.log(numbers[0])
    return likelihood_transforms.around(likelihoods.bernoulli(logits.shape), logits)


def _categories(numbers: np.ndarray, **settings: Any) -> Likelihood:
    del settings
    num_values, *x_shape = numbers.shape
    observed = discretized.categorical(tuple(x_shape), num_values=num_values)
    return likelihood_transforms.around(observed, np.log(numbers).ravel())


def _ordered(numbers: np.ndarray, **settings: Any) -> Likelihood:
    del settings
    num_values, *x_shape = numbers.shape
    return discretized.ordinal(tuple(x_shape), num_values=num_values, shares=numbers)


def _one_hot(x: Array, numbers: Array) -> Array:
    """Zeros and a one [K, N], less the shares."""
    num_values = numbers.shape[0]
    levels = jnp.arange(num_values, dtype=x.dtype)[:, None]
    ones = (jnp.round(x * (num_values - 1))[None] == levels).astype(x.dtype)
    return jnp.where(jnp.isnan(x)[None], 0.0, ones - numbers)


FAMILIES: Mapping[str, Family] = {
    "normal": Family(
        "real",
        lambda values, num_levels: _center_and_scale(values),
        _of_reals(_normal, min_std="min_std"),
        _standardized,
    ),
    "student_t": Family(
        "real",
        lambda values, num_levels: _center_and_scale(values),
        _of_reals(likelihoods.student_t, min_scale="min_std", degrees="degrees"),
        _standardized,
    ),
    "log_normal": Family(
        "positive",
        lambda values, num_levels: _center_and_scale(np.log(values)),
        _log_normal,
        lambda x, numbers: _standardized(jnp.log(x), numbers),
    ),
    "poisson": _of_counts("poisson"),
    "negative_binomial": _of_counts("negative_binomial"),
    "zero_inflated_negative_binomial": _of_counts(
        "zero_inflated_negative_binomial", counted=0.5
    ),
    "bernoulli": Family("level", _shares, _bits, lambda x, numbers: x - numbers[1]),
    "categorical": Family("level", _shares, _categories, _one_hot),
    "ordinal": Family("level", _shares, _ordered, _one_hot),
}
