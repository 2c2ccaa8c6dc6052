import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import mixtures, testing
from vae_jax.latent_models import gmm, gmm_scales, gmm_start
from vae_jax.training import loop


def _run(max_steps=100, **settings):
    return loop.until_converged(
        gmm.em(**settings),
        value=lambda info: info.log_p,
        tolerance=1e-6,
        max_steps=max_steps,
    )


@pytest.mark.slow
@pytest.mark.parametrize("covariance", gmm_scales.COVARIANCES)
def test_a_start_has_the_pooled_moments_of_its_nearest_rows(x64, covariance):
    x = mixtures.rows()[0]
    weight = np.random.default_rng(0).random(len(x))
    params = mixtures.start(x, covariance=covariance, weight=jnp.asarray(weight))
    shares, components = mixtures.normals(params)
    mean = np.array([normal.mean for normal in components])
    assert (mean[:, None] == x[None]).all(2).any(1).all()  # rows of x
    assert len(np.unique(mean, axis=0)) == 3
    distance = ((x[:, None] - mean) ** 2).sum(2)
    nearest = distance.argmin(1)
    counts = np.bincount(nearest, weight, 3)
    np.testing.assert_allclose(shares, counts / counts.sum(), rtol=1e-9)
    sigma = np.cov((x - mean[nearest]).T, aweights=weight, bias=True)
    off = np.average(x - mean[nearest], axis=0, weights=weight)
    sigma = sigma + np.outer(off, off)
    if covariance in ("diag", "spherical"):
        sigma = sigma * np.eye(3)
    if covariance == "spherical":
        sigma = np.trace(sigma) / 3 * np.eye(3)
    for normal in components:
        np.testing.assert_allclose(mixtures.covariance_of(normal), sigma, rtol=1e-9)


@pytest.mark.slow
def test_the_next_mean_is_drawn_by_squared_distance_and_weight():
    x = jnp.array([[0.0], [1.0], [3.0], [3.0]])
    weight = jnp.array([1.0, 1.0, 0.5, 0.0])

    @jax.jit
    @jax.vmap
    def means(key):
        params = gmm.start(key, x, num_components=2, weight=weight)
        return params.generative["mean"][:, 0]

    first, second = means(jax.random.split(jax.random.key(0), 20_000)).T
    for value, chance in ((0.0, 0.4), (1.0, 0.4), (3.0, 0.2)):
        testing.assert_mean_equals(first == value, chance)
    after = second[first == 0.0]  # odds 1 and 9 / 2
    testing.assert_mean_equals(after == 3.0, 4.5 / 5.5)
    assert not np.any(after == 0.0)


@pytest.mark.parametrize(
    ("weight", "counts"), [(1.0, (1, 1, 3)), (0.5, (1, 1, 3)), (4.0, (1, 4, 12))]
)
def test_a_mean_that_no_row_is_nearest_to_has_the_share_of_one_row(weight, counts):
    """Of two values and three means, one is a second time there."""
    x, weights = jnp.array([[0.0], [0.0], [0.0], [5.0]]), jnp.full(4, weight)
    params = gmm_start.start(jax.random.key(0), x, num_components=3, weight=weights)
    shares = np.sort(mixtures.normals(params)[0])
    np.testing.assert_allclose(shares, np.array(counts) / sum(counts), rtol=1e-5)


@pytest.mark.slow
def test_missing_entries_start_at_their_features_mean(x64):
    x = np.array([[0.0, 1.0], [2.0, np.nan], [np.nan, 3.0], [4.0, 8.0]])
    filled = np.where(np.isnan(x), np.nanmean(x, axis=0), x)
    starts = [mixtures.start(rows, num_components=2) for rows in (x, filled)]
    chex.assert_trees_all_close(*starts, rtol=1e-7)


@pytest.mark.slow
def test_the_best_of_several_starts_is_kept():
    x = mixtures.rows(num_components=5, spread=6.0)[0].astype(np.float32)
    settings = {"num_components": 5, "run": _run()}
    best = gmm.fit(jax.random.key(3), jnp.asarray(x), num_starts=6, **settings)
    assert best.converged
    algorithm, batch = gmm.em(), mixtures.batch_of(x)

    @jax.jit
    @jax.vmap
    def alone(key):
        key_start, key_run = jax.random.split(key)
        params = gmm.start(key_start, jnp.asarray(x), num_components=5)
        run = loop.until_converged(
            algorithm, value=lambda i: i.log_p, tolerance=1e-6, max_steps=100
        )
        return run(key_run, params, batch).info.log_p

    each = alone(jax.random.split(jax.random.key(3), 6))
    assert np.ptp(each) > 0.01
    np.testing.assert_allclose(best.info.log_p, each.max(), rtol=1e-6)
    end = mixtures.mean_log_p(best.state.params, x)
    np.testing.assert_allclose(end, best.info.log_p, atol=1e-4)


@pytest.mark.slow
def test_a_fit_of_incomplete_rows_finds_the_clusters():
    x, labels = mixtures.rows(spread=6.0)
    holes = mixtures.with_holes(x).astype(np.float32)
    best = gmm.fit(
        jax.random.key(0),
        jnp.asarray(holes),
        num_components=3,
        num_starts=3,
        missing=True,
        run=_run(missing=True, max_steps=40),
    )
    cluster = jax.vmap(lambda x: gmm.cluster(best.state.params, x))
    results = np.asarray(cluster(jnp.asarray(x, jnp.float32)))
    table = np.zeros((3, 3))
    np.add.at(table, (results, labels), 1)
    assert table.max(1).sum() > 0.95 * len(x)


GOOD = np.arange(8.0).reshape(4, 2)


@pytest.mark.parametrize(
    ("x", "changes", "message"),
    [
        (GOOD, {"num_components": 5}, "x has 4 rows, fewer than num_components=5"),
        (GOOD, {"num_components": 0}, "num_components must be positive, got 0"),
        (GOOD, {"num_starts": 0}, "num_starts must be positive, got 0"),
        (GOOD, {"covariance": "round"}, "got 'round'"),
        (GOOD, {"min_variance": -1.0}, "min_variance .* got -1.0"),
        (GOOD[0], {}, r"x must be \[N, D\], got \(2,\)"),
        (np.where(GOOD == 3, np.nan, GOOD), {}, "NaN in 1 rows; pass missing=True"),
        (np.where(GOOD == 3, np.inf, GOOD), {"missing": True}, "1 infinite values"),
        (
            np.where([False, True], np.nan, GOOD),
            {"missing": True},
            r"no value of features \[1\]",
        ),
        (GOOD, {"weight": -np.ones(4)}, "weight must not be negative"),
        (GOOD, {"weight": np.array([1.0, 0, 0, 0])}, "positive in at least 2 rows"),
        (GOOD, {"weight": np.ones(3)}, "one for each of 4 rows"),
        (GOOD, {"weight": np.full(4, np.nan)}, "weight must be finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(x, changes, message):
    settings = {"num_components": 2, "run": _run()} | changes
    with pytest.raises(ValueError, match=message) as error:
        gmm.fit(jax.random.key(0), jnp.asarray(x), **settings)
    assert "\n" not in str(error.value)


def test_a_start_alone_refuses_what_it_can_see_when_traced():
    with pytest.raises(ValueError, match="fewer than num_components=5"):
        jax.jit(lambda key, x: gmm_start.start(key, x, num_components=5))(
            jax.random.key(0), jnp.asarray(GOOD)
        )
