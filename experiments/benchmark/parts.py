"""The parts of a training step, each timed alone on the step's own shapes.

Every function builds another that returns the seconds of one step's share. A compiled
scan repeats the part, its outputs carried into the next repeat, so that nothing is
hoisted out, fused away or left unwritten.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark import ours
from experiments.benchmark.contenders import Problem
from vae_jax import likelihoods
from vae_jax.data import batches
from vae_jax.training import gradient, loop
from vae_jax.types import PRNGKey, PyTree

REPEATS = 200

Product = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Shapes of the operands, and their contracted axes."""


def products(problem: Problem) -> list[Product]:
    """Operands of each matrix product of one step, forward and backward."""
    m, shapes = problem.batch_size, []
    for layers in (problem.start.encoder, problem.start.decoder):
        shapes += [(m, *layer.kernel.shape) for layer in layers]
        m *= problem.num_samples  # rows that are decoded
    listed: list[Product] = [((b, i), (i, o), (1, 0)) for b, i, o in shapes]
    listed += [((b, i), (b, o), (0, 0)) for b, i, o in shapes]  # for the weights
    # For the inputs; x itself needs none.
    return listed + [((b, o), (i, o), (1, 1)) for b, i, o in shapes[1:]]


def flops(left: tuple, right: tuple, axes: tuple[int, int]) -> int:
    """Floating-point operations of one product."""
    return 2 * left[0] * left[1] * right[1 - axes[1]]


def matrix_product(
    left: tuple, right: tuple, axes: tuple[int, int]
) -> Callable[[], float]:
    """A function that returns the seconds of one product of that kind."""
    key_left, key_right = jax.random.split(jax.random.key(1))
    a, b = jax.random.normal(key_left, left), jax.random.normal(key_right, right)

    def part(a: jax.Array, b: jax.Array) -> jax.Array:
        c = jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())))
        # One entry changes in place, so that no product is hoisted or reused.
        return a.at[0, 0].set(1e-6 * c[0, 0])

    return _repeated(part, a, b)


def all_products(problem: Problem) -> Callable[[], float]:
    """The seconds of one step's products in sum."""
    singles = [matrix_product(*shape) for shape in products(problem)]
    return lambda: sum(single() for single in singles)


def adam(problem: Problem) -> Callable[[], float]:
    """The optimizer's update of the weights: memory traffic, hardly any arithmetic.

    Gradient, two moments and the weights are read and three of them written, in all 28
    bytes a weight.
    """
    optimizer = gradient.adam(problem.learning_rate)
    params = jax.tree.map(jnp.asarray, problem.start)
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-3), params)

    def part(carried: PyTree, grads: PyTree) -> PyTree:
        params, state = carried
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return _repeated(part, (params, optimizer.init(params)), grads)


def random_numbers(problem: Problem) -> Callable[[], float]:
    """A key for each example and its noise eps."""
    m, k = problem.batch_size, problem.num_samples
    shape = (problem.num_latents,) if k == 1 else (k, problem.num_latents)

    def part(carried: tuple[PRNGKey, jax.Array], _: None) -> tuple:
        key, total = carried
        key, key_step = jax.random.split(key)
        draw = partial(jax.random.normal, shape=shape)
        return key, total * 0.5 + jax.vmap(draw)(jax.random.split(key_step, m))

    return _repeated(part, (jax.random.key(3), jnp.zeros((m, *shape))), None)


def batch(problem: Problem) -> Callable[[], float]:
    """Gathering rows, making floats of bytes, and drawing pixels where that is done."""
    take, size = ours.take(problem), problem.batch_size
    data = jnp.asarray(problem.train)
    order = batches.order(jax.random.key(4), len(data), batch_size=size)

    def part(carried: tuple, given: tuple) -> tuple:
        step, _ = carried
        data, order = given
        key = jax.random.fold_in(jax.random.key(5), step)
        return step + 1, take(key, data, order[step % len(order)]).x

    start = jnp.zeros((), jnp.int32), jnp.zeros((size, *data.shape[1:]))
    return _repeated(part, start, (data, order))


