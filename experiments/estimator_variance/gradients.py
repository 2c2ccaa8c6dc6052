"""Moments, bias and cost of a gradient estimator at given parameters."""

import time
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vae_jax.training import gradient
from vae_jax.types import Objective, Params, PRNGKey, PyTree

TIMED_DRAWS = 30
Gradient: TypeAlias = Callable[[PRNGKey, Params], Params]
Mixture: TypeAlias = dict[str, float] | None  # reference gradients; None for none


class Moments(NamedTuple):
    """Mean and variance of gradients, leaf by leaf."""

    mean: Params
    variance: Params
    num_draws: int


def of_batch(objective: Objective, x: Array) -> Gradient:
    """(key, params) -> the gradient of the minibatch's mean."""
    return lambda key, params: jax.grad(gradient.over_batch(objective), argnums=1)(
        key, params, x
    )


def moments(
    key: PRNGKey, gradient_of: Gradient, params: Params, num_draws: int
) -> Moments:
    """Mean and variance of num_draws gradients, in one pass."""

    def draw(
        carry: tuple[Params, Params], row: tuple[Array, PRNGKey]
    ) -> tuple[tuple[Params, Params], None]:
        (mean, squares), (n, key) = carry, row
        got = gradient_of(key, params)
        step = jax.tree.map(lambda g, m: (g - m) / n, got, mean)
        new = jax.tree.map(jnp.add, mean, step)
        squares = jax.tree.map(
            lambda s, g, m, old: s + (g - m) * (g - old), squares, got, new, mean
        )
        return (new, squares), None

    @jax.jit
    def run(key: PRNGKey) -> tuple[Params, Params]:
        zeros = jax.tree.map(jnp.zeros_like, params)
        counts = jnp.arange(1.0, num_draws + 1.0)
        start = (zeros, jax.tree.map(jnp.copy, zeros))
        rows = (counts, jax.random.split(key, num_draws))
        return jax.lax.scan(draw, start, rows)[0]

    mean, squares = run(key)
    return Moments(
        mean, jax.tree.map(lambda s: s / (num_draws - 1), squares), num_draws
    )


def milliseconds(key: PRNGKey, gradient_of: Gradient, params: Params) -> float:
    """Of one gradient, inside a compiled scan; the median of five."""

    @jax.jit
    def run(key: PRNGKey) -> PyTree:
        def step(total: Params, key: PRNGKey) -> tuple[Params, None]:
            return jax.tree.map(jnp.add, total, gradient_of(key, params)), None

        keys = jax.random.split(key, TIMED_DRAWS)
        return jax.lax.scan(step, jax.tree.map(jnp.zeros_like, params), keys)[0]

    jax.block_until_ready(run(jax.random.clone(key)))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(run(jax.random.clone(key)))
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times)) / TIMED_DRAWS


def total(tree: PyTree) -> float:
    """The sum of all entries of all leaves."""
    leaves = jax.tree.leaves(tree)
    return sum(float(np.asarray(leaf, np.float64).sum()) for leaf in leaves)


def squared_distance(a: PyTree, b: PyTree) -> float:
    """The squared Euclidean distance of two trees."""
    return total(jax.tree.map(lambda a, b: (a - b) ** 2, a, b))


def compare(
    drawn: Moments, part: str, mixture: Mixture, known: dict[str, Moments]
) -> dict[str, float]:
    """Variance, signal-to-noise ratio and bias of one estimator in theta or phi."""
    mean, variance = getattr(drawn.mean, part), total(getattr(drawn.variance, part))
    signal = total(jax.tree.map(jnp.square, mean)) - variance / drawn.num_draws
    found = {"variance": variance, "snr": float(np.sqrt(max(0.0, signal) / variance))}
    if mixture is None:
        return found
    terms = [(w, known[name]) for name, w in mixture.items()]
    weighted = [
        jax.tree.map(lambda leaf, w=w: w * leaf, getattr(m.mean, part))
        for w, m in terms
    ]
    expected = jax.tree.map(lambda *leaves: sum(leaves), *weighted)
    noise = variance / drawn.num_draws + sum(
        w**2 * total(getattr(m.variance, part)) / m.num_draws for w, m in terms
    )
    size = np.sqrt(total(jax.tree.map(jnp.square, expected)))
    squared = squared_distance(mean, expected) - noise
    return found | {
        "bias": float(np.sqrt(max(0.0, squared)) / size),
        "noise_of_bias": float(np.sqrt(noise) / size),
    }
