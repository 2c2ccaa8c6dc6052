"""The parts of a training step, each timed alone on the step's own shapes.

Every function builds another that returns the seconds of one step's share. A compiled
scan repeats the part, its outputs carried into the next repeat, so that nothing is
hoisted out, fused away or left unwritten.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark import ours, rounds
from experiments.benchmark.contenders import LEARNING_RATE, Problem
from experiments.runs import runs
from vae_jax import likelihoods
from vae_jax.data import batches
from vae_jax.training import gradient, loop
from vae_jax.types import PRNGKey, PyTree

REPEATS = 200

Timed = Callable[[], float]
"""Returns the seconds of one step's share."""

Product = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Shapes of the operands, and their contracted axes."""


def products(problem: Problem) -> list[Product]:
    """Operands of each matrix product of one step, forward and backward."""
    m, shapes = problem.flags.batch_size, []
    for layers in (problem.start.encoder, problem.start.decoder):
        shapes += [(m, *layer.kernel.shape) for layer in layers]
        m *= problem.flags.num_samples  # rows that are decoded
    listed: list[Product] = [((b, i), (i, o), (1, 0)) for b, i, o in shapes]
    listed += [((b, i), (b, o), (0, 0)) for b, i, o in shapes]  # for the weights
    # For the inputs; x itself needs none.
    return listed + [((b, o), (i, o), (1, 1)) for b, i, o in shapes[1:]]


def flops(problem: Problem) -> int:
    """Floating-point operations of the products of one step."""
    return sum(
        2 * left[0] * left[1] * right[1 - axes[1]]
        for left, right, axes in products(problem)
    )


def matrix_product(left: tuple, right: tuple, axes: tuple[int, int]) -> Timed:
    """One product of that kind."""
    key_left, key_right = jax.random.split(jax.random.key(1))
    a, b = jax.random.normal(key_left, left), jax.random.normal(key_right, right)

    def part(a: jax.Array, b: jax.Array) -> jax.Array:
        c = jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())))
        # One entry changes in place, so that no product is hoisted or reused.
        return a.at[0, 0].set(1e-6 * c[0, 0])

    return _repeated(part, a, b)


def all_products(problem: Problem) -> Timed:
    """The products of one step, in sum."""
    singles = [matrix_product(*shape) for shape in products(problem)]
    return lambda: sum(single() for single in singles)


def adam(problem: Problem) -> Timed:
    """The optimizer's update of the weights: memory traffic, hardly any arithmetic.

    Gradient, two moments and the weights are read and three of them written, in all 28
    bytes a weight.
    """
    optimizer = gradient.adam(LEARNING_RATE)
    params = jax.tree.map(jnp.asarray, problem.start)
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-3), params)

    def part(carried: PyTree, grads: PyTree) -> PyTree:
        params, state = carried
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return _repeated(part, (params, optimizer.init(params)), grads)


def random_numbers(problem: Problem) -> Timed:
    """A key for each example and its noise eps."""
    m, k = problem.flags.batch_size, problem.flags.num_samples
    shape = (k, problem.flags.num_latents)[k == 1 :]

    def part(carried: tuple[PRNGKey, jax.Array], _: None) -> tuple:
        key, total = carried
        key, key_step = jax.random.split(key)
        draw = partial(jax.random.normal, shape=shape)
        return key, total * 0.5 + jax.vmap(draw)(jax.random.split(key_step, m))

    return _repeated(part, (jax.random.key(3), jnp.zeros((m, *shape))), None)


def batch(problem: Problem) -> Timed:
    """Gathering rows, making floats of bytes, and drawing pixels where that is done."""
    take = ours.built(problem).data.prepared.take
    data, order = jnp.asarray(problem.train), _order(problem)

    def part(carried: tuple, rows: tuple) -> tuple:
        step, _ = carried
        data, order = rows
        key = jax.random.fold_in(jax.random.key(5), step)
        return step + 1, take(key, data, order[step % len(order)]).x

    start = jnp.zeros((), jnp.int32), jnp.zeros((order.shape[1], *data.shape[1:]))
    return _repeated(part, start, (data, order))


def elementwise(problem: Problem) -> Timed:
    """All between the products: biases, tanh, z, the bound, and their derivatives."""
    generator = np.random.default_rng(6)
    m, k = problem.flags.batch_size, problem.flags.num_samples
    encoder, decoder = problem.start
    biases = [jnp.asarray(layer.bias) for layer in (*encoder, *decoder)]
    num_rows = [m] * len(encoder) + [m * k] * len(decoder)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(generator.normal(size=shape).astype(np.float32))

    # Of the products, before the bias.
    outputs = [normal(n, len(bias)) for n, bias in zip(num_rows, biases, strict=True)]
    eps, x = normal(k, m, problem.flags.num_latents), normal(m, len(biases[-1]))

    def between(outputs: list[jax.Array], biases: list[jax.Array]) -> list[jax.Array]:
        sums = [a + bias[None] for a, bias in zip(outputs, biases, strict=True)]
        of_encoder, of_decoder = sums[: len(encoder)], sums[len(encoder) :]
        mean, log_std = jnp.split(of_encoder[-1], 2, axis=-1)
        z = mean[None] + jnp.exp(log_std)[None] * eps
        kl = 0.5 * (mean**2 + jnp.expm1(2.0 * log_std) - 2.0 * log_std).sum()
        logits = of_decoder[-1].reshape(k, m, -1)
        bound = likelihoods.bernoulli_terms(logits, x[None]).sum() / k - kl
        return [*map(jnp.tanh, of_encoder[:-1] + of_decoder[:-1]), z, bound]

    def part(carried: tuple, constants: tuple) -> tuple:
        moved, *_ = carried
        outputs, biases, cotangents = constants
        made, pull = jax.vjp(between, moved, biases)
        of_outputs, of_biases = pull(cotangents)
        pairs = zip(of_outputs, outputs, strict=True)
        return [0.1 * c + output for c, output in pairs], of_biases, made

    made = between(outputs, biases)
    cotangents = [0.1 * jnp.ones_like(leaf) for leaf in made]
    return _repeated(part, (outputs, biases, made), (outputs, biases, cotangents))


def loop_alone(problem: Problem) -> Timed:
    """A pass that only counts: the dispatch, the loop and the keys of its steps."""
    run = ours.built(problem)
    idle = run.algorithm._replace(
        step=lambda key, state, batch: (state, jax.random.bits(key))
    )

    def nothing(key: PRNGKey, data: Any, index: Any) -> Any:
        del key, data
        return index  # a batch that the idle step does not read

    scan = loop.scan(idle, nothing)
    return _passes(problem, run, scan, num_dispatches=1)


def one_a_dispatch(problem: Problem) -> Timed:
    """The whole step, each dispatched by itself: what the compiled scan saves."""
    run = ours.built(problem)
    return _passes(problem, run, runs.scan(run), num_dispatches=problem.num_steps)


PARTS = {  # in the order of the table
    "products": all_products,
    "element-wise": elementwise,
    "optimizer": adam,
    "batch": batch,
    "random numbers": random_numbers,
    "dispatch and loop": loop_alone,
}


def _passes(
    problem: Problem, run: runs.Run, scan: Any, *, num_dispatches: int
) -> Timed:
    data, state = jnp.asarray(problem.train), ours.started(run, problem)
    pieces = jnp.split(_order(problem), num_dispatches)

    def work() -> None:
        nonlocal state
        for order in pieces:
            state, _ = scan(state, data, order)
        jax.block_until_ready(state)

    return rounds.timed(work, problem.num_steps)


def _order(problem: Problem) -> jax.Array:
    size = problem.flags.batch_size
    return batches.order(jax.random.key(4), len(problem.train), batch_size=size)


def _repeated(
    part: Callable[[Any, Any], Any], start: PyTree, constants: PyTree
) -> Timed:
    """(carried, constants) -> carried, repeated in one program."""

    def repeat(carried: PyTree, constants: PyTree) -> PyTree:
        def step(carried: PyTree, _: None) -> tuple[PyTree, None]:
            return part(carried, constants), None

        return jax.lax.scan(step, carried, length=REPEATS)[0]

    compiled = jax.jit(repeat)

    def work() -> None:
        nonlocal start
        start = jax.block_until_ready(compiled(start, constants))

    return rounds.timed(work, REPEATS)
