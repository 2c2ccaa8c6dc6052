import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import mixtures
from vae_jax.latent_models import gmm, gmm_scales
from vae_jax.types import Batch

K, D, N = 3, 2, 7
COVARIANCES = gmm_scales.COVARIANCES


def _tables(covariance):
    return gmm_scales.tables(mixtures.mixture(covariance).generative)


def _sigma(scale):
    """Covariances [K, D, D] of a scale of either kind."""
    scale = np.asarray(scale)
    if scale.ndim == 3:
        sigma = scale @ np.swapaxes(scale, 1, 2)
    else:
        sigma = np.exp(2 * scale)[:, :, None] * np.eye(D)
    return np.broadcast_to(sigma, (K, D, D))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_parameters_and_tables_are_inverse_and_keep_the_type(covariance):
    theta = mixtures.mixture(covariance).generative
    assert gmm_scales.covariance_of(theta) == covariance
    again = gmm_scales.parameters(gmm_scales.tables(theta), covariance=covariance)
    chex.assert_trees_all_equal(theta, again)
    unit = gmm_scales.unit(theta["mean"], covariance=covariance)
    assert unit.shape == gmm_scales.tables(theta).scale.shape
    np.testing.assert_array_equal(_sigma(unit), np.tile(np.eye(D), (K, 1, 1)))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_every_component_has_a_covariance_of_its_own(x64, covariance):
    theta = mixtures.mixture(covariance).generative
    got = gmm_scales.covariances(theta)
    assert got.shape == (K, D, D)
    np.testing.assert_allclose(got, _sigma(_tables(covariance).scale), rtol=1e-12)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), theta)
    assert gmm_scales.covariances(single).dtype == jnp.float32


@pytest.mark.parametrize("size", [1, 2, 8, 9, 20, 33])
def test_the_inverse_of_a_factor_keeps_the_digits_of_every_row(size):
    """Rows of scales far apart, in float32, against the inverse in double precision."""
    random = np.random.default_rng(size)
    lower = np.tril(random.normal(size=(4, size, size))) * 0.3 + 2.0 * np.eye(size)
    scale = np.exp(5.0 * random.normal(size=size))
    factors = (lower * scale[:, None]).astype(np.float32)
    got = np.asarray(jax.jit(gmm_scales.inverse)(jnp.asarray(factors)), np.float64)
    expected = np.linalg.inv(factors.astype(np.float64))
    np.testing.assert_allclose(got * scale, expected * scale, atol=1e-6)
    np.testing.assert_array_equal(np.triu(got, 1), 0.0)


def test_no_step_of_em_solves_batches_by_lapack():
    """Two such solves side by side would wait for each other on two threads."""
    mixture = mixtures.mixture("full", num_components=2, num_features=20)
    algorithm = gmm.em()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 20)), jnp.float32)
    state = algorithm.init(jax.random.key(0), mixture)
    batch = Batch(x, jnp.arange(50), jnp.ones(50))
    step = jax.jit(algorithm.step).lower(jax.random.key(1), state, batch).compile()
    text = step.as_text() or ""
    assert "potrf" in text  # whose calls depend on each other
    assert "trsm" not in text


