import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from tests import problems, testing
from vae_jax.evaluation import examples, hmc_density
from vae_jax.inference import hmc
from vae_jax.types import Params, log_joint

SMALL = {"num_latents": 2, "num_samples": 15, "num_warmup": 20, "num_leapfrog": 4}


def _observation(num_features):
    return jnp.linspace(-1.0, 0.7, num_features)


@functools.cache
def _bernoulli():
    """A tanh VAE with weights large enough that its posteriors are not normal."""
    generative, _ = problems.bernoulli_vae(x_shape=(4, 5), num_latents=2)
    theta = jax.jit(generative.init)(jax.random.key(0))
    params = Params(jax.tree.map(lambda leaf: 1.5 * leaf, theta), ())

    def observation(key):
        key_z, key_x = jax.random.split(key)
        z = generative.sample_prior(key_z, params)
        return generative.sample_observation(key_x, params, z)

    keys = jax.random.split(jax.random.key(1), 12)
    return generative, params, jax.jit(jax.vmap(observation))(keys)


def _log_p_on_a_grid(generative, params, data, *, num_nodes):
    """log of the integral of p(x, z) over two latents, by midpoints in [-7, 7]^2."""
    nodes = (np.arange(num_nodes) + 0.5) * 14.0 / num_nodes - 7.0
    z = jnp.asarray(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2), data.dtype)
    joint = jax.vmap(
        jax.vmap(lambda x, z: log_joint(generative, params, x, z), (None, 0)), (0, None)
    )
    logs = np.asarray(jax.jit(joint)(data, z), np.float64)
    return special.logsumexp(logs, axis=1) + 2.0 * np.log(14.0 / num_nodes)


# Oracle


@pytest.mark.parametrize("num_latents", [1, 2, 3])
@pytest.mark.slow
def test_log_p_of_a_linear_gaussian_model_is_found_within_the_standard_error(
    num_latents,
):
    problem = problems.linear_gaussian(num_latents=num_latents, num_features=4)
    estimate = hmc_density.hmc_density(
        problem.generative, num_latents=num_latents, num_samples=2_000, num_warmup=300
    )
    x = _observation(4)
    got = jax.jit(estimate)(jax.random.key(2), problem.params, x)
    log_p = problem.log_p(problem.params, x)
    # Draws are correlated: over 100 chains the spread was 1.5 to 2 standard errors.
    assert abs(got.log_p - log_p) < 5 * 2 * got.standard_error
    assert got.standard_error < 0.01
    assert got.effective_sample_size > 1_900
    assert got.pareto_k < 0.7
    np.testing.assert_allclose(got.acceptance, 0.9, atol=0.05)


@pytest.mark.slow
def test_log_p_of_a_nonlinear_model_agrees_with_a_grid():
    generative, params, data = _bernoulli()
    exact = _log_p_on_a_grid(generative, params, data, num_nodes=160)
    coarse = _log_p_on_a_grid(generative, params, data, num_nodes=120)
    np.testing.assert_allclose(exact, coarse, atol=1e-4)
    estimate = hmc_density.hmc_density(
        generative, num_latents=2, num_samples=1_000, num_warmup=300
    )
    run = examples.over_examples(estimate, batch_size=6)
    got = run(jax.random.key(3), params, data)
    assert abs((got.log_p - exact).mean()) < 0.05
    assert (abs(got.log_p - exact) < 0.3).all()
    assert (got.effective_sample_size > 100).all()


