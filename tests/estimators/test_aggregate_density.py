import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vae_jax.estimators import aggregate_density

N = 6


@pytest.mark.parametrize("size", [2, 3, 6])
def test_stratified_weights_are_unbiased_over_every_batch(x64, size):
    """The mean weight of every row at a sample of the first is 1/N, its own too."""
    log_weights = aggregate_density.stratified(num_data=N)(jnp.ones(size))
    weights, total = np.exp(np.asarray(log_weights)), np.zeros(N)
    batches = list(itertools.combinations(range(1, N), size - 1))
    for others in batches:
        for place in range(size):  # of the first row in the batch
            rows = [*others[:place], 0, *others[place:]]
            total[rows] += weights[place] / (size * len(batches))
    np.testing.assert_allclose(total, np.full(N, 1.0 / N), rtol=1e-14)


def test_weights_of_rows_count_as_copies_and_rows_of_none_are_not_there(x64):
    build = aggregate_density.SAMPLING
    for name in ("stratified", "weighted"):
        log_weights = build[name](num_data=9)
        got = np.exp(log_weights(jnp.array([2.0, 1.0, 0.0])))[:2]
        copied = np.exp(log_weights(jnp.ones(3)))  # rows 0, 0, 1
        expected = np.stack([copied[0, :2].sum(), copied[0, 2]])
        np.testing.assert_allclose(got[0], [*expected, 0.0], rtol=1e-14)
        expected = np.stack([copied[2, :2].sum(), copied[2, 2]])
        np.testing.assert_allclose(got[1], [*expected, 0.0], rtol=1e-14)
        assert np.isfinite(log_weights(jnp.zeros(3))).any(axis=1).all()


@pytest.mark.slow
def test_weighted_sampling_of_equal_posteriors_is_log_n_too_small(x64):
    z, same = jnp.array([0.3, -1.0, 0.2]), jnp.zeros((4, 3))
    log_weights = aggregate_density.weighted(num_data=50)(jnp.ones(4))
    log_q, each = aggregate_density.log_density(z, same, same, log_weights[0])
    exact = stats.norm.logpdf(z)
    np.testing.assert_allclose(log_q, exact.sum() - math.log(50), rtol=1e-12)
    got = aggregate_density.parts(log_q, each, jnp.sum(exact), jnp.sum(exact))
    np.testing.assert_allclose(got.total_correlation, 2 * math.log(50), rtol=1e-12)


def test_the_total_correlation_of_a_correlated_normal_is_that_of_its_correlation(x64):
    """-1/2 log det corr, of normals on a fine grid that weighs them by a normal."""
    nodes = np.stack(np.meshgrid(*2 * [np.linspace(-6, 6, 41)]), axis=-1).reshape(-1, 2)
    tril, std = np.array([[1.0, 0.0], [0.7, 0.6]]), 0.5
    log_p = stats.norm.logpdf(nodes).sum(1)
    log_weights = jnp.asarray(log_p - np.logaddexp.reduce(log_p))
    mean, log_std = jnp.asarray(nodes @ tril.T), jnp.full((1681, 2), math.log(std))
    covariance = tril @ tril.T + std**2 * np.eye(2)
    z = jnp.asarray(nodes @ np.linalg.cholesky(covariance).T)

    def at(z):
        return aggregate_density.log_density(z, mean, log_std, log_weights)

    log_q, each = jax.jit(jax.vmap(at))(z)
    of_z: Any = covariance
    normal = stats.multivariate_normal(np.zeros(2), of_z)
    near = np.abs(nodes).max(axis=1) < 4
    np.testing.assert_allclose(log_q[near], normal.logpdf(z)[near], atol=1e-8)
    got = np.exp(log_weights) @ np.asarray(log_q - each.sum(axis=1))
    scales = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(scales, scales)
    exact = -0.5 * np.linalg.slogdet(correlation)[1]
    assert exact > 0.2
    np.testing.assert_allclose(got, exact, atol=1e-6)


@pytest.mark.slow
def test_independent_latents_have_no_total_correlation(x64):
    mean = np.array(list(itertools.product([-1.0, 0.2, 3.0], [0.5, -2.0])))
    log_std = np.array(list(itertools.product([0.1, -0.4, 0.0], [-1.0, 0.3])))
    arrays = jnp.asarray(mean), jnp.asarray(log_std)
    log_weights = aggregate_density.stratified(num_data=6)(jnp.ones(6))[0]
    z = jnp.array([0.4, -0.7])
    log_q, each = aggregate_density.log_density(z, *arrays, log_weights)
    np.testing.assert_allclose(log_q, each.sum(), rtol=1e-12)
    mixture = stats.norm.pdf(z[0], mean[:, 0], np.exp(log_std[:, 0])).mean()
    np.testing.assert_allclose(each[0], math.log(mixture), rtol=1e-12)


@pytest.mark.parametrize("name", aggregate_density.SAMPLING)
def test_a_data_set_of_no_rows_is_refused(name):
    with pytest.raises(ValueError, match="num_data must be positive, got 0"):
        aggregate_density.SAMPLING[name](num_data=0)
