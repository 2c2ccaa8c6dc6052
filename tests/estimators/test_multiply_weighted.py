import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax.estimators import importance, multiply_weighted

X = np.array([0.4, -1.0])
BOTH = pytest.mark.parametrize("name", ["miwae", "piwae"])


def _build(name, problem, num_outer, num_samples):
    return getattr(multiply_weighted, name)(
        problem.generative,
        problem.recognition,
        num_outer=num_outer,
        num_samples=num_samples,
    )


@pytest.mark.parametrize(("num_outer", "num_samples"), [(2, 3), (5, 1)])
def test_miwae_is_unbiased_for_the_bound_of_the_inner_samples(
    x64, num_outer, num_samples
):
    problem = problems.linear_gaussian()
    objective = _build("miwae", problem, num_outer, num_samples)
    bound = problems.k_sample_bound(problem, num_samples=num_samples)
    testing.assert_unbiased(objective, problem.params, jnp.asarray(X), bound)


@pytest.mark.slow
@pytest.mark.parametrize(("num_outer", "num_samples"), [(2, 4), (4, 2)])
def test_piwae_climbs_all_samples_in_theta_and_the_inner_in_phi(
    x64, num_outer, num_samples
):
    problem = problems.linear_gaussian()
    objective = _build("piwae", problem, num_outer, num_samples)
    of_all = problems.k_sample_bound(problem, num_samples=num_outer * num_samples)
    inner = problems.k_sample_bound(problem, num_samples=num_samples)
    testing.assert_unbiased(
        objective, problem.params, jnp.asarray(X), of_all, bound_of_phi=inner
    )


@pytest.mark.slow
def test_one_outer_sample_is_iwae_and_one_inner_its_mean(x64):
    problem, key = problems.linear_gaussian(), jax.random.key(3)
    arguments = problem.params, jnp.asarray(X)
    iwae = importance.iwae(problem.generative, problem.recognition, num_samples=4)
    expected = jax.jit(jax.value_and_grad(iwae, 1))(key, *arguments)
    for name in ("miwae", "piwae"):
        objective = jax.value_and_grad(_build(name, problem, 1, 4), 1)
        got = jax.jit(objective)(jax.random.clone(key), *arguments)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), got, expected
        )
    draw = importance.log_weights(
        problem.generative, problem.recognition, num_samples=4
    )
    h = problem.recognition.encode(*arguments)
    log_w = draw(jax.random.clone(key), *arguments, h)
    value = _build("miwae", problem, 4, 1)(jax.random.clone(key), *arguments)
    np.testing.assert_allclose(value, log_w.mean(), rtol=1e-9)


@BOTH
@pytest.mark.slow
def test_jit_and_vmap_agree_with_a_loop(name):
    problem = problems.linear_gaussian(num_latents=2)
    xs = jax.random.normal(jax.random.key(1), (3, 2))
    testing.assert_same_compiled_and_batched(
        _build(name, problem, 2, 3), problem.params, xs
    )


@BOTH
def test_fewer_samples_than_one_are_refused(name):
    problem = problems.linear_gaussian()
    with pytest.raises(ValueError, match=r"num_outer .*0"):
        _build(name, problem, 0, 3)
    with pytest.raises(ValueError, match=r"num_samples .*-1"):
        _build(name, problem, 3, -1)
