import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests import mixtures
from tests.mixtures import batch_of, rows, run, start
from vae_jax.latent_models import gmm, gmm_moments, gmm_scales

K, D, N = 3, 2, 11


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_moments_are_the_sums_over_rows_under_scipys_posterior(
    x64, covariance, missing
):
    params = mixtures.mixture(covariance)
    tables = gmm_scales.tables(params.generative)
    generator = np.random.default_rng(0)
    x, weight = 3.0 * generator.normal(size=(N, D)), generator.random(N)
    logs = mixtures.expected_log_joints(params, x)
    log_p = np.asarray(special.logsumexp(logs, axis=1))
    r = np.exp(logs - log_p[:, None])
    shares = weight[:, None] * r
    eps = np.empty((N, K, D))
    for k, normal in enumerate(mixtures.normals(params)[1]):
        factor = np.linalg.cholesky(mixtures.covariance_of(normal))
        eps[:, k] = np.linalg.solve(factor, (x - normal.mean).T).T
    second = np.einsum("nk,nki,nkj->kij", shares, eps, eps)
    if covariance == "diag":
        second = np.diagonal(second, axis1=1, axis2=2)
    got = jax.jit(
        lambda x, weight: gmm_moments.over_rows(
            tables, x, weight, block_size=4, missing=missing
        )
    )(jnp.asarray(x), jnp.asarray(weight))
    np.testing.assert_allclose(got.n, shares.sum(0), rtol=1e-9)
    np.testing.assert_allclose(got.b, np.einsum("nk,nki->ki", shares, eps), rtol=1e-9)
    np.testing.assert_allclose(got.second, second, rtol=1e-9)
    entropy = -(shares * np.log(r)).sum()
    np.testing.assert_allclose(got.entropy, entropy, rtol=1e-9)
    for name in ("bound", "log_p"):
        value = getattr(got, name)
        np.testing.assert_allclose(value, (weight * log_p).sum(), rtol=1e-9)
    np.testing.assert_allclose(got.total, weight.sum(), rtol=1e-12)


@pytest.mark.slow
def test_far_from_zero_float32_keeps_the_digits_of_the_deviations():
    x = np.random.default_rng(0).normal(size=(50, D)) + 4096.0
    x = np.round(x * 256) / 256  # exact in float32
    mean = np.array([[4095.0, 4096.0], [4097.0, 4096.0]])
    ends = []
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            eye = jnp.tile(jnp.eye(D, dtype=dtype), (2, 1, 1))
            logits, mean_k = jnp.zeros(2, dtype), jnp.asarray(mean, dtype)
            got = gmm_moments.over_rows(
                gmm_scales.Tables(logits, mean_k, eye),
                jnp.asarray(x, dtype),
                jnp.ones(50, dtype),
                block_size=20,
                missing=False,
            )
            ends.append(jax.tree.map(lambda a: np.asarray(a, np.float64), got))
    chex.assert_trees_all_close(*ends, rtol=1e-5)


@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.slow
def test_data_sets_over_devices_are_fitted_as_side_by_side(covariance):
    data = jnp.stack([jnp.asarray(rows(num_rows=40, seed=s)[0]) for s in (0, 1)])

    def fit(x):
        params = start(x, covariance=covariance)
        return run(gmm.em(block_size=16), params, batch_of(x), 3)[1].log_p

    mesh = jax.make_mesh((2,), ("sets",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.P("sets")
    shared = jax.shard_map(jax.vmap(fit), mesh=mesh, in_specs=split, out_specs=split)
    got = jax.jit(shared)(data)
    np.testing.assert_allclose(got, jax.jit(jax.vmap(fit))(data), rtol=1e-5)
