"""EM on data that leave a component no rows or a covariance no width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.latent_models import test_gmm
from tests.latent_models.test_gmm_em import assert_finite, batch_of, rows, run, start
from vae_jax.latent_models import gmm, gmm_scales
from vae_jax.types import Params

COVARIANCES = gmm_scales.COVARIANCES


@pytest.mark.parametrize(
    ("covariance", "dtype"),
    [
        ("full", jnp.float32),
        ("full", jnp.float64),
        ("tied", jnp.float32),
        ("diag", jnp.float32),
        ("spherical", jnp.float32),
    ],
)
@pytest.mark.slow
def test_duplicates_and_constant_features_leave_the_floor(covariance, dtype):
    x = np.repeat(np.random.default_rng(0).normal(size=(6, 3)), 5, 0)
    x[:, 1] = 2.0
    x[:, 0] *= 100.0
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(x, dtype)
        params = start(x, num_components=8, covariance=covariance)
        algorithm = gmm.em(min_variance=1e-4)
        state, info = run(algorithm, params, batch_of(x), 20)
        assert_finite(state)
        assert_finite(info)
        if covariance != "spherical":
            assert info.num_at_floor[-1] > 0
        values = [
            np.linalg.eigvalsh(test_gmm.covariance_of(n))
            for n in test_gmm.normals(state.params)[1]
        ]
        assert np.min(values) > 0.5e-4


@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.slow
def test_identical_rows_leave_every_component_at_the_floor(covariance):
    x = jnp.ones((10, 2))
    params = start(x, num_components=2, covariance=covariance)
    state, info = run(gmm.em(min_variance=1e-3), params, batch_of(x), 3)
    assert_finite(state)
    # k-means++ gives all rows to the first of two equal means, and the other one less
    # than a row.
    assert info.num_at_floor[-1] == info.num_collapsed[-1] == 1
    for normal in test_gmm.normals(state.params)[1]:
        np.testing.assert_allclose(normal.mean, 1.0)
        got = test_gmm.covariance_of(normal)
        np.testing.assert_allclose(got, 1e-3 * np.eye(2), rtol=1e-3, atol=1e-8)


@pytest.mark.slow
def test_the_floor_clips_eigenvalues_and_the_bound_still_rises(x64):
    x = rows()[0] * np.array([1.0, 1.0, 0.01])
    floor = 0.04
    params = start(x, min_variance=floor)
    _, info = run(gmm.em(min_variance=floor), params, batch_of(x), 30)
    assert info.num_at_floor[-1] == 3
    log_p, after = np.asarray(info.log_p), np.asarray(info.bound_after_m_step)
    assert (log_p <= after + 1e-12).all()
    assert (after[:-1] <= log_p[1:] + 1e-12).all()
    # One component: the clipped covariance of the rows.
    params = start(x, num_components=1, min_variance=floor)
    state, _ = run(gmm.em(min_variance=floor), params, batch_of(x), 2)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    assert values[0] < floor
    factor = state.params.generative["scale_tril"][0]
    np.testing.assert_allclose(
        factor @ factor.T, (vectors * np.maximum(values, floor)) @ vectors.T, rtol=1e-9
    )
    np.testing.assert_array_equal(np.triu(factor, 1), 0.0)
    assert (np.diagonal(factor) > 0.0).all()


@pytest.mark.parametrize("covariance", ["full", "tied", "diag"])
@pytest.mark.slow
def test_a_component_with_less_than_a_row_keeps_its_place_and_is_counted(covariance):
    x = rows()[0].astype(np.float32)
    theta = start(x, covariance=covariance).generative
    theta["mean"] = theta["mean"].at[2].set(1e4)
    state, info = run(gmm.em(), Params(theta, ()), batch_of(x), 5)
    np.testing.assert_array_equal(info.num_collapsed, np.ones(5))
    assert_finite(state)
    assert_finite(info)
    np.testing.assert_array_equal(state.params.generative["mean"][2], np.full(3, 1e4))
    if covariance != "tied":
        for name in {"scale_tril", "log_std"} & set(theta):
            np.testing.assert_array_equal(
                state.params.generative[name][2], theta[name][2]
            )
    assert np.diff(info.log_p).min() > -1e-5


@pytest.mark.slow
def test_a_batch_without_weight_leaves_the_mixture_where_it_is():
    x = rows()[0].astype(np.float32)
    params = start(x)
    state, info = run(gmm.em(), params, batch_of(x, np.zeros(len(x))), 2)
    assert_finite(state)
    assert_finite(info)
    for name in ("mean", "scale_tril"):
        np.testing.assert_array_equal(
            state.params.generative[name], params.generative[name]
        )


@pytest.mark.parametrize("share", [1e-3, 0.5])
def test_weights_below_one_give_the_fit_of_equal_weights(x64, share):
    """Starts and collapse are told by rows, which weights of 1/N must not all be."""
    x = rows(num_rows=60)[0]
    ends = []
    for weight in (np.ones(60), np.full(60, share)):
        params = start(x, weight=jnp.asarray(weight))
        ends.append(run(gmm.em(), params, batch_of(x, weight), 5))
        assert not ends[-1][1].num_collapsed.any()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10),
        *[(state.params.generative, info) for state, info in ends],
    )
