"""Likelihoods made of others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import problems
from vae_jax import likelihood_transforms, likelihoods, networks, priors, vae


def test_standardizing_changes_no_log_p_of_the_same_model(x64):
    """x in units of its own and y = (x - center) / scale, of one linear model."""
    problem = problems.linear_gaussian(num_features=2, std=0.8)
    center, scale = np.array([1000.0, -3.0]), np.array([50.0, 0.01])
    observed = likelihood_transforms.rescaled(
        likelihoods.normal((2,), std=0.8), center=center, scale=scale
    )
    decoder = networks.linear(1, 2)
    generative = vae.decoder_model(decoder, priors.standard_normal(1), observed)
    y, z = jnp.array([0.3, -1.2]), jnp.array([0.5])
    x = jnp.asarray(center + scale * y)
    terms = generative.log_likelihood_terms(problem.params, x, z)
    standardized = problem.generative.log_likelihood_terms(problem.params, y, z)
    # The mean and std of x, in its own units, without any scaling.
    mean = center + scale * problem.generative.mean_observation(problem.params, z)
    np.testing.assert_allclose(terms, stats.norm.logpdf(x, mean, 0.8 * scale))
    np.testing.assert_allclose(terms + np.log(scale), standardized)
    key = jax.random.key(0)
    draws = [
        p.sample_observation(jax.random.clone(key), problem.params, z)
        for p in (generative, problem.generative)
    ]
    np.testing.assert_allclose(draws[0], center + scale * draws[1])


def test_what_makes_no_likelihood_is_refused():
    normal = likelihoods.normal((2,), std=1.0)
    for parts in ([], [(normal, (0, 2))], [(normal, (0, 1)), (normal, (1, 2))]):
        with pytest.raises(ValueError, match="parts must have every column"):
            likelihood_transforms.columns(parts)
    with pytest.raises(ValueError, match=r"scale must lie in \(0, inf\), got 0"):
        likelihood_transforms.rescaled(normal, center=0.0, scale=[1.0, 0.0])
    scaled = likelihood_transforms.rescaled(
        likelihoods.bernoulli((2,)), center=0, scale=2
    )
    with pytest.raises(ValueError, match="a log-likelihood has no scale"):
        scaled.quantity(np.array([[0.0, 2.0]]))
    with pytest.raises(ValueError, match=r"start must have the 2 entries .* \(3,\)"):
        likelihood_transforms.around(normal, np.zeros(3))


def test_a_part_that_does_not_factorize_is_refused():
    pair = likelihoods.likelihood(
        (2,),
        width=1,
        sample=lambda key, params, h: jnp.zeros(2),
        mean=lambda params, h: jnp.zeros(2),
        log_prob_terms=lambda params, h, x: x.sum(keepdims=True),
        quantity=lambda x: "log-density",
    )
    table = likelihood_transforms.columns([(pair, (0, 1))])
    with pytest.raises(ValueError, match=r"part of 2 columns has terms of \(1,\)"):
        table.log_prob_terms(((),), jnp.zeros(1), jnp.zeros(2))
