import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax.estimators import wake_sleep
from vae_jax.types import Params

X = np.array([1.0, 0.0, 1.0, 1.0, 0.0])


def _build(problem, **settings):
    return wake_sleep.reweighted_wake_sleep(problem.model, **settings)


def _fixed_theta(params):
    return Params(jax.lax.stop_gradient(params.generative), params.recognition)


def _log_q_under_the_posterior(problem):
    """Minus KL(p(z|x) || q(z|x)) up to a constant in phi, from the table."""

    def fit(params, x):
        _, q, p = problem.table(_fixed_theta(params), x)
        return (p / p.sum()) @ jnp.log(q)

    return fit


@pytest.mark.slow
def test_wake_sleep_of_one_sample_is_the_reweighted_one_that_only_sleeps(x64):
    problem, x = problems.binary_model(), jnp.asarray(X)
    plain = wake_sleep.wake_sleep(problem.model, num_samples=1)
    reweighted = _build(problem, num_samples=1, sleep_share=1.0)
    got, wanted = (
        testing.draws(objective, problem.params, x, num_draws=10)
        for objective in (plain, reweighted)
    )
    chex.assert_trees_all_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [1, 8])
def test_theta_climbs_the_k_sample_bound_without_bias(x64, num_samples):
    problem, x = problems.binary_model(), jnp.asarray(X)
    objective = _build(problem, num_samples=num_samples)
    values, grads = testing.draws(objective, problem.params, x)
    bound = problems.k_sample_bound_of_table(problem, num_samples=num_samples)
    exact, exact_grads = jax.jit(jax.value_and_grad(bound))(problem.params, x)
    testing.assert_mean_equals(values, exact)
    testing.assert_mean_equals(grads.generative, exact_grads.generative)


@pytest.mark.slow
def test_the_wake_phase_fits_q_to_the_posterior_as_k_grows(x64):
    problem, x = problems.binary_model(), jnp.asarray(X)
    exact = jax.jit(jax.grad(_log_q_under_the_posterior(problem)))(problem.params, x)
    errors = []
    for num_samples in (2, 200):
        objective = _build(problem, num_samples=num_samples)
        _, grads = testing.draws(objective, problem.params, x, num_draws=4000)
        gaps = jax.tree.map(
            lambda g, e: float(jnp.abs(g.mean(0) - e).max()),
            grads.recognition,
            exact.recognition,
        )
        errors.append(max(jax.tree.leaves(gaps)))
    assert errors[1] < 0.1 * errors[0]


@pytest.mark.slow
def test_a_share_mixes_the_two_phases(x64):
    problem, x = problems.binary_model(), jnp.asarray(X)
    gradient = {}
    for share in (0.25, 1.0):
        objective = _build(problem, num_samples=3, sleep_share=share)
        _, grads = testing.draws(objective, problem.params, x, num_draws=10)
        gradient[share] = grads.recognition
    # The wake phase under the key that a sleeping objective leaves it.
    alone = _build(problem, num_samples=3)

    def wake(key, params, x):
        return alone(jax.random.split(key)[0], params, x)

    _, grads = testing.draws(wake, problem.params, x, num_draws=10)
    mixed = jax.tree.map(
        lambda w, s: 0.75 * w + 0.25 * s, grads.recognition, gradient[1.0]
    )
    chex.assert_trees_all_close(gradient[0.25], mixed, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_theta_gets_nothing_from_the_sleep_phase_where_z_carries_gradients(x64):
    problem, x = problems.linear_gaussian(), jnp.array([0.4, -1.0])
    alone = _build(problem, num_samples=3)

    def wake(key, params, x):
        return alone(jax.random.split(key)[0], params, x)

    _, awake = testing.draws(wake, problem.params, x, num_draws=10)
    asleep = _build(problem, num_samples=3, sleep_share=1.0)
    _, grads = testing.draws(asleep, problem.params, x, num_draws=10)
    chex.assert_trees_all_close(
        grads.generative, awake.generative, rtol=1e-9, atol=1e-12
    )
