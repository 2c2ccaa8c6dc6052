import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems
from vae_jax.evaluation import examples, marginal
from vae_jax.types import Params

PARAMS = Params(jnp.asarray(2.0), ())


def _noisy(key, params, x):
    return {"sum": params.generative * x.sum(), "noise": jax.random.normal(key, (2,))}


def _data(num):
    return jnp.arange(3.0 * num).reshape(num, 3)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 20])
def test_results_are_those_of_a_loop_over_rows_whatever_the_batch_size(batch_size):
    key, data = jax.random.key(0), _data(7)
    run = examples.over_examples(_noisy, batch_size=batch_size)
    got = run(jax.random.clone(key), PARAMS, data)
    for i in range(7):
        expected = _noisy(jax.random.fold_in(key, i), PARAMS, data[i])
        np.testing.assert_array_equal(got["sum"][i], expected["sum"])
        np.testing.assert_array_equal(got["noise"][i], expected["noise"])


def test_every_row_draws_fresh_noise():
    run = examples.over_examples(_noisy, batch_size=4)
    noise = run(jax.random.key(0), PARAMS, _data(9))["noise"]
    assert np.unique(noise).size == 18


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
    evaluator = marginal.importance_sampling(
        problem.generative, problem.exact, num_samples=4, chunk_size=2
    )
    data = jax.random.normal(jax.random.key(1), (5, 2))
    run = examples.over_examples(evaluator, batch_size=2)
    got = run(jax.random.key(0), problem.params, data)
    expected = jax.vmap(problem.log_p, in_axes=(None, 0))(problem.params, data)
    np.testing.assert_allclose(got.log_p, expected, rtol=1e-9)


@pytest.mark.parametrize("batch_size", [0, -2])
def test_a_batch_below_one_row_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size .*{batch_size}"):
        examples.over_examples(_noisy, batch_size=batch_size)
