"""EM on data that leave a component no rows or a covariance no width."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import mixtures
from tests.mixtures import (
    assert_finite,
    batch_of,
    mean_log_p,
    rows,
    run,
    start,
    with_holes,
)
from vae_jax.latent_models import gmm
from vae_jax.types import Params

SLOW = pytest.mark.slow


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
            np.linalg.eigvalsh(mixtures.covariance_of(n))
            for n in mixtures.normals(state.params)[1]
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
    for normal in mixtures.normals(state.params)[1]:
        np.testing.assert_allclose(normal.mean, 1.0)
        got = mixtures.covariance_of(normal)
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
    logits = jnp.arange(float(len(params.generative["logits"])))
    params = Params(params.generative | {"logits": logits}, ())
    state, info = run(gmm.em(), params, batch_of(x, np.zeros(len(x))), 2)
    for name in ("logits", "mean", "scale_tril"):
        np.testing.assert_array_equal(
            state.params.generative[name], params.generative[name]
        )
    for name in ("bound_after_e_step", "bound_after_m_step", "log_p"):
        np.testing.assert_array_equal(getattr(info, name), np.zeros(2))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, pytest.param(1e-3, marks=pytest.mark.slow)])
def test_weights_below_one_give_the_fit_of_equal_weights(x64, share):
    """Starts and collapse are told by rows, which weights of 1/N must not all be."""
    x, algorithm = rows(num_rows=60)[0], gmm.em()
    ends = []
    for weight in (np.ones(60), np.full(60, share)):
        params = start(x, weight=jnp.asarray(weight))
        ends.append(run(algorithm, params, batch_of(x, weight), 5))
        assert not ends[-1][1].num_collapsed.any()
    chex.assert_trees_all_close(
        *[(state.params.generative, info) for state, info in ends],
        rtol=1e-9,
        atol=1e-10,
    )


# float32 at the floor


_ESTIMATE = jax.jit(gmm.maximum_likelihood, static_argnames="covariance")


def normals_rows(num_rows, num_features, scale, *, seed=0):
    shape = (num_rows, num_features)
    return np.random.default_rng(seed).normal(scale=scale, size=shape)


def greatest_log_p(x, floor):
    """Mean log-density of one normal at its greatest under eigenvalues >= floor."""
    sample = np.linalg.eigvalsh(np.cov(x.T, bias=True))
    raised = np.maximum(sample, floor)
    return -0.5 * (np.log(2.0 * np.pi * raised) + sample / raised).sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    "covariance", ["full", pytest.param("tied", marks=pytest.mark.slow)]
)
def test_fewer_rows_than_features_end_at_the_greatest_likelihood(covariance):
    x = normals_rows(4, 6, 10.0, seed=2).astype(np.float32)
    params = start(x, num_components=1, covariance=covariance)
    _, info = run(gmm.em(), params, batch_of(x), 50)
    greatest = greatest_log_p(x.astype(float), 1e-6)
    np.testing.assert_allclose(info.log_p[3:], greatest, atol=1e-4)
    assert info.num_at_floor[-1] == 1
    # In one step too, where the rows' components are observed.
    params = _ESTIMATE(jnp.asarray(x), jnp.ones((4, 1, 1)), covariance=covariance)
    np.testing.assert_allclose(mean_log_p(params, x), greatest, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "holes",
    [None, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.0, 0.2))],
)
def test_em_rises_to_rounding_where_every_covariance_is_at_the_floor(holes):
    x = normals_rows(25, 10, 10.0).astype(np.float32)
    if holes:
        x = with_holes(x, holes).astype(np.float32)
    params = start(x, num_components=8)
    algorithm = gmm.em(missing=holes is not None)
    _, info = run(algorithm, params, batch_of(x), 60)
    assert info.num_at_floor[-1] == 8
    log_p, after = np.asarray(info.log_p), np.asarray(info.bound_after_m_step)
    assert np.diff(log_p).min() > -1e-4
    assert (after - log_p).min() > -1e-4
    assert log_p[-1] > log_p[0] + 10.0


@pytest.mark.slow
@pytest.mark.parametrize("missing", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "covariance",
    [
        "full",
        "diag",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("tied", "spherical")),
    ],
)
def test_rows_of_any_size_have_the_fit_of_rows_near_one(covariance, missing):
    """Squares of 2^60 overflow in float32, in which 400 of them are no number."""
    unit, rows = 2.0**60, normals_rows(400, 4, 1.0).astype(np.float32)
    ends = []
    for scale in (1.0, unit):
        x = scale * rows
        variance = 1e-12 * scale**2
        params = start(x, covariance=covariance, min_variance=variance)
        algorithm = gmm.em(min_variance=variance, missing=missing)
        state, info = run(algorithm, params, batch_of(x), 10)
        log_p = np.asarray(info.log_p) + 4.0 * np.log(scale)
        ends.append((log_p, state.params.generative["mean"] / scale))
    np.testing.assert_allclose(ends[1][0], ends[0][0], rtol=1e-5)
    np.testing.assert_allclose(ends[1][1], ends[0][1], atol=1e-4)
    params = _ESTIMATE(
        jnp.asarray(unit * rows), jnp.ones((400, 1, 1)), covariance=covariance
    )
    sample = np.cov(unit * rows.T.astype(float), bias=True)
    got = mixtures.covariance_of(mixtures.normals(params)[1][0])
    np.testing.assert_allclose(np.trace(got), np.trace(sample), rtol=1e-5)


@pytest.mark.slow
def test_the_floor_that_float32_resolves_follows_each_features_unit():
    # Rows of one component in units of 1e6 and 0.1, and a feature that never varies.
    x = normals_rows(200, 4, np.array([1e6, 0.1, 1e3, 0.0]), seed=3)
    x[:, 2] = 1e-3 * x[:, 0]
    params = start(x.astype(np.float32), num_components=1)
    state, info = run(gmm.em(), params, batch_of(x.astype(np.float32)), 20)
    np.testing.assert_allclose(np.diff(info.log_p)[5:], 0.0, atol=1e-2)
    factor = np.asarray(state.params.generative["scale_tril"][0], np.float64)
    sigma = factor @ factor.T
    stds = np.sqrt(np.diagonal(sigma))
    np.testing.assert_allclose(stds[:3], x.std(0)[:3], rtol=1e-3)
    np.testing.assert_allclose(stds[3], 1e-3, rtol=1e-3)
    # What is left of the third feature, beside the first, is 128 eps of its own.
    left = 128.0 * np.finfo(np.float32).eps * x[:, 2].std()
    inside = np.linalg.inv(sigma[:3, :3])[2, 2] ** -0.5
    assert left / 2.0 < inside < 2.0 * left


@pytest.mark.slow
@pytest.mark.parametrize(
    "covariance", ["full", pytest.param("diag", marks=pytest.mark.slow)]
)
def test_a_row_alone_far_from_the_rest_is_as_wide_as_float32_resolves(covariance):
    x = normals_rows(60, 3, 1.0).astype(np.float32)
    x[0] = [3e5, -2e5, 1e5]
    params = start(x, num_components=2, covariance=covariance)
    state, info = run(gmm.em(), params, batch_of(x), 20)
    assert np.diff(info.log_p).min() > -1e-2
    alone = int(np.argmax(np.abs(state.params.generative["mean"][:, 0])))
    sigma = mixtures.covariance_of(mixtures.normals(state.params)[1][alone])
    least = 16.0 * np.finfo(np.float32).eps * np.abs(x[0] - x.mean(0))
    np.testing.assert_allclose(np.sqrt(np.diagonal(sigma)), least, rtol=0.05)
