from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vae_jax.latent_models import gmm_missing

NORMAL: Any = stats.multivariate_normal  # its stub takes the covariance for an int
MEAN = np.array([1.0, -2.0, 0.5])
FACTOR = np.array([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.4, 0.6, 2.0]])
SIGMA = FACTOR @ FACTOR.T
ROWS = [[0.3, 1.0, -1.0], [np.nan, 1.0, -1.0], [0.3, np.nan, np.nan], [np.nan] * 3]


@pytest.mark.parametrize("row", ROWS)
def test_completion_is_the_conditional_normal(x64, row):
    row = np.array(row)
    seen, lost = np.flatnonzero(~np.isnan(row)), np.flatnonzero(np.isnan(row))
    arguments = jnp.asarray(FACTOR), jnp.asarray(MEAN), jnp.asarray(row)
    got = jax.jit(gmm_missing.complete)(*arguments)
    inside = np.linalg.inv(SIGMA[np.ix_(seen, seen)])
    gain = SIGMA[np.ix_(lost, seen)] @ inside
    deviation = np.where(np.isnan(row), 0.0, row - MEAN)
    deviation[lost] = gain @ deviation[seen]
    covariance = np.zeros((3, 3))
    covariance[np.ix_(lost, lost)] = (
        SIGMA[np.ix_(lost, lost)] - gain @ SIGMA[np.ix_(seen, lost)]
    )
    log_p = entropy = 0.0
    if len(seen):
        part = MEAN[seen], SIGMA[np.ix_(seen, seen)]
        log_p = NORMAL.logpdf(row[seen], *part)
    if len(lost):
        normal = NORMAL(cov=covariance[np.ix_(lost, lost)])
        entropy = normal.entropy()
    np.testing.assert_allclose(FACTOR @ got.eps, deviation, rtol=1e-9, atol=1e-14)
    unwhitened = FACTOR @ got.covariance @ FACTOR.T
    np.testing.assert_allclose(unwhitened, covariance, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(got.terms.sum(), log_p, rtol=1e-9)
    np.testing.assert_array_equal(got.terms[lost], 0.0)
    np.testing.assert_allclose(got.entropy, entropy, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(
        gmm_missing.observed_terms(*arguments), got.terms, rtol=1e-12
    )


def test_the_observed_factor_is_the_submatrix_with_ones_between(x64):
    observed = jnp.array([True, False, True])
    factor = gmm_missing.observed_factor(jnp.asarray(FACTOR), observed)
    small = np.linalg.cholesky(SIGMA[np.ix_([0, 2], [0, 2])])
    wanted = np.eye(3)
    wanted[np.ix_([0, 2], [0, 2])] = small
    np.testing.assert_allclose(factor, wanted, rtol=1e-12)


@pytest.mark.slow
def test_float32_keeps_the_thin_directions_of_incomplete_rows():
    # Standard deviations 10 and 0.001: the covariance itself would lose the second.
    generator = np.random.default_rng(0)
    turn = np.linalg.qr(generator.normal(size=(4, 4)))[0]
    sigma = (turn * np.array([10.0, 3.0, 1e-3, 1e-3]) ** 2) @ turn.T
    factor = np.linalg.cholesky(sigma).astype(np.float32)
    formed = np.diagonal(jnp.linalg.cholesky(jnp.asarray(factor @ factor.T)))
    assert np.abs(np.log(formed) - np.log(np.diagonal(factor))).max() > 0.1
    for lost in ([], [0], [1, 3]):
        row = (factor @ generator.normal(size=4)).astype(np.float32)
        row[lost] = np.nan
        ends = []
        for dtype in (jnp.float32, jnp.float64):
            with jax.enable_x64(dtype == jnp.float64):
                arguments = (jnp.asarray(a, dtype) for a in (factor, np.zeros(4), row))
                got = gmm_missing.complete(*arguments)
                ends.append(jax.tree.map(lambda a: np.asarray(a, np.float64), got))
        chex.assert_trees_all_close(*ends, rtol=1e-7, atol=0.02)
