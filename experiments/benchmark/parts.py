"""The parts of a training step, each timed alone on the step's own shapes.

Every function builds another that returns the seconds of one step's share. A compiled
scan repeats the part, its outputs carried into the next repeat, so that nothing is
hoisted out, fused away or left unwritten.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark import contenders, ours, rounds
from experiments.benchmark.contenders import LEARNING_RATE, Problem
from experiments.runs import runs
from vae_jax import compilation, convolutional, likelihoods
from vae_jax.data import batches
from vae_jax.training import gradient, loop
from vae_jax.types import PRNGKey, PyTree

REPEATS, CONVOLUTIONS = 200, 20  # of one program

Product = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Shapes of the operands, and their contracted axes."""


class Affine(NamedTuple):
    """A layer's products in one step: forward, for its weights, and for its input."""

    num_rows: int  # images that it is applied to
    place: contenders.Place
    is_first: bool  # x needs no derivative

    @property
    def is_map(self) -> bool:
        """Whether it is a convolution of more than one pixel."""
        return len(self.place.shape) == 4

    def products(self) -> list[Product]:
        """Of an affine map, the operands of each."""
        b, (i, o) = self.num_rows * math.prod(self.place.sides), self.place.shape
        listed: list[Product] = [((b, i), (i, o), (1, 0)), ((b, i), (b, o), (0, 0))]
        return listed if self.is_first else [*listed, ((b, o), (i, o), (1, 1))]


def layers(problem: Problem) -> list[Affine]:
    """Every layer of both networks."""
    encoder, decoder = problem.layout
    m, k = problem.flags.batch_size, problem.flags.num_samples
    return [
        *(Affine(m, place, i == 0) for i, place in enumerate(encoder)),
        *(Affine(m * k, place, False) for place in decoder),
    ]


def flops(problem: Problem) -> int:
    """Floating-point operations of the products of one step."""
    return sum(
        2
        * layer.num_rows
        * math.prod(layer.place.sides)
        * math.prod(layer.place.shape)
        * (2 if layer.is_first else 3)
        for layer in layers(problem)
    )


def matrix_product(left: tuple, right: tuple, axes: tuple[int, int]) -> rounds.Timed:
    """One product of that kind."""
    key_left, key_right = jax.random.split(jax.random.key(1))
    a, b = jax.random.normal(key_left, left), jax.random.normal(key_right, right)

    def part(a: jax.Array, b: jax.Array) -> jax.Array:
        c = jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())))
        # One entry changes in place, so that no product is hoisted or reused.
        return a.at[0, 0].set(1e-6 * c[0, 0])

    return _repeated(part, a, b)


def convolution(layer: Affine) -> rounds.Timed:
    """All three of one layer of maps."""
    key_x, key_kernel = jax.random.split(jax.random.key(2))
    shape = layer.num_rows, *layer.place.sides, layer.place.shape[2]
    x = jax.random.normal(key_x, shape)
    kernel = jax.random.normal(key_kernel, layer.place.shape)
    convolve = jax.vmap(convolutional.convolve, (None, 0))

    def part(x: jax.Array, kernel: jax.Array) -> jax.Array:
        y, pull = jax.vjp(convolve, kernel, x)
        to_kernel, to_x = pull(y)
        moved = to_kernel[0, 0, 0, 0] + (0.0 if layer.is_first else to_x[0, 0, 0, 0])
        return x.at[0, 0, 0, 0].set(1e-6 * moved)

    return _repeated(part, x, kernel, number=CONVOLUTIONS)


def all_products(problem: Problem) -> rounds.Timed:
    """The products of one step, in sum."""
    singles: list[rounds.Timed] = []
    for layer in layers(problem):
        if layer.is_map:
            singles.append(convolution(layer))
        else:
            singles += [matrix_product(*shape) for shape in layer.products()]
    return lambda: sum(single() for single in singles)


def adam(problem: Problem) -> rounds.Timed:
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


def random_numbers(problem: Problem) -> rounds.Timed:
    """A key for each example and its noise eps."""
    m, k = problem.flags.batch_size, problem.flags.num_samples
    shape = (k, problem.flags.num_latents)[k == 1 :]

    def part(carried: tuple[PRNGKey, jax.Array], _: None) -> tuple:
        key, total = carried
        key, key_step = jax.random.split(key)
        draw = partial(jax.random.normal, shape=shape)
        return key, total * 0.5 + jax.vmap(draw)(jax.random.split(key_step, m))

    return _repeated(part, (jax.random.key(3), jnp.zeros((m, *shape))), None)


def batch(problem: Problem) -> rounds.Timed:
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


def elementwise(problem: Problem) -> rounds.Timed:
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


def loop_alone(problem: Problem) -> rounds.Timed:
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


def one_a_dispatch(problem: Problem) -> rounds.Timed:
    """The whole step, each dispatched by itself: what the compiled scan saves."""
    run = ours.built(problem)
    return _passes(problem, run, runs.scan(run), num_dispatches=problem.num_steps)


OF_PERCEPTRONS = {"element-wise"}
PARTS = {  # in the order of the table
    "products": all_products,
    "element-wise": elementwise,
    "optimizer": adam,
    "batch": batch,
    "random numbers": random_numbers,
    "dispatch and loop": loop_alone,
}


def of_network(network: str) -> list[str]:
    """The parts that are timed of a kind of network; the rest holds what is not."""
    return [n for n in PARTS if network == "mlp" or n not in OF_PERCEPTRONS]


def _passes(
    problem: Problem, run: runs.Run, scan: Any, *, num_dispatches: int
) -> rounds.Timed:
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
    part: Callable[[Any, Any], Any],
    start: PyTree,
    constants: PyTree,
    *,
    number: int = REPEATS,
) -> rounds.Timed:
    """(carried, constants) -> carried, repeated in one program."""

    def repeat(carried: PyTree, constants: PyTree) -> PyTree:
        def step(carried: PyTree, _: None) -> tuple[PyTree, None]:
            return part(carried, constants), None

        return jax.lax.scan(step, carried, length=number)[0]

    compiled = compilation.program(repeat)

    def work() -> None:
        nonlocal start
        start = jax.block_until_ready(compiled(start, constants))

    return rounds.timed(work, number)
