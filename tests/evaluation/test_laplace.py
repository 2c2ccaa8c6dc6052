import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from tests import problems
from vae_jax import posteriors
from vae_jax.evaluation import laplace
from vae_jax.types import Params, log_joint


def _moments(recognition, params, x, num_latents):
    h = jax.jit(recognition.encode)(params, x)
    mean, scale_tril = posteriors.mean_and_scale_tril(h, num_latents)
    assert (np.diagonal(scale_tril) > 0.0).all()
    return np.asarray(mean), np.asarray(scale_tril @ scale_tril.T)


@pytest.mark.slow
def test_the_posterior_of_a_linear_model_is_found(x64):
    problem = problems.linear_gaussian(num_latents=3, num_features=4, std=1e-3)
    x = jnp.linspace(-3.0, 5.0, 4)
    q = laplace.posterior(problem.generative, num_latents=3, num_steps=3)
    got = _moments(q, problem.params, x, 3)
    for results, wanted in zip(got, problem.posterior(problem.params, x), strict=True):
        np.testing.assert_allclose(results, wanted, rtol=1e-6, atol=1e-9)


def _steep(scale=4.0):
    generative, _ = problems.bernoulli_vae()
    theta = jax.jit(generative.init)(jax.random.key(3))
    params = Params(jax.tree.map(lambda w: scale * w, theta), ())
    return generative, params, jnp.asarray([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])


@pytest.mark.slow
def test_the_mean_is_a_mode_and_the_covariance_is_that_of_its_curvature(x64):
    generative, params, x = _steep()

    @jax.jit
    def below(z):
        return -log_joint(generative, params, x, z)

    q = laplace.posterior(generative, num_latents=2)
    mode, covariance = _moments(q, params, x, 2)
    wanted = optimize.minimize(below, mode + 0.01, jac=jax.jit(jax.grad(below)))
    np.testing.assert_allclose(mode, wanted.x, atol=1e-4)
    curvature = np.linalg.inv(jax.jit(jax.hessian(below))(mode))
    np.testing.assert_allclose(covariance, curvature, rtol=1e-7)


@pytest.mark.slow
def test_steps_go_uphill_from_where_the_density_is_not_concave(x64):
    generative, params, x = _steep()

    def height(z):
        return log_joint(generative, params, x, z)

    starts = jnp.asarray(np.random.default_rng(0).normal(size=(30, 2)) * 3.0)
    curved = jax.jit(jax.vmap(lambda z: jnp.linalg.eigvalsh(jax.hessian(height)(z))))
    assert (curved(starts) > 0.0).any()

    @jax.jit
    @jax.vmap
    def heights(z):
        few = laplace.posterior(
            generative, num_latents=2, start=lambda params, x: z, num_steps=2
        )
        many = laplace.posterior(
            generative, num_latents=2, start=lambda params, x: z, num_steps=25
        )
        ends = [q.encode(params, x)[:2] for q in (few, many)]
        slope = jax.grad(height)(ends[1])
        return height(z), height(ends[0]), height(ends[1]), jnp.abs(slope).max()

    start, few, many, slope = heights(starts)
    assert (few >= start).all()
    assert (many >= few - 1e-9).all()
    np.testing.assert_allclose(slope, 0.0, atol=1e-5)


def test_it_is_a_recognition_model_of_its_normal(x64):
    problem = problems.linear_gaussian(num_latents=2, num_features=3)
    q = laplace.posterior(problem.generative, num_latents=2, num_steps=2)
    params, x = problem.params, jnp.asarray([0.4, -1.0, 0.7])
    assert q.init(jax.random.key(0)) == ()

    @jax.jit
    def by_bayes(key):
        """log p(x) = log p(x, z) - log p(z | x) at any z, where q is the posterior."""
        h = q.encode(params, x)
        z = q.sample(key, params, h)
        joint = log_joint(problem.generative, params, x, z)
        return joint - q.log_prob(params, h, z)

    log_p = problem.log_p(params, x)
    np.testing.assert_allclose(by_bayes(jax.random.key(1)), log_p, rtol=1e-9)


@pytest.mark.slow
def test_steps_to_where_the_density_is_no_number_are_not_taken():
    generative, params, x = _steep()

    def log_prior(params, z):
        return jnp.where(z @ z < 1e-4, 0.0, jnp.nan)

    q = laplace.posterior(
        generative._replace(log_prior=log_prior), num_latents=2, num_steps=5
    )
    mean = jax.jit(q.encode)(params, x)[:2]
    assert 0.0 < mean @ mean < 1e-4


def test_a_step_without_bound_is_not_taken():
    generative, _ = problems.bernoulli_vae()
    kinked = generative._replace(
        log_prior=lambda params, z: -10.0 * jnp.abs(z - 5.0).sum(),
        log_likelihood_terms=lambda params, x, z: jnp.zeros(1),
    )
    start = jnp.array([1.0, 2.0])
    q = laplace.posterior(kinked, num_latents=2, start=lambda params, x: start)
    h = jax.jit(q.encode)(Params((), ()), jnp.zeros((2, 3)))
    mean, _ = posteriors.mean_and_scale_tril(h, 2)
    np.testing.assert_array_equal(mean, start)


def test_numbers_that_cannot_be_are_refused():
    generative, _ = problems.bernoulli_vae()
    with pytest.raises(ValueError, match="num_steps must be positive, got 0"):
        laplace.posterior(generative, num_latents=2, num_steps=0)
    with pytest.raises(ValueError, match="num_latents must be positive, got 0"):
        laplace.posterior(generative, num_latents=0)