@pytest.mark.slow
def test_the_estimate_is_the_reciprocal_mean_over_draws_after_the_fit(x64):
    problem = problems.linear_gaussian(num_latents=2, num_features=3)
    params, x, key = problem.params, _observation(3), jax.random.key(4)
    estimate = hmc_density.hmc_density(problem.generative, shrinkage=1e-9, **SMALL)
    got = jax.jit(estimate)(jax.random.clone(key), params, x)

    def joint(z):
        return log_joint(problem.generative, params, x, z)

    key_start, key_chain = jax.random.split(key)
    start = hmc.start(key_start, problem.generative, params, x, num_draws=200)
    chain = hmc.samples(num_samples=30, num_warmup=20, num_leapfrog=4)
    draws = jax.jit(lambda key, z: chain(key, joint, z))(key_chain, start)
    fitted, new = np.split(np.asarray(draws.positions), 2)
    covariance: Any = np.cov(fitted.T)  # which SciPy's signature takes for an int
    log_q = stats.multivariate_normal.logpdf(new, fitted.mean(0), covariance)
    r = np.exp(log_q - np.asarray(jax.vmap(joint)(new)))
    np.testing.assert_allclose(got.log_p, -np.log(r.mean()), rtol=1e-7)
    np.testing.assert_allclose(
        got.standard_error, r.std(ddof=1) / r.mean() / np.sqrt(15), rtol=1e-6
    )
    np.testing.assert_allclose(
        got.effective_sample_size, r.sum() ** 2 / (r**2).sum(), rtol=1e-6
    )
    np.testing.assert_allclose(got.acceptance, draws.acceptance, rtol=1e-9)
    np.testing.assert_allclose(got.step_size, draws.step_size, rtol=1e-9)


# Statistical


@pytest.mark.slow
def test_one_over_p_hat_is_unbiased_for_one_over_p():
    problem = problems.linear_gaussian(num_latents=1, num_features=2)
    x = _observation(2)
    estimate = hmc_density.hmc_density(
        problem.generative,
        num_latents=1,
        num_samples=30,
        num_warmup=60,
        initial_step_size=0.8,
    )
    keys = jax.random.split(jax.random.key(5), 20_000)
    batched = jax.jit(jax.vmap(estimate, in_axes=(0, None, None)))
    got = batched(keys, problem.params, x)
    excess = np.asarray(got.log_p - problem.log_p(problem.params, x), np.float64)
    testing.assert_mean_equals(np.exp(-excess), 1.0)
    assert (got.effective_sample_size <= 30.0 * (1.0 + 1e-5)).all()


# Transformation and edge


@pytest.mark.slow
def test_likelihoods_far_from_one_neither_overflow_nor_underflow():
    problem = problems.linear_gaussian(num_latents=2, num_features=3)
    generative = problem.generative

    @jax.jit
    def estimate(offset):
        moved = generative._replace(
            log_prior=lambda params, z: generative.log_prior(params, z) + offset
        )
        estimator = hmc_density.hmc_density(moved, **SMALL)
        return estimator(jax.random.key(0), problem.params, _observation(3))

    expected = estimate(0.0)
    for offset in (-2e3, 2e3):
        got = estimate(offset)
        # The offset leaves energies 1e-4 nats of float32: nearly the same draws.
        np.testing.assert_allclose(got.log_p, expected.log_p + offset, rtol=1e-5)
        np.testing.assert_allclose(got[1:], expected[1:], rtol=0.02)


@pytest.mark.slow
def test_jit_and_vmap_agree_with_a_loop(x64):
    problem = problems.linear_gaussian(num_latents=2, num_features=3)
    estimate = hmc_density.hmc_density(problem.generative, **SMALL)
    keys = jax.random.split(jax.random.key(0), 2)
    xs = jax.random.normal(jax.random.key(1), (2, 3))
    got = jax.jit(jax.vmap(estimate, in_axes=(0, None, 0)))(
        jax.random.clone(keys), problem.params, xs
    )
    eager = estimate(jax.random.clone(keys)[0], problem.params, xs[0])
    single = jax.jit(estimate)
    loop = [single(keys[i], problem.params, xs[i]) for i in range(2)]
    for i, expected in [(0, eager), *enumerate(loop)]:
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a[i], b, rtol=1e-7)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_latents", 0),
        ("num_samples", 2),
        ("num_warmup", -1),
        ("num_leapfrog", 0),
        ("target_acceptance", 1.0),
        ("shrinkage", 1.0),
    ],
)
def test_numbers_that_cannot_work_are_refused(name, value):
    generative = problems.linear_gaussian().generative
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        hmc_density.hmc_density(generative, **SMALL | {name: value})
