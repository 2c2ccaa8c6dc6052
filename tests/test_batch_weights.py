"""`Batch.weight` in every algorithm that fits by gradients: how often a row counts."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems
from vae_jax import numerics, posteriors
from vae_jax.estimators import running_baseline, sgvb
from vae_jax.inference import full_vb, mcem, quadrature_em, variational_em
from vae_jax.training import gradient
from vae_jax.types import Algorithm, Batch, Params, clear_weightless, per_example

pytestmark = pytest.mark.uses_optax
XS = np.array([[0.4, -1.0], [-0.7, 0.2], [1.1, 0.3], [0.5, 0.9]])


class Row(NamedTuple):
    """An algorithm under plain gradient ascent."""

    make: Callable[[], tuple[Algorithm, Params]]
    exact: bool  # no row draws noise of its own, so that rows may be copied
    linear: tuple[str, ...]  # numbers it reports that are means over the rows


def _elbo(key, params, x):
    del key
    return problems.linear_gaussian().elbo(params, x)


def _ascent():
    objective = per_example(_elbo)
    watched = gradient.ascent(
        objective,
        optax.sgd(0.1),
        monitor=lambda key, params, x: {"first": x[0], "bound": _elbo(key, params, x)},
    )
    return watched, problems.linear_gaussian().params


def _noisy_ascent():
    problem = problems.linear_gaussian()
    objective = per_example(sgvb.sgvb_a(problem.model, num_samples=2))
    return gradient.ascent(objective, optax.sgd(0.1)), problem.params


def _running_baseline():
    def build(baseline, scale):
        def objective(key, params, x):
            elbo = _elbo(key, params, x)
            return numerics.attach_gradient(elbo, 0.5 * (elbo - baseline) ** 2 / scale)

        return per_example(objective)

    objective = running_baseline.running_baseline(build, decay=0.8)
    return gradient.ascent(objective, optax.sgd(0.1)), problems.linear_gaussian().params


def _full_vb():
    problem = problems.linear_gaussian()
    wrapped = full_vb.at_mean(problem.model, initial_std=0.3)
    objective = full_vb.full_vb(per_example(_elbo), num_data=9)
    params = jax.jit(wrapped.init)(jax.random.key(5))
    return gradient.ascent(objective, optax.sgd(0.1)), params


def _variational_em():
    problem = problems.linear_gaussian()
    fit = variational_em.variational_em(
        problem.generative,
        posteriors.diag_normal(1),
        optax.sgd(0.1),
        num_data=9,
        num_steps=2,
        weight_decay=0.5,
    )
    return fit, problem.params


def _mcem():
    problem = problems.linear_gaussian()
    fit = mcem.mcem(
        problem.generative,
        optax.sgd(0.1),
        num_data=9,
        num_updates=1,
        num_leapfrog=3,
        initial_step_size=1.3,
        weight_decay=0.5,
    )
    return fit, problem.params


def _quadrature_em():
    problem = problems.linear_gaussian()
    fit = quadrature_em.quadrature_em(
        problem.generative, optax.sgd(0.1), num_latents=1, num_updates=1
    )
    return fit, problem.params


ROWS = {
    "ascent": Row(_ascent, True, ("bound",)),
    "ascent with noise": Row(_noisy_ascent, False, ("bound",)),
    "running baseline": Row(_running_baseline, True, ("bound",)),
    "full VB": Row(_full_vb, True, ("bound",)),
    "variational EM": Row(_variational_em, False, ("bound",)),
    "MCEM": Row(_mcem, False, ("log_joint", "acceptance", "energy_error")),
    "quadrature EM": Row(_quadrature_em, True, ("log_p", "bound_after_e_step")),
}
EVERY = pytest.mark.parametrize("name", ROWS)


@functools.cache
def _compiled(name, dtype):
    """The start and one compiled init and step for all tests in a precision."""
    del dtype
    algorithm, start = ROWS[name].make()
    return start, jax.jit(algorithm.init), jax.jit(algorithm.step)


def _steps(name, rows, weight, *, num_steps=1, xs=XS) -> tuple[Any, Any]:
    """The state and what the last step reports, after steps on rows of xs."""
    start, init, step = _compiled(name, jnp.result_type(float))
    index = jnp.array(rows)
    batch = Batch(jnp.asarray(xs)[index], index, jnp.asarray(weight, jnp.float32))
    state, info = init(jax.random.key(0), start), None
    for t in range(num_steps):
        state, info = step(jax.random.fold_in(jax.random.key(1), t), state, batch)
    return state, info


def _moved(name, weight):
    """What one step adds to the parameters, and the means that it reports."""
    start, *_ = _compiled(name, jnp.result_type(float))
    state, info = _steps(name, range(len(weight)), weight)
    change = jax.tree.map(jnp.subtract, state.params, start)
    return change, {field: getattr(info, field) for field in ROWS[name].linear}


def _close(got, expected, atol=1e-9):
    chex.assert_trees_all_close(got, expected, rtol=1e-9, atol=atol)


@pytest.mark.slow
@EVERY
def test_a_step_is_the_weighted_mean_of_the_steps_of_each_row(x64, name):
    weights = np.array([2.0, 1.0, 0.5])
    single = [_moved(name, row) for row in np.eye(3)]
    expected = jax.tree.map(
        lambda *leaves: (
            sum(w * leaf for w, leaf in zip(weights, leaves, strict=True))
            / weights.sum()
        ),
        *single,
    )
    got = _moved(name, weights)
    _close(got, expected)
    change, reported = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), *single[:2]
    )
    assert max(jax.tree.leaves(change)) > 1e-3  # the rows differ
    assert min(reported.values()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.exact])
def test_a_row_of_weight_two_is_that_row_twice_in_all_that_a_fit_holds(x64, name):
    heavy = _steps(name, [0, 1], [2.0, 1.0], num_steps=3)
    twice = _steps(name, [0, 0, 1], [1.0, 1.0, 1.0], num_steps=3)
    _close(heavy, twice)


@pytest.mark.slow
@EVERY
def test_a_row_of_weight_zero_is_a_row_that_is_not_there(x64, name):
    """Its key is the last, so that the others draw their own noise."""
    padded, info = _steps(name, [0, 1, 2], [1.0, 2.0, 0.0], num_steps=3)
    without, expected = _steps(name, [0, 1], [1.0, 2.0], num_steps=3)
    _close((padded.params, info), (without.params, expected))
    if name == "MCEM":
        _close(padded.log_step_size, without.log_step_size)


@EVERY
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_of_weight_zero_is_not_read(x64, name, value):
    """0 times NaN is NaN, in the reported numbers and in the gradient."""
    xs = XS.copy()
    xs[2] = value
    broken, info = _steps(name, [0, 1, 2], [1.0, 2.0, 0.0], num_steps=3, xs=xs)
    whole, expected = _steps(name, [0, 1, 2], [1.0, 2.0, 0.0], num_steps=3)
    _close((broken.params, info), (whole.params, expected))


def test_what_a_row_weighs_decides_whether_it_is_read():
    x: Any = {"x": jnp.array([[1.0, jnp.nan], [jnp.nan, 2.0]]), "label": jnp.arange(2)}
    batch = Batch(x, jnp.arange(2), jnp.array([1.0, 0.0]))
    cleared: Any = clear_weightless(batch).x
    np.testing.assert_array_equal(cleared["x"], [[1.0, np.nan], [0.0, 2.0]])
    np.testing.assert_array_equal(cleared["label"], [0, 1])
    mean, spread = gradient.weighted_moments(
        jnp.array([1.0, 3.0, -jnp.inf]), jnp.array([1.0, 1.0, 0.0])
    )
    assert (mean, spread) == (2.0, 1.0)


@pytest.mark.slow
@EVERY
def test_a_batch_without_weight_leaves_the_parameters_as_they_are(x64, name):
    start, *_ = _compiled(name, jnp.result_type(float))
    state, info = _steps(name, [0, 1], [0.0, 0.0], num_steps=2)
    chex.assert_trees_all_equal(state.params, start)
    chex.assert_tree_all_finite((state, info))


def test_a_batch_without_weight_leaves_what_is_remembered_of_the_batches_before(x64):
    before, _ = _steps("running baseline", [0, 1], [1.0, 1.0])
    _, _, step = _compiled("running baseline", jnp.result_type(float))
    nothing = Batch(jnp.asarray(XS[:2]), jnp.arange(2), jnp.zeros(2, jnp.float32))
    after, _ = step(jax.random.key(2), before, nothing)
    chex.assert_trees_all_equal(after.memory, before.memory)
    state, _ = _steps("MCEM", [0, 1], [0.0, 0.0])
    start, init, _ = _compiled("MCEM", jnp.result_type(float))
    fresh = init(jax.random.key(0), start)
    np.testing.assert_array_equal(state.log_step_size, fresh.log_step_size)


def test_means_and_spreads_count_rows_by_their_weights(x64):
    state, info = _steps("ascent", [0, 1, 2], [3.0, 1.0, 0.0])
    del state
    algorithm, start = _ascent()
    del algorithm
    values = np.array([float(_elbo(None, start, jnp.asarray(x))) for x in XS[:2]])
    rows = np.repeat(values, [3, 1])
    np.testing.assert_allclose(info.bound, rows.mean(), rtol=1e-9)
    np.testing.assert_allclose(info.spread, rows.std(), rtol=1e-9)
    np.testing.assert_allclose(info.monitored["bound"], rows.mean(), rtol=1e-9)
    np.testing.assert_allclose(
        info.monitored["first"], (3 * XS[0, 0] + XS[1, 0]) / 4, rtol=1e-9
    )
