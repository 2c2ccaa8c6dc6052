"""Optimizers that need more than a gradient, and runs under strict switches of JAX."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems
from vae_jax import posteriors
from vae_jax.estimators import sgvb
from vae_jax.inference import mcem, quadrature_em, variational_em
from vae_jax.training import gradient
from vae_jax.types import Batch, Params, per_example

uses_optax = pytest.mark.uses_optax
NUM_ROWS = 8
OPTIMIZERS = {
    "reduce_on_plateau": lambda: optax.chain(
        optax.adam(0.1), optax.contrib.reduce_on_plateau(patience=3)
    ),
    "lbfgs": lambda: optax.lbfgs(memory_size=5),
    "polyak_sgd": lambda: optax.polyak_sgd(max_learning_rate=0.2, f_min=-5.0),
    "scale_by_backtracking_linesearch": lambda: optax.chain(
        optax.sgd(1.0),
        optax.scale_by_backtracking_linesearch(max_backtracking_steps=15),
    ),
}
EACH = pytest.mark.parametrize("name", OPTIMIZERS)


def _each_but(*slow):
    """Every optimizer, of which some are kin of those that stay."""
    marks = {True: [pytest.mark.slow], False: []}
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=marks[name in slow]) for name in OPTIMIZERS]
    )


def _batch():
    x = jax.random.normal(jax.random.key(2), (NUM_ROWS, 2))
    return Batch(x, jnp.arange(NUM_ROWS), jnp.ones(NUM_ROWS))


def _run(algorithm, start, *, num_steps):
    """The states between the steps, stacked, and what the steps report."""
    batch = _batch()

    @jax.jit
    def run(start):
        state = algorithm.init(jax.random.key(0), start)
        keys = jax.random.split(jax.random.key(1), num_steps)

        def step(state, key):
            state, info = algorithm.step(key, state, batch)
            return state, (state.params, info)

        return jax.lax.scan(step, state, keys)[1]

    return run(start)


def _mean_log_p(problem, params):
    return np.mean([problem.log_p(params, x) for x in _batch().x])


def _exactly(problem):
    return per_example(lambda key, params, x: problem.elbo(params, x))


@pytest.mark.slow
@uses_optax
@EACH
def test_an_optimizer_that_asks_for_the_value_brings_the_bound_up(x64, name):
    problem = problems.linear_gaussian()
    algorithm = gradient.ascent(_exactly(problem), OPTIMIZERS[name]())
    params, info = _run(algorithm, problem.params, num_steps=60)
    last = jax.tree.map(lambda leaf: leaf[-1], params)
    log_p = _mean_log_p(problem, last)
    assert info.bound[-1] > info.bound[0] + 0.2
    assert 0.0 <= log_p - info.bound[-1] < 0.05
    if name != "reduce_on_plateau":  # the others search along a line
        assert (np.diff(info.bound) > -0.05).all()


@pytest.mark.slow
@uses_optax
@_each_but("lbfgs", "reduce_on_plateau")
def test_a_line_search_sees_the_batch_and_the_noise_of_its_step(x64, name):
    """What a step moves to is better on the noise that it was drawn with."""
    problem, batch, key = problems.linear_gaussian(), _batch(), jax.random.key(3)
    objective = per_example(sgvb.sgvb_a(problem.model, num_samples=1))
    algorithm = gradient.ascent(objective, OPTIMIZERS[name]())

    @jax.jit
    def before_and_after(key, params):
        state = algorithm.init(jax.random.key(0), params)
        after, info = algorithm.step(jax.random.clone(key), state, batch)
        return info.bound, objective.value(key, after.params, (), batch)[0].mean()

    before, after = before_and_after(key, problem.params)
    assert after > before


@pytest.mark.slow
@uses_optax
def test_the_value_is_minus_the_weighted_bound_and_so_is_that_of_its_function():
    """A transformation that records what it is handed."""
    problem, batch = problems.linear_gaussian(), _batch()
    weight = jnp.where(jnp.arange(NUM_ROWS) < 3, 1.0, 0.0)
    batch = batch._replace(weight=weight)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        del state
        value, grad, value_fn = (extra[name] for name in ("value", "grad", "value_fn"))
        same = jax.tree.map(lambda a, b: jnp.all(a == b), updates, grad)
        agree = jnp.stack(jax.tree.leaves(same)).all()
        return updates, (value, value_fn(params), agree)

    zero = jnp.zeros(())
    spy = optax.GradientTransformationExtraArgs(
        lambda params: (zero, zero, jnp.array(True)), update
    )
    objective = per_example(sgvb.sgvb_a(problem.model, num_samples=1))
    for optimizer in (spy, gradient.of_theta(spy)):
        algorithm = gradient.ascent(objective, optimizer)
        state = algorithm.init(jax.random.key(0), problem.params)
        after, info = jax.jit(algorithm.step)(jax.random.key(1), state, batch)
        value, again, agree = after.opt_state
        np.testing.assert_allclose(value, -info.bound, rtol=1e-6)
        np.testing.assert_allclose(again, value, rtol=1e-6)
        assert agree


# Theta alone


def _variational_em(optimizer):
    problem = problems.linear_gaussian()
    fit = variational_em.variational_em(
        problem.generative,
        posteriors.diag_normal(1),
        optimizer,
        num_data=NUM_ROWS,
        num_samples=20,
    )
    return fit, lambda info: info.bound


def _quadrature_em(optimizer):
    generative = problems.linear_gaussian().generative
    fit = quadrature_em.quadrature_em(
        generative, optimizer, num_latents=1, num_updates=2
    )
    return fit, lambda info: info.log_p


def _mcem(optimizer):
    generative = problems.linear_gaussian().generative
    fit = mcem.mcem(generative, optimizer, num_data=NUM_ROWS, num_updates=2)
    return fit, lambda info: info.log_joint


@pytest.mark.slow
@uses_optax
@_each_but("lbfgs", "reduce_on_plateau", "polyak_sgd")
@pytest.mark.parametrize(
    "make",
    [
        _quadrature_em,
        pytest.param(_variational_em, marks=pytest.mark.slow),
        pytest.param(_mcem, marks=pytest.mark.slow),
    ],
)
def test_fits_of_theta_alone_take_those_optimizers_too(x64, name, make):
    problem = problems.linear_gaussian()
    algorithm, read = make(OPTIMIZERS[name]())
    params, info = _run(algorithm, problem.params, num_steps=20)
    last = jax.tree.map(lambda leaf: leaf[-1], params)
    assert np.isfinite(read(info)).all()
    gain = _mean_log_p(problem, last) - _mean_log_p(problem, problem.params)
    assert gain > 0.1
    chex.assert_trees_all_equal(last.recognition, problem.params.recognition)


@uses_optax
def test_the_optimizer_of_theta_moves_theta_as_by_itself_and_phi_not_at_all(x64):
    params = Params({"a": jnp.array([1.0, -2.0])}, {"b": jnp.array([3.0])})
    grads = Params({"a": jnp.array([0.5, 0.1])}, {"b": jnp.array([7.0])})
    plain: Any = optax.adamw(0.1, weight_decay=0.3)
    both: Any = gradient.of_theta(plain)
    state, separate = both.init(params), plain.init(params.generative)
    for _ in range(3):
        moved, state = both.update(grads, state, params)
        expected, separate = plain.update(grads.generative, separate, params.generative)
        np.testing.assert_allclose(moved.generative["a"], expected["a"], rtol=1e-12)
        np.testing.assert_array_equal(moved.recognition["b"], np.zeros(1))


# Switches of JAX


@pytest.mark.slow
@uses_optax
def test_a_run_whose_gradient_norm_is_skipped_passes_where_nans_stop_it():
    problem = problems.linear_gaussian()
    objective = per_example(sgvb.sgvb_b(problem.model, num_samples=1))
    algorithm = gradient.ascent(objective, optax.sgd(0.01), norm_every=2)
    with jax.debug_nans(True):
        _, info = _run(algorithm, problem.params, num_steps=5)
        state = algorithm.init(jax.random.key(0), problem.params)
        for i in range(3):  # and step by step, as what a step returns is looked at
            state, _ = jax.jit(algorithm.step)(jax.random.key(i), state, _batch())
    np.testing.assert_array_equal(info.gradient_norm == -1.0, [0, 1, 0, 1, 0])
    assert (info.gradient_norm[::2] > 0.0).all()


@uses_optax
def test_a_batch_without_weight_passes_where_nans_stop_a_run():
    problem = problems.linear_gaussian()
    objective = per_example(sgvb.sgvb_b(problem.model, num_samples=1))
    algorithm = gradient.ascent(objective, optax.adam(0.01))
    with jax.debug_nans(True):
        state = algorithm.init(jax.random.key(0), problem.params)
        batch = _batch()._replace(weight=jnp.zeros(NUM_ROWS))
        _, info = jax.jit(algorithm.step)(jax.random.key(1), state, batch)
    assert info.spread == 0.0


@pytest.mark.slow
def test_adam_of_this_package_runs_where_no_type_is_promoted():
    """No marker: promotion is strict in every test that does not ask for optax."""
    problem = problems.linear_gaussian()
    objective = per_example(sgvb.sgvb_b(problem.model, num_samples=1))
    algorithm = gradient.ascent(objective, gradient.adam(0.05), norm_every=2)
    assert jax.config.jax_numpy_dtype_promotion == "strict"  # pyright: ignore
    params, info = _run(algorithm, problem.params, num_steps=30)
    assert info.bound[-5:].mean() > info.bound[:5].mean()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.slow
@uses_optax
def test_adam_with_decoupled_decay_is_adamw_on_every_parameter(x64):
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([5.0])}
    rate = optax.cosine_decay_schedule(0.1, 4)
    ours: Any = gradient.adam(rate, decoupled_decay=0.3)
    theirs = optax.adamw(rate, weight_decay=0.3)
    plain: Any = gradient.adam(rate)
    states = [optimizer.init(params) for optimizer in (ours, theirs, plain)]
    for i in range(3):
        grads = jax.tree.map(lambda leaf, i=i: jnp.cos(leaf + i), params)
        moves = []
        for j, optimizer in enumerate((ours, theirs, plain)):
            move, states[j] = optimizer.update(grads, states[j], params)
            moves.append(move)
        chex.assert_trees_all_close(moves[0], moves[1], rtol=1e-6)
        # What it takes away is a share of the parameters: the gradient's scale is out.
        taken = jax.tree.map(lambda a, b: a - b, moves[0], moves[2])
        expected = jax.tree.map(lambda leaf, i=i: -0.3 * rate(i) * leaf, params)
        chex.assert_trees_all_close(taken, expected, rtol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, float("nan")])
def test_a_decay_that_adds_is_refused(decay):
    with pytest.raises(ValueError, match="decoupled_decay must not be negative"):
        gradient.adam(0.1, decoupled_decay=decay)


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        optax.constant_schedule(0.1),
        optax.cosine_decay_schedule(0.1, 4),
        optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 4),
        optax.piecewise_constant_schedule(0.1, {2: 0.5}),
        lambda count: jnp.array([0.1, 0.2, 0.3, 0.4])[count],
    ],
    ids=["constant", "cosine", "warmup", "piecewise", "table"],
)
def test_adam_takes_a_schedule_where_no_type_is_promoted(schedule):
    assert jax.config.jax_numpy_dtype_promotion == "strict"  # pyright: ignore
    params = jnp.ones(2)
    optimizer: Any = gradient.adam(schedule)
    state, moved = optimizer.init(params), []
    for _ in range(4):  # under a constant gradient Adam moves by the rate
        updates, state = jax.jit(optimizer.update)(params, state, params)
        moved.append(-updates[0])
    with jax.numpy_dtype_promotion("standard"):
        rates = [schedule(count) for count in jnp.arange(4)]
    np.testing.assert_allclose(moved, rates, rtol=1e-5, atol=1e-9)


def test_adam_keeps_the_dtype_of_every_leaf_where_no_type_is_promoted(x64):
    params = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.ones(2, jnp.float32)}
    params["double"] = jnp.ones(2)
    optimizer: Any = gradient.adam(0.1)
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params)
    updates, state = optimizer.update(params, state, params)
    dtypes = {name: leaf.dtype for name, leaf in updates.items()}
    assert dtypes == {name: leaf.dtype for name, leaf in params.items()}
    np.testing.assert_allclose(updates["double"], [-0.1, -0.1], rtol=1e-6)
