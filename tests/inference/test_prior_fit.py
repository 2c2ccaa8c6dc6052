"""A prior fitted after training reaches what is known of the aggregate posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems, testing
from vae_jax import likelihoods, networks, priors, vae
from vae_jax.estimators import sgvb
from vae_jax.inference import prior_fit
from vae_jax.training import gradient
from vae_jax.types import Batch, Params, per_example

NUM_ROWS = 16


def _aggregate(problem, x):
    """Mean and variance of z ~ q(z | x) over the rows, one latent."""
    h = jax.vmap(problem.recognition.encode, (None, 0))(problem.params, x)
    mean, variance = np.asarray(h[:, 0]), np.exp(2.0 * np.asarray(h[:, 1]))
    return mean.mean(), mean.var() + variance.mean()


def _with_normal(problem):
    """The problem's model with a learned normal prior, and its parameters."""
    prior = priors.normal_mixture(1, 1)
    generative = vae.decoder_model(
        networks.linear(1, 2), prior, likelihoods.normal((2,), std=0.8)
    )
    model = vae.model(generative, problem.recognition)
    start = prior.init(jax.random.key(3))
    return model, prior_fit.with_prior(problem.params, start)


@pytest.mark.slow
@pytest.mark.uses_optax
def test_a_normal_is_fitted_to_the_moments_of_the_aggregate_posterior(x64):
    """The KL then falls by what the closed forms of both priors say."""
    problem = problems.linear_gaussian()
    x = jnp.asarray(np.random.default_rng(0).normal(1.0, 1.5, size=(NUM_ROWS, 2)))
    model, params = _with_normal(problem)
    objective = per_example(prior_fit.log_prior_of_code(model, params))
    rate, size = optax.cosine_decay_schedule(0.05, 1000), 64 * NUM_ROWS
    algorithm = gradient.ascent(objective, optax.adam(rate))
    batch = Batch(jnp.tile(x, (64, 1)), jnp.arange(size), jnp.ones(size))
    start = algorithm.init(jax.random.key(0), Params(params.generative["prior"], ()))

    @jax.jit
    def fitted(state):
        def step(state, key):
            return algorithm.step(key, state, batch)[0], None

        keys = jax.random.split(jax.random.key(1), 1000)
        return jax.lax.scan(step, state, keys)[0].params.generative

    prior = fitted(start)
    mean, variance = _aggregate(problem, x)
    np.testing.assert_allclose(prior["mean"][0, 0], mean, atol=0.03)
    np.testing.assert_allclose(np.exp(2.0 * prior["log_std"]), variance, rtol=0.03)
    new = prior_fit.with_prior(params, prior)
    terms = jax.vmap(sgvb.elbo_terms(model, num_samples=2000), (0, None, 0))
    keys = jax.random.split(jax.random.key(2), NUM_ROWS)
    _, kl = jax.jit(terms)(keys, new, x)
    old = np.mean([problem.kl(problem.params, row) for row in x])
    gain = 0.5 * (variance + mean**2 - 1.0 - np.log(variance))
    assert gain > 0.3
    np.testing.assert_allclose(kl.mean(), old - gain, atol=0.03)


def test_the_value_is_the_priors_log_density_at_a_draw_of_q(x64):
    problem = problems.linear_gaussian()
    model, params = _with_normal(problem)
    x, prior = jnp.array([0.4, -1.0]), Params(params.generative["prior"], ())
    log_prior = prior_fit.log_prior_of_code(model, params)
    values, slopes = testing.draws(log_prior, prior, x)
    h = problem.recognition.encode(params, x)
    mean, variance = h[0], jnp.exp(2.0 * h[1])
    middle, scale = prior.generative["mean"][0, 0], prior.generative["log_std"][0, 0]

    def exact(middle, scale):
        square = variance + (mean - middle) ** 2
        return -0.5 * (square * jnp.exp(-2.0 * scale) + np.log(2 * np.pi)) - scale

    testing.assert_mean_equals(values, exact(middle, scale))
    of_mean, of_scale = jax.grad(exact, (0, 1))(middle, scale)
    testing.assert_mean_equals(slopes.generative["mean"][:, 0, 0], of_mean)
    testing.assert_mean_equals(slopes.generative["log_std"][:, 0, 0], of_scale)
