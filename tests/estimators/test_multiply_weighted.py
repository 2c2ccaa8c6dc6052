import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax.estimators import importance, multiply_weighted

X = np.array([0.4, -1.0])


def _build(name, problem, num_outer, num_samples):
    return getattr(multiply_weighted, name)(
        problem.model, num_outer=num_outer, num_samples=num_samples
    )


def test_miwae_of_one_inner_sample_is_unbiased_for_the_elbo(x64):
    problem = problems.linear_gaussian()
    objective = _build("miwae", problem, 5, 1)
    testing.assert_unbiased(objective, problem.params, jnp.asarray(X), problem.elbo)


@pytest.mark.slow
def test_one_outer_sample_is_iwae_and_one_inner_its_mean(x64):
    problem, key = problems.linear_gaussian(), jax.random.key(3)
    arguments = problem.params, jnp.asarray(X)
    iwae = importance.iwae(problem.model, num_samples=4)
    expected = jax.jit(jax.value_and_grad(iwae, 1))(key, *arguments)
    for name in ("miwae", "piwae"):
        objective = jax.value_and_grad(_build(name, problem, 1, 4), 1)
        got = jax.jit(objective)(jax.random.clone(key), *arguments)
        chex.assert_trees_all_close(got, expected, rtol=1e-9)
    draw = importance.log_weights(problem.model, num_samples=4)
    h = problem.recognition.encode(*arguments)
    log_w = draw(jax.random.clone(key), *arguments, h)
    value = _build("miwae", problem, 4, 1)(jax.random.clone(key), *arguments)
    np.testing.assert_allclose(value, log_w.mean(), rtol=1e-9)


def test_piwae_reads_as_the_bound_where_a_rows_weights_are_all_zero():
    """As of samples outside the support of p: some of them, then all."""
    problem, key = problems.linear_gaussian(), jax.random.key(4)

    def above(floor):
        def draw(key, params, x, h):
            sample = problem.model.draw(key, params, x, h)
            outside = sample.z.sum() < floor
            return sample._replace(
                log_prior=jnp.where(outside, -jnp.inf, sample.log_prior)
            )

        return problem.model._replace(draw=draw)

    x = jnp.asarray(X)
    middle = float(problem.recognition.encode(problem.params, x)[0])
    for floor in (middle, jnp.inf):
        model = above(floor)
        piwae = multiply_weighted.piwae(model, num_outer=6, num_samples=1)
        iwae = importance.iwae(model, num_samples=6)
        expected = iwae(jax.random.clone(key), problem.params, x)
        value = piwae(jax.random.clone(key), problem.params, x)
        assert np.isfinite(expected) == np.isfinite(floor)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    mean = multiply_weighted.miwae(above(middle), num_outer=6, num_samples=1)
    assert np.isneginf(mean(jax.random.clone(key), problem.params, x))
