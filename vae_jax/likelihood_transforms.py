"""Likelihoods made of others: rescaled, of an h that starts elsewhere, side by side."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vae_jax import likelihoods, numerics
from vae_jax.types import Likelihood, PRNGKey, PyTree


def rescaled(observed: Likelihood, *, center: Any, scale: Any) -> Likelihood:
    r"""The density of x = center + scale y, for y of another likelihood.

    $\log p(x) = \log p(y) - \log s$ for each entry: in the units of x, so that no
    choice of scale makes it larger.

    Args:
        observed: p(y | h), a density that factorizes over the entries of y.
        center: of each entry, or of all.
        scale: likewise.

    Raises:
        ValueError: if a scale is not positive and finite; from `quantity`, if what
            is rescaled is no density.
    """
    scales = np.asarray(scale, np.float64)
    numerics.check_in("(0, inf)", scale=scales)
    centers = np.asarray(center, np.float64)

    def forward(y: Array) -> Array:
        return jnp.asarray(centers, y.dtype) + jnp.asarray(scales, y.dtype) * y

    def log_prob_terms(params: PyTree, h: Array, x: Array) -> Array:
        y = (x - jnp.asarray(centers, x.dtype)) / jnp.asarray(scales, x.dtype)
        log_scale = jnp.asarray(np.log(scales), x.dtype)
        return observed.log_prob_terms(params, h, y) - log_scale

    def quantity(x: np.ndarray) -> str:
        of_y = observed.quantity((np.asarray(x) - centers) / scales)
        if of_y != "log-density":
            raise ValueError(f"a {of_y} has no scale: only a log-density is rescaled")
        return of_y

    return observed._replace(
        sample=lambda key, params, h: forward(observed.sample(key, params, h)),
        mean=lambda params, h: forward(observed.mean(params, h)),
        log_prob_terms=log_prob_terms,
        quantity=quantity,
    )


def around(observed: Likelihood, start: Any) -> Likelihood:
    """The same p(x | start + h): a decoder that gives zeros is at `start`, [H]."""
    shift = np.asarray(start, np.float64)
    if shift.shape != (observed.width,):
        raise ValueError(
            f"start must have the {observed.width} entries of h, got {shift.shape}"
        )

    def moved(h: Array) -> Array:
        return h + jnp.asarray(shift, h.dtype)

    return observed._replace(
        sample=lambda key, params, h: observed.sample(key, params, moved(h)),
        mean=lambda params, h: observed.mean(params, moved(h)),
        log_prob_terms=lambda params, h, x: observed.log_prob_terms(
            params, moved(h), x
        ),
    )


def columns(parts: Sequence[tuple[Likelihood, Sequence[int]]]) -> Likelihood:
    """Rows [D] of a table whose columns, independent given h, have their own families.

    h is the parts' own, one behind the other; a part of several columns is one family's
    in one array. Nazábal et al. 2020 (arXiv:1807.03653) train on such rows with holes,
    as `vae.masked` does.

    Args:
        parts: a likelihood of [N] entries, and the N columns that they are of. Every
            column from 0 on belongs to one.

    Raises:
        ValueError: unless it does; when traced, if the terms of a part are not one for
            each of its columns.

    Examples:
        >>> normal = likelihoods.normal((2,), std=1.0)
        >>> bit = likelihoods.bernoulli((1,))
        >>> table = columns([(normal, (0, 2)), (bit, (1,))])
        >>> h = jnp.zeros(table.width)
        >>> table.log_prob_terms(table.init(jax.random.key(0)), h, jnp.zeros(3)).shape
        (3,)
    """
    places = [np.asarray(of_part, int) for _, of_part in parts]
    order = np.concatenate([*places, np.zeros(0, int)])
    if not order.size or sorted(order) != list(range(order.size)):
        raise ValueError(
            f"parts must have every column from 0 on once, got {order.tolist()}"
        )
    families = [observed for observed, _ in parts]
    cuts = np.cumsum([observed.width for observed in families])[:-1]
    back = np.argsort(order)

    def gathered(results: Sequence[Array]) -> Array:
        return jnp.concatenate(results)[back]

    def each(params: PyTree, h: Array) -> list[tuple[Likelihood, PyTree, Array]]:
        return list(zip(families, params, jnp.split(h, cuts), strict=True))

    def init(key: PRNGKey) -> PyTree:
        keys = jax.random.split(key, len(families))
        return tuple(m.init(k) for m, k in zip(families, keys, strict=True))

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        keys = jax.random.split(key, len(families))
        parts = zip(keys, each(params, h), strict=True)
        return gathered([m.sample(k, theta, h) for k, (m, theta, h) in parts])

    def mean(params: PyTree, h: Array) -> Array:
        return gathered([m.mean(theta, h) for m, theta, h in each(params, h)])

    def log_prob_terms(params: PyTree, h: Array, x: Array) -> Array:
        pairs = zip(each(params, h), places, strict=True)
        terms = [m.log_prob_terms(theta, h, x[at]) for (m, theta, h), at in pairs]
        for of_part, at in zip(terms, places, strict=True):
            if of_part.shape != at.shape:
                raise ValueError(
                    f"a part of {at.size} columns has terms of {of_part.shape}: only "
                    "what factorizes over its columns can be one"
                )
        return gathered(terms)

    def quantity(x: np.ndarray) -> str:
        pairs = zip(families, places, strict=True)
        kinds = {m.quantity(np.asarray(x)[..., at]) for m, at in pairs}
        worst = ("cross-entropy", "log-density", "log-likelihood")
        return next(kind for kind in worst if kind in kinds)

    whole = likelihoods.likelihood(
        (order.size,),
        width=sum(observed.width for observed in families),
        init=init,
        sample=sample,
        mean=mean,
        log_prob_terms=log_prob_terms,
        quantity=lambda x: "",
    )
    return whole._replace(quantity=quantity)
