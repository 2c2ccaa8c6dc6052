import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import problems
from vae_jax import vae
from vae_jax.evaluation import debiased, weights

X = np.array([0.4, -1.0])


@pytest.mark.slow
def test_it_is_unbiased_for_log_p_where_the_elbo_is_not(x64):
    """Of a q around the posterior, whose weights are bounded."""
    problem, x = problems.linear_gaussian(), jnp.asarray(X)
    q = problems.widened(problem.exact, log_factor=0.4, shift=0.3)
    run = debiased.debiased(
        vae.model(problem.generative, q),
        num_draws=8_000,
        num_samples=1,
        max_terms=79,
    )
    got = jax.jit(run)(jax.random.key(1), problem.params, x)
    log_p = problem.log_p(problem.params, x)
    assert abs(float(got.log_p - log_p)) < 4.0 * got.standard_error
    bound = problems.k_sample_bound(problem._replace(recognition=q), num_samples=1)
    assert log_p - bound(problem.params, x) > 8.0 * got.standard_error
    assert 5.7 < got.mean_samples < 6.2  # 1 + sum of P(K >= k)


@pytest.mark.parametrize(("freedom", "index"), [(1, 1.0), (2, 0.5), (100, 0.0)])
def test_the_index_is_that_of_the_tails(x64, freedom, index):
    """Of Student's t, whose moments below its degrees of freedom are finite."""
    draws = jnp.asarray(stats.t.rvs(freedom, size=20_000, random_state=freedom))
    got = jax.jit(debiased.of_draws)(draws, jnp.arange(20_000))
    np.testing.assert_allclose(got.tail_index, index, atol=0.2)
    np.testing.assert_allclose(got.log_p, draws.mean())
    np.testing.assert_allclose(got.standard_error, stats.sem(draws))
    np.testing.assert_allclose(got.mean_samples, 9_999.5)


def test_the_index_is_of_distances_from_the_mean_wherever_that_is(x64):
    draws = jnp.asarray(stats.t.rvs(1.5, size=5_000, random_state=0))
    index = debiased.of_draws(draws, jnp.arange(5_000)).tail_index
    far = debiased.of_draws(draws - 4096.0, jnp.arange(5_000)).tail_index
    assert index > 0.5
    np.testing.assert_allclose(far, index, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_draws": 1}, "num_draws .*1"),
        ({"num_samples": 0}, "num_samples .*0"),
        ({"max_terms": 0}, "max_terms .*0"),
    ],
)
def test_numbers_that_give_no_estimate_are_refused(settings, message):
    model = problems.linear_gaussian().model
    with pytest.raises(ValueError, match=message):
        debiased.debiased(model, **{"num_draws": 5, "num_samples": 1} | settings)


def test_the_index_is_of_as_many_distances_as_that_of_weights(x64):
    draws = jnp.asarray(stats.t.rvs(2, size=500, random_state=0))
    distances = jnp.log(jnp.abs(draws - draws.mean()))
    got = debiased.of_draws(draws, jnp.arange(500)).tail_index
    np.testing.assert_allclose(got, weights.of_all(distances).pareto_k, rtol=1e-9)