@pytest.mark.slow
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_whitened_moments_are_those_of_the_rows(x64, covariance):
    _, mean, scale = _tables(covariance)
    kind, generator = gmm_scales.kind(scale), np.random.default_rng(0)
    x, shares = generator.normal(size=(N, D)), generator.random((K, N))
    eps = kind.whiten(scale, mean, jnp.asarray(x.T))
    assert eps.shape == (K, D, N)
    sigma = _sigma(scale)
    deviation = x.T[None] - np.asarray(mean)[:, :, None]
    distance = np.einsum("kir,kij,kjr->kr", deviation, np.linalg.inv(sigma), deviation)
    np.testing.assert_allclose((eps**2).sum(1), distance, rtol=1e-9)
    back = kind.unwhiten(scale, eps[:, :, 0])
    np.testing.assert_allclose(back, deviation[:, :, 0], rtol=1e-9)
    log_det = np.broadcast_to(kind.log_det(scale, D), (K,))
    np.testing.assert_allclose(log_det, 0.5 * np.linalg.slogdet(sigma)[1], rtol=1e-9)

    # Moments about other means, by shifting and from the rows.
    shift = jnp.asarray(generator.normal(size=(K, D)))
    second = kind.second_moments(scale, jnp.asarray(shares), eps)
    b = (jnp.asarray(shares)[:, None] * eps).sum(2)
    about = kind.about(second, jnp.asarray(shares.sum(1)), b, shift)
    direct = kind.second_moments(scale, jnp.asarray(shares), eps - shift[:, :, None])
    assert about.shape == scale.shape
    np.testing.assert_allclose(about, direct, rtol=1e-9)

    # Distances under another scale, from the moments and from the rows.
    new = scale + 0.3 * kind.identity(scale)
    moved = deviation - np.asarray(kind.unwhiten(scale, shift))[:, :, None]
    wanted = np.einsum(
        "kr,kir,kij,kjr->", shares, moved, np.linalg.inv(_sigma(new)), moved
    )
    np.testing.assert_allclose(kind.quadratic(new, scale, about, D), wanted, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_rescaling_gives_the_covariance_of_the_variance(x64, covariance):
    scale = _tables(covariance).scale
    kind = gmm_scales.kind(scale)
    factor = scale + 0.5 * kind.identity(scale)
    variance = factor @ factor.mT if scale.ndim == 3 else jnp.exp(factor)
    shape = (scale.shape[0], D) if scale.ndim == 3 else scale.shape
    least_std = jnp.full(shape, 1e-3)
    settings = {"least_std": least_std, "added_variance": 0.25}
    new, at_floor = kind.rescale(scale, variance, variance, **settings)
    if scale.ndim == 3:
        wanted = np.asarray(scale @ variance @ scale.mT)
    else:
        wanted = _sigma(scale + 0.5 * jnp.log(variance))
    wanted = wanted + 0.25 * np.eye(D)
    np.testing.assert_allclose(
        _sigma(new), np.broadcast_to(wanted, (K, D, D)), rtol=1e-9
    )
    assert not at_floor.any()
    low, at_floor = kind.rescale(
        scale,
        1e-12 * variance,
        1e-12 * variance,
        least_std=100.0 * least_std,
        added_variance=0.0,
    )
    assert at_floor.all()
    np.testing.assert_allclose(
        _sigma(low), np.tile(0.01 * np.eye(D), (K, 1, 1)), atol=1e-12
    )


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_floor_is_what_is_asked_or_what_the_dtype_resolves(covariance):
    scale = _tables(covariance).scale
    shares = jnp.array([0.5, 0.25, 0.25])
    distance = 1e6 * jnp.arange(K * D, dtype=float).reshape(K, D)
    resolved = 16.0 * np.finfo(np.float32).eps * np.asarray(distance)
    wanted = {
        "full": resolved,
        "diag": resolved,
        "tied": np.sqrt(np.asarray(shares) @ resolved**2)[None],
        "spherical": np.sqrt((resolved**2).mean(1, keepdims=True)),
    }[covariance]
    got = gmm_scales.least_std(scale, shares, distance, min_std=3.0)
    np.testing.assert_allclose(got, np.maximum(wanted, 3.0), rtol=1e-6)
    assert (wanted < 3.0).any() or covariance == "tied"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_clipping_gives_a_triangular_factor_above_the_floor(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        factor = np.array([[[2.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1e-3]]])
        least_std = np.array([[0.1, 0.1, 0.5]])
        got = gmm_scales.clip(jnp.asarray(factor, dtype), jnp.asarray(least_std, dtype))
        assert got.dtype == dtype
        got = np.asarray(got)
        np.testing.assert_array_equal(np.triu(got, 1), 0.0)
        assert (np.diagonal(got[0]) > 0.0).all()
        # The first two features have one floor: their eigenvalues are raised to it.
        values, vectors = np.linalg.eigh([[4.0, 2.0], [2.0, 1.0]])
        wanted = np.zeros((1, 3, 3))
        wanted[0, :2, :2] = (vectors * np.maximum(values, 0.01)) @ vectors.T
        wanted[0, 2, 2] = 0.25
        tolerance = 1e-5 if dtype == jnp.float32 else 1e-12
        got = got @ np.swapaxes(got, 1, 2)
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("largest", [0.3, 1.0, 1.5, 3e38])
def test_a_magnitude_is_the_power_of_two_below(largest):
    got = gmm_scales.magnitude(jnp.array([-largest, largest / 3.0]))
    assert got == 2.0 ** np.floor(np.log2(np.float32(largest)))


def test_an_unknown_type_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="full, diag, tied, spherical, got 'iso'"):
        gmm_scales.check("iso")


def test_the_variance_that_z_explains_is_that_between_the_means(x64):
    theta = {
        "logits": jnp.log(jnp.array([0.25, 0.75])),
        "mean": jnp.array([[10.0, 0.0], [-10.0, 0.0]]),
        "log_std": jnp.zeros(2),
    }
    # Between: 0.25 * 0.75 * 20^2 = 75; within: 2.
    got = gmm_scales.variance_explained(theta)
    np.testing.assert_allclose(got, 75 / 77, rtol=1e-9)
