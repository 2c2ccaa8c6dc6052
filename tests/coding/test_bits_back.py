"""A file's length is the evidence, and every nat of KL(q || p(z | x)) is paid for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems
from tests.stacks import compressed, pushed_at_once, start
from vae_jax.coding import bits_back, rans, tables
from vae_jax.types import sample_joint


@functools.cache
def _binary():
    """Rows of a model of 5 bits, each with q(z | x) and p(x, z) of every z."""
    problem = problems.binary_model()
    keys = jax.random.split(jax.random.key(2), 1030)
    draw = jax.vmap(sample_joint, in_axes=(0, None, None))
    _, x = jax.jit(draw, static_argnums=1)(keys, problem.generative, problem.params)
    of_rows = jax.jit(jax.vmap(problem.table, in_axes=(None, 0)))
    _, q, joint = (np.asarray(a, np.float64) for a in of_rows(problem.params, x))
    return problem, np.asarray(x, int), q, joint


def _of_tables(rows, probabilities):
    """Codes of a single symbol, the number of z in the table of them all."""
    _, x, _, joint = _binary()
    which = {tuple(row): n for n, row in enumerate(x)}
    values = problems.binary_rows(5).astype(int)
    at = np.array([which.get(tuple(value), -1) for value in values])
    assert (at >= 0).all(), "every x is among the rows"
    log_x = np.log(joint[at] / joint[at].sum(axis=0))  # [2^5, Z]: log p(x | z)
    log_z = np.log(joint[at].sum(axis=0))  # [Z]
    place = {tuple(value): n for n, value in enumerate(values)}

    def build(size):
        def posterior(symbols):
            of_rows = np.array([probabilities[at[n]] for n in symbols[:, 0]])
            return tables.categorical(np.log(of_rows)[:, None])

        def likelihood(symbols):
            return tables.categorical(log_x.T[symbols[:, 0]][:, None])

        prior = tables.categorical(np.tile(log_z, (size, 1, 1)))
        return bits_back.code(prior, posterior, likelihood)

    return build, np.array([[place[tuple(row)]] for row in rows])


@pytest.mark.slow
def test_with_the_exact_posterior_the_file_is_the_evidence():
    _, x, _, joint = _binary()
    build, symbols = _of_tables(x, joint / joint.sum(axis=1, keepdims=True))
    paid, bits = compressed(build(40), symbols)
    evidence = -np.log2(joint.sum(axis=1))
    np.testing.assert_allclose(bits, evidence, rtol=1e-5)
    assert abs(paid - evidence.sum()) < 64 + len(x) / 1024


@pytest.mark.slow
def test_another_q_costs_its_divergence_from_the_posterior():
    _, x, q, joint = _binary()
    build, symbols = _of_tables(x, q)
    paid, bits = pushed_at_once(build(len(x)), symbols)
    assert abs(paid - bits.sum()) < 64 + len(x) / 1024
    evidence = joint.sum(axis=1)
    excess = bits + np.log2(evidence)
    divergence = (q * np.log2(q / (joint / evidence[:, None]))).sum(axis=1)
    assert divergence.mean() > 0.05
    error = (excess - divergence).std() / np.sqrt(len(x))
    assert abs((excess - divergence).mean()) < 5.0 * error


def test_a_models_own_draws_cost_its_entropy():
    problem, x, _, joint = _binary()
    evidence = -np.log2(joint.sum(axis=1))
    every = jnp.asarray(problems.binary_rows(5), jnp.float32)
    log_p = np.asarray(jax.vmap(problem.log_p, (None, 0))(problem.params, every))
    entropy = -(np.exp(log_p) * log_p).sum() / np.log(2.0)
    build, symbols = _of_tables(x, joint / joint.sum(axis=1, keepdims=True))
    paid, _ = compressed(build(40), symbols)
    assert abs(paid / len(x) - entropy) < 5.0 * evidence.std() / np.sqrt(len(x))


ENTRIES = 40


def _chain():
    """Codes of x by z_1 and z_2 with the exact posterior: 40 chains x - z_1 - z_2.

    Of the layers' q as Bit-Swap has it, from the bottom up, and from the top down; and
    of x by z_1 alone.
    """
    rng = np.random.default_rng(0)
    p_2, p_1, p_x = (
        rng.dirichlet(np.full(n, 3.0), size) for n, size in ((6, 1), (5, 6), (7, 5))
    )
    joint = p_2[0][:, None, None] * p_1[:, :, None] * p_x  # [z_2, z_1, x]
    of_1 = joint.sum((0, 2))
    q_1, q_2 = (joint.sum(0) / joint.sum((0, 1))).T, (p_2.T * p_1 / of_1).T
    down_2 = (joint.sum(1) / joint.sum((0, 1))).T
    down_1 = np.moveaxis(joint / joint.sum(1, keepdims=True), 1, 2)  # [z_2, x, z_1]

    def of(table, *at):
        return tables.categorical(np.log(table[at]))

    def always(table, size):
        return of(table, np.zeros((size, ENTRIES), int))

    def one(size):
        prior = always(of_1[None], size)
        return bits_back.code(prior, lambda x: of(q_1, x), lambda z: of(p_x, z))

    def swapped(size):
        above = bits_back.code(
            always(p_2, size), lambda z_1: of(q_2, z_1), lambda z_2: of(p_1, z_2)
        )
        return bits_back.code(above, lambda x: of(q_1, x), lambda z: of(p_x, z))

    at_2, at_1 = slice(0, ENTRIES), slice(ENTRIES, 2 * ENTRIES)

    def from_the_top(size):
        def prior(i, z):
            return of(p_1, z[:, at_2]) if i else always(p_2, size)

        def posterior(x):
            return tables.in_turn(
                size,
                [at_2, at_1],
                lambda i, z: of(down_1, z[:, at_2], x) if i else of(down_2, x),
            )

        return bits_back.code(
            tables.in_turn(size, [at_2, at_1], prior),
            posterior,
            lambda z: of(p_x, z[:, at_1]),
        )

    p = joint.sum((0, 1))
    rows = rng.choice(7, (100, ENTRIES), p=p)
    return one, swapped, from_the_top, rows, -np.log2(p)[rows].sum(axis=1)


def _words_to_start(push, *, lanes):
    """The fewest in the tail that a stack of random bits can be pushed with."""
    for number in range(1000):
        try:
            push(start(number, lanes=lanes))
        except rans.Exhausted:
            continue
        return number
    raise AssertionError("a thousand words are too few")


@pytest.mark.slow
def test_layers_in_any_order_cost_the_evidence_and_swapped_ones_start_as_one_does():
    one, swapped, from_the_top, rows, evidence = _chain()
    for build in (one, swapped, from_the_top):
        paid, bits = compressed(build(40), rows)
        np.testing.assert_allclose(bits, evidence, rtol=1e-9)
        assert abs(paid - evidence.sum()) < 64
    of_one, of_swapped, of_all = (
        _words_to_start(
            lambda stack, build=build: build(10).push(stack, rows[:10]), lanes=10
        )
        for build in (one, swapped, from_the_top)
    )
    assert of_swapped == of_one
    assert of_all > 2 * of_one > 0


@pytest.mark.slow
def test_rows_in_batches_start_from_the_bits_of_few_rows():
    *_, from_the_top, rows, _ = _chain()
    codec = from_the_top(40)
    of_rows = _words_to_start(
        lambda stack: bits_back.encode(codec, stack, rows), lanes=40
    )
    of_lanes = _words_to_start(lambda stack: codec.push(stack, rows[:40]), lanes=40)
    of_a_row = _words_to_start(
        lambda stack: codec.push(rans.narrowed(stack, 1), rows[:40]), lanes=40
    )
    assert of_a_row <= of_rows < 4 * of_a_row < 0.2 * of_lanes


def test_any_number_of_rows_comes_back():
    one, *_, rows, evidence = _chain()
    for number in (1, 2, 7, 60):
        paid, bits = compressed(one(9), rows[:number], lanes=9)
        np.testing.assert_allclose(bits, evidence[:number], rtol=1e-9)
        assert abs(paid - evidence[:number].sum()) < 64


def test_no_rows_are_refused():
    codec, stack = tables.uniform(4, 3, num_bits=2), start(lanes=4)
    with pytest.raises(ValueError, match="no rows to encode"):
        bits_back.encode(codec, stack, np.zeros((0, 3), int))
    with pytest.raises(ValueError, match="num_rows must be positive, got 0"):
        bits_back.decode(codec, stack, num_rows=0)


def test_batches_grow_by_a_quarter_as_files_that_are_there_were_written():
    sizes = [at.stop - at.start for at in bits_back._batches(20, 4)]
    assert sizes == [1, 1, 1, 1, 2, 2, 3, 3, 4, 2]
    assert [at.start for at in bits_back._batches(20, 4)] == np.cumsum([0, *sizes])[
        :-1
    ].tolist()