def elementwise(problem: Problem) -> Callable[[], float]:
    """All between the products: biases, tanh, z, the bound, and their derivatives."""
    generator = np.random.default_rng(6)
    m, k = problem.batch_size, problem.num_samples

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(generator.normal(size=shape).astype(np.float32))

    start = problem.start
    sizes = [(m, len(layer.bias)) for layer in start.encoder]
    sizes += [(m * k, len(layer.bias)) for layer in start.decoder]
    last_of_encoder = len(start.encoder) - 1
    outputs = [normal(*size) for size in sizes]  # of the products, before the bias
    biases = [jnp.asarray(layer.bias) for layer in (*start.encoder, *start.decoder)]
    eps, x = normal(k, m, problem.num_latents), normal(m, sizes[-1][1])

    def between(outputs: list[jax.Array], biases: list[jax.Array]) -> list[jax.Array]:
        given = [a + bias[None] for a, bias in zip(outputs, biases, strict=True)]
        made = [jnp.tanh(a) for a in given[:last_of_encoder]]
        mean, log_std = jnp.split(given[last_of_encoder], 2, axis=-1)
        made.append(mean[None] + jnp.exp(log_std)[None] * eps)
        made += [jnp.tanh(a) for a in given[last_of_encoder + 1 : -1]]
        kl = 0.5 * (mean**2 + jnp.expm1(2.0 * log_std) - 2.0 * log_std).sum()
        logits = given[-1].reshape(k, m, -1)
        terms = likelihoods.bernoulli_terms(logits, x[None])
        return [*made, terms.sum() / k - kl]

    def part(carried: tuple, given: tuple) -> tuple:
        moved, *_ = carried
        outputs, biases, cotangents = given
        made, pull = jax.vjp(between, moved, biases)
        of_outputs, of_biases = pull(cotangents)
        again = [
            0.1 * c + output for c, output in zip(of_outputs, outputs, strict=True)
        ]
        return again, of_biases, made

    made = between(outputs, biases)
    cotangents = [0.1 * jnp.ones_like(leaf) for leaf in made]
    return _repeated(part, (outputs, biases, made), (outputs, biases, cotangents))


def loop_alone(problem: Problem) -> Callable[[], float]:
    """A pass that only counts: the dispatch, the loop and the keys of its steps."""
    model, fit = ours.built(problem)
    idle = fit._replace(step=lambda key, state, batch: (state, jax.random.bits(key)))
    return _passes(problem, loop.start(*_started(problem, model, fit)), idle)


def one_a_dispatch(problem: Problem) -> Callable[[], float]:
    """The whole step, each dispatched by itself: what the compiled scan saves."""
    model, fit = ours.built(problem)
    scan = loop.scan(fit, ours.take(problem))
    data = jnp.asarray(problem.train)
    size = problem.batch_size
    order = batches.order(jax.random.key(4), len(data), batch_size=size)
    rows = [order[i : i + 1] for i in range(len(order))]
    state = [loop.start(*_started(problem, model, fit))]

    def run() -> float:
        started = time.perf_counter()
        for row in rows:
            state[0], _ = scan(state[0], data, row)
        jax.block_until_ready(state[0])
        return (time.perf_counter() - started) / len(rows)

    return run


def _started(problem: Problem, model: Any, fit: Any) -> tuple:
    return jax.random.key(0), fit, ours.params(model, problem.start)


def _passes(problem: Problem, state: Any, fit: Any) -> Callable[[], float]:
    def nothing(key: PRNGKey, data: jax.Array, index: jax.Array) -> Any:
        del key, data
        return index

    scan = loop.scan(fit, nothing)
    data = jnp.asarray(problem.train)
    size = problem.batch_size
    order = batches.order(jax.random.key(4), len(data), batch_size=size)
    held = [state]

    def run() -> float:
        started = time.perf_counter()
        held[0], info = scan(held[0], data, order)
        jax.block_until_ready((held[0], info))
        return (time.perf_counter() - started) / len(order)

    return run


def _repeated(
    part: Callable[[Any, Any], Any], start: PyTree, given: PyTree
) -> Callable[[], float]:
    """(carried, given) -> carried, repeated in one program; the seconds of one."""

    def repeat(carried: PyTree, given: PyTree) -> PyTree:
        def step(carried: PyTree, _: None) -> tuple[PyTree, None]:
            return part(carried, given), None

        return jax.lax.scan(step, carried, length=REPEATS)[0]

    compiled, held = jax.jit(repeat), [start]

    def run() -> float:
        started = time.perf_counter()
        held[0] = jax.block_until_ready(compiled(held[0], given))
        return (time.perf_counter() - started) / REPEATS

    return run
