import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems
from vae_jax import compilation, posteriors, vae
from vae_jax.evaluation import (
    annealed,
    annealing,
    completion,
    examples,
    gaps,
    laplace,
    marginal,
)
from vae_jax.types import Params

PARAMS = Params(jnp.asarray(2.0), ())


def _noisy(key, params, x):
    return {"sum": params.generative * x.sum(), "noise": jax.random.normal(key, (2,))}


def _data(num):
    return jnp.arange(3.0 * num).reshape(num, 3)


@pytest.mark.parametrize(
    "batch_size",
    [1, 3, 20, *(pytest.param(size, marks=pytest.mark.slow) for size in (2, 7))],
)
def test_results_are_those_of_a_loop_over_rows_whatever_the_batch_size(batch_size):
    key, data = jax.random.key(0), _data(7)
    run = examples.over_examples(_noisy, batch_size=batch_size)
    got = run(jax.random.clone(key), PARAMS, data)
    of_one = compilation.program(_noisy)  # the compiler's options round too
    for i in range(7):
        expected = of_one(jax.random.fold_in(key, i), PARAMS, data[i])
        np.testing.assert_array_equal(got["sum"][i], expected["sum"])
        np.testing.assert_array_equal(got["noise"][i], expected["noise"])


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_every_row_draws_fresh_noise(impl):
    run = examples.over_examples(_noisy, batch_size=4)
    noise = run(jax.random.key(0, impl=impl), PARAMS, _data(9))["noise"]
    assert np.unique(noise).size == 18


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_rows_keep_their_noise_without_the_batches_after_them(impl):
    run = examples.over_examples(_noisy, batch_size=3)
    few, many = (
        run(jax.random.key(0, impl=impl), PARAMS, _data(num))["noise"] for num in (3, 9)
    )
    np.testing.assert_array_equal(few, many[:3])


@pytest.mark.parametrize("num_devices", [1, 2])
def test_blocks_of_rows_are_parts_of_the_whole(num_devices):
    mesh = None
    if num_devices > 1:
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((num_devices,), ("rows",), axis_types=auto)
    run, key = (
        examples.over_examples(_noisy, batch_size=2, mesh=mesh),
        jax.random.key(0),
    )
    whole, data = run(jax.random.clone(key), PARAMS, _data(9)), _data(9)
    for first in (0, 2, 6):
        block = run(jax.random.clone(key), PARAMS, data[first : first + 3], first)
        expected = jax.tree.map(lambda leaf: leaf[first : first + 3], whole)  # noqa: B023
        chex.assert_trees_all_equal(block, expected)


def test_rows_kept_as_integers_are_turned_into_values_one_by_one():
    data = jnp.array([[0, 51], [255, 102], [153, 0]], jnp.uint8)
    run = examples.over_examples(
        lambda key, params, x: x,
        batch_size=2,
        value=lambda row: row.astype(jnp.float32) / 255.0,
    )
    expected = np.array([[0.0, 0.2], [1.0, 0.4], [0.6, 0.0]])
    got = run(jax.random.key(0), PARAMS, data)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_program_is_compiled_once_for_every_shape_of_the_data():
    traces = []

    def evaluator(key, params, x):
        del key
        traces.append(x.shape)
        return params.generative * x.sum()

    run = examples.over_examples(evaluator, batch_size=4)
    run(jax.random.key(0), PARAMS, _data(8))
    traced = len(traces)
    assert traced > 0
    run(jax.random.key(1), Params(jnp.asarray(3.0), ()), _data(8) - 1.0)
    assert len(traces) == traced


@pytest.mark.slow
def test_log_p_of_a_data_set_is_exact_where_the_posterior_is_the_proposal(x64):
    problem = problems.linear_gaussian()
    model = vae.model(problem.generative, problem.exact)
    evaluator = marginal.importance_sampling(model, num_samples=4, chunk_size=2)
    data = jax.random.normal(jax.random.key(1), (5, 2))
    run = examples.over_examples(evaluator, batch_size=2)
    got = run(jax.random.key(0), problem.params, data)
    expected = jax.vmap(problem.log_p, in_axes=(None, 0))(problem.params, data)
    np.testing.assert_allclose(got.log_p, expected, rtol=1e-9)


def _evaluators():
    """Name -> a one-example evaluator of the library that scans."""
    problem = problems.linear_gaussian()
    chains = annealing.chains(
        temperatures=annealing.linear(3), num_chains=2, num_pilot=2
    )
    climb = laplace.posterior(problem.generative, num_latents=1, num_steps=2)
    fit = gaps.fit_local(
        problem.generative,
        posteriors.diag_normal(1),
        num_samples=2,
        num_steps=2,
        num_evaluated=4,
        max_rounds=2,
    )
    return {
        "importance_sampling": marginal.importance_sampling(
            problem.model, num_samples=4, chunk_size=2
        ),
        "prior_sampling": marginal.prior_sampling(
            problem.generative, num_samples=4, chunk_size=2
        ),
        "uniform_sampling": marginal.uniform_sampling(
            problem.generative, limit=3.0, num_samples=4, chunk_size=2
        ),
        "laplace": lambda key, params, x: climb.encode(params, x),
        "ais": annealed.ais(problem.generative, chains),
        "fit_local": lambda key, params, x: fit(key, params, x, jnp.zeros(2)),
        "completion": completion.importance(
            problem.model, num_samples=4, num_draws=2, chunk_size=2
        ),
        "pseudo_gibbs": completion.pseudo_gibbs(
            problem.model, num_draws=2, num_warmup=1
        ),
        "metropolis_within_gibbs": completion.metropolis_within_gibbs(
            problem.model, num_draws=2, num_warmup=1
        ),
    }


SLOW = {"ais", "fit_local", "metropolis_within_gibbs", "completion"}
SLOW |= {"prior_sampling", "uniform_sampling"}  # scan as importance_sampling does


@pytest.mark.slow
@pytest.mark.uses_optax
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in _evaluators()
    ],
)
def test_an_evaluator_gives_over_devices_what_it_gives_over_rows(name):
    """With JAX's check of what varies over them, which constants in a carry fail."""
    evaluator, params = _evaluators()[name], problems.linear_gaussian().params
    rows = jax.vmap(evaluator, in_axes=(0, None, 0))
    data = jax.random.normal(jax.random.key(1), (4, 2))
    if name in ("completion", "pseudo_gibbs", "metropolis_within_gibbs"):
        data = data.at[:, 0].set(jnp.nan)
    keys = jax.random.split(jax.random.key(0), 4)
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = jax.P("rows"), jax.P()
    shared = jax.shard_map(
        rows, mesh=mesh, in_specs=(split, whole, split), out_specs=split
    )
    expected = jax.jit(rows)(jax.random.clone(keys), params, data)
    got = jax.jit(shared)(keys, params, data)
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [0, -2])
def test_a_batch_below_one_row_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size .*{batch_size}"):
        examples.over_examples(_noisy, batch_size=batch_size)
