import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn.mixture import GaussianMixture

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
from vae_jax.latent_models import gmm, gmm_em, gmm_scales
from vae_jax.types import Batch, Params, log_joint

COVARIANCES = gmm_scales.COVARIANCES


# The sandwich


def sandwich(algorithm, params, x, num_steps, *, missing=False):
    """Bounds before and after each M-step, log p of both ends, and the step's info.

    From the records alone: sum_z r (log p(x, z) - log r), r of the old parameters.
    """
    num_components = params.generative["logits"].shape[0]
    generative = gmm.generative(num_components, x.shape[1], missing=missing)
    recognition = gmm.recognition(num_components, missing=missing)
    batch = batch_of(x)

    def bound(q, theta, x):
        log_r = recognition.encode(q, x)
        zs = jnp.eye(num_components)[:, None, :]
        log_p = jax.vmap(lambda z: log_joint(generative, theta, x, z))(zs)
        return (jnp.exp(log_r) * (log_p - log_r)).sum()

    @jax.jit
    def steps(params):
        def step(state, _):
            new, info = algorithm.step(jax.random.key(0), state, batch)
            each = jax.vmap(bound, (None, None, 0))
            evidence = jax.vmap(
                functools.partial(gmm.log_evidence, missing=missing), (None, 0)
            )
            old = state.params
            results = (
                each(old, old, batch.x).mean(),
                evidence(old, batch.x).mean(),
                each(old, new.params, batch.x).mean(),
                evidence(new.params, batch.x).mean(),
            )
            return new, (results, info)

        state = algorithm.init(jax.random.key(0), params)
        return jax.lax.scan(step, state, length=num_steps)[1]

    return steps(params)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.slow
def test_the_bound_is_log_p_and_each_step_raises_both(x64, covariance):
    x = rows()[0]
    results, info = sandwich(
        gmm.em(block_size=64), start(x, covariance=covariance), x, 25
    )
    before, log_p, after, new_log_p = map(np.asarray, results)
    np.testing.assert_allclose(before, log_p, rtol=1e-12)
    assert (log_p <= after + 1e-12).all()
    assert (after <= new_log_p + 1e-12).all()
    assert new_log_p[-1] > log_p[0] + 0.1
    np.testing.assert_allclose(info.bound_after_e_step, before, rtol=1e-11)
    np.testing.assert_allclose(info.log_p, log_p, rtol=1e-11)
    np.testing.assert_allclose(info.bound_after_m_step, after, rtol=1e-11)
    assert not np.any(info.num_at_floor)
    assert not np.any(info.num_collapsed)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.slow
def test_with_missing_entries_too_each_step_raises_the_bound(x64, covariance):
    x = with_holes(rows()[0])
    params = start(x, covariance=covariance)
    results, info = sandwich(gmm.em(missing=True), params, x, 15, missing=True)
    before, log_p, after_without, new_log_p = map(np.asarray, results)
    np.testing.assert_allclose(before, log_p, rtol=1e-12)
    np.testing.assert_allclose(info.bound_after_e_step, log_p, rtol=1e-11)
    # The M-step's bound has q over the missing entries as well, and is below that
    # over z alone.
    after = np.asarray(info.bound_after_m_step)
    assert (log_p <= after + 1e-12).all()
    assert (after <= after_without + 1e-12).all()
    assert (after_without <= new_log_p + 1e-12).all()
    assert not np.any(info.num_at_floor)


# The peer


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.slow
def test_the_fixed_point_is_scikit_learns(covariance):
    x = rows()[0]
    with jax.enable_x64(True):
        params = start(x, covariance=covariance)
        shares, components = mixtures.normals(params)
        precisions = np.linalg.inv([mixtures.covariance_of(n) for n in components])
        precisions = {
            "full": lambda p: p,
            "tied": lambda p: p[0],
            "diag": lambda p: np.diagonal(p, axis1=1, axis2=2),
            "spherical": lambda p: p[:, 0, 0],
        }[covariance](precisions)
        peer = GaussianMixture(
            3,
            covariance_type=covariance,
            tol=1e-9,
            max_iter=500,
            weights_init=shares / shares.sum(),
            means_init=np.asarray(params.generative["mean"]),
            precisions_init=precisions,
            reg_covar=1e-6,
        ).fit(x)
        algorithm = gmm.em(added_variance=1e-6)
        ends = {}
        for dtype in (jnp.float64, jnp.float32):
            cast = jax.tree.map(lambda a, d=dtype: a.astype(d), params)
            state, _ = run(algorithm, cast, batch_of(x, dtype=dtype), 200)
            assert state.params.generative["mean"].dtype == dtype
            double = jax.tree.map(lambda a: a.astype(jnp.float64), state.params)
            ends[dtype] = mean_log_p(double, x), double
    assert peer.converged_
    for log_p, _ in ends.values():
        np.testing.assert_allclose(log_p, peer.score(x), atol=1e-5)
    end = ends[jnp.float64][1].generative
    np.testing.assert_allclose(end["mean"], np.asarray(peer.means_), atol=1e-3)


# float32


def plain_step(at, x):
    """Textbook EM in the coordinates of x: E[x x^T] - mu mu^T, plus 1e-6."""
    logits, mean, sigma = at
    factor = jnp.linalg.cholesky(sigma)

    def log_density(mean, factor):
        eps = jax.scipy.linalg.solve_triangular(factor, (x - mean[None]).T, lower=True)
        return -0.5 * (eps**2).sum(0) - jnp.log(jnp.diagonal(factor)).sum()

    log_joint = jax.nn.log_softmax(logits)[:, None]
    log_joint = log_joint + jax.vmap(log_density)(mean, factor)
    r = jax.nn.softmax(log_joint, axis=0)
    n = r.sum(1)
    mean = r @ x / n[:, None]
    sigma = jnp.einsum("kn,ni,nj->kij", r, x, x) / n[:, None, None]
    sigma = sigma - mean[:, :, None] * mean[:, None, :]
    return jnp.log(n), mean, sigma + 1e-6 * jnp.eye(x.shape[1])[None]


def hard_rows(*, num_rows, num_features, num_components):
    """Clusters whose thinnest direction is a hundredth of their distance from 0."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, num_components, num_rows)
    means = 5.0 + 2.0 * generator.normal(size=(num_components, num_features))
    shape = (num_components, num_features, num_features)
    turns = np.linalg.qr(generator.normal(size=shape))[0]
    stds = np.logspace(0, -3, num_features)
    noise = generator.normal(size=(num_rows, num_features)) * stds
    return means[labels] + np.einsum("nij,nj->ni", turns[labels], noise)


@pytest.mark.parametrize(
    ("size", "rounding"),  # of log p(x), nats: whitened entries are small differences
    [
        ((1000, 16, 4), 1e-4),
        pytest.param((10_000, 64, 16), 1e-2, marks=pytest.mark.long),
    ],
)
@pytest.mark.slow
def test_float32_stays_finite_where_plain_em_does_not(size, rounding):
    num_rows, num_features, num_components = size
    x = hard_rows(
        num_rows=num_rows, num_features=num_features, num_components=num_components
    ).astype(np.float32)
    params = start(x, num_components=num_components)
    theta = params.generative
    plain = (
        theta["logits"],
        theta["mean"],
        theta["scale_tril"] @ theta["scale_tril"].mT,
    )
    plain_steps = jax.jit(
        lambda plain: jax.lax.fori_loop(
            0, 30, lambda _, at: plain_step(at, jnp.asarray(x)), plain
        )
    )
    assert np.isnan(plain_steps(plain)[1]).any()
    state, info = run(gmm.em(), params, batch_of(x), 30)
    assert_finite(state.params)
    rise = np.diff(np.asarray(info.log_p, np.float64))
    assert (rise > -rounding).all()
    assert rise.sum() > 1.0
    np.testing.assert_allclose(info.bound_after_e_step, info.log_p, atol=1e-4)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        exact, _ = run(gmm.em(), double, batch_of(x, dtype=jnp.float64), 30)
        got = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), state.params)
        difference = mean_log_p(got, x.astype(float)) - mean_log_p(
            exact.params, x.astype(float)
        )
    assert abs(difference) < 10.0 * rounding


# Weights, blocks, batches


@pytest.mark.parametrize("covariance", ["tied", "spherical"])
@pytest.mark.slow
def test_weights_are_repeated_rows_in_blocks_of_any_size(x64, covariance):
    x = rows(num_rows=50)[0]
    weight = np.random.default_rng(0).integers(0, 4, 50)
    params = start(x, covariance=covariance)
    hidden = np.where(weight[:, None] == 0, np.nan, x)  # weightless rows are not read
    repeated = batch_of(np.repeat(x, weight, 0))
    weighted = batch_of(hidden, weight)
    ends = [
        run(gmm.em(block_size=block_size), params, batch, 5)
        for batch, block_size in ((repeated, 1000), (weighted, 7))
    ]
    chex.assert_trees_all_close(*ends, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("covariance", ["tied", "spherical"])
@pytest.mark.slow
def test_without_missing_entries_both_forms_agree(x64, covariance):
    x = rows(num_rows=50)[0]
    params = start(x, covariance=covariance)
    ends = [
        run(gmm.em(missing=missing), params, batch_of(x), 5)
        for missing in (False, True)
    ]
    chex.assert_trees_all_close(*ends, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.slow
def test_stepwise_em_rises_and_ends_near_whole_data_em(covariance):
    x = rows(num_rows=2000, spread=6.0)[0].astype(np.float32)
    params = start(x, covariance=covariance)
    _, info = run(gmm.em(), params, batch_of(x), 60)
    algorithm = gmm.em(step_size=gmm_em.stepwise(delay=2.0, power=0.7))

    @jax.jit
    def epochs(params):
        def step(state, index):
            batch = Batch(jnp.asarray(x)[index], index, jnp.ones(index.shape))
            return algorithm.step(jax.random.key(0), state, batch)

        order = np.random.default_rng(0).permuted(
            np.tile(np.arange(2000), (30, 1)), axis=1
        )
        state = algorithm.init(jax.random.key(0), params)
        return jax.lax.scan(step, state, jnp.asarray(order.reshape(-1, 100)))

    state, online = epochs(params)
    assert state.step == 600
    by_epoch = np.asarray(online.log_p).reshape(30, 20).mean(1)
    assert by_epoch[-5:].mean() > by_epoch[0] + 0.02
    end = mean_log_p(state.params, x)
    assert end > float(info.log_p[0]) + 0.1
    np.testing.assert_allclose(end, info.log_p[-1], atol=0.02)


@pytest.mark.slow
def test_a_step_size_of_one_is_whole_data_em(x64):
    x = rows(num_rows=50)[0]
    params = start(x)
    ends = [
        run(gmm.em(step_size=size), params, batch_of(x), 3)
        for size in (None, lambda step: jnp.ones(()))
    ]
    chex.assert_trees_all_close(*ends, rtol=1e-12)


def test_stepwise_averages_are_those_of_its_moments(x64):
    # Two components so far apart that responsibilities are 0 and 1: then the averages
    # of n, sum x and sum x x^T can be followed by hand.
    x = np.array([[-50.0], [-52.0], [48.0], [53.0], [55.0], [50.0]])
    theta = {
        "logits": jnp.log(jnp.array([0.4, 0.6])),
        "mean": jnp.array([[-50.0], [50.0]]),
        "scale_tril": jnp.array([[[2.0]], [[3.0]]]),
    }
    gamma = 0.25
    algorithm = gmm.em(step_size=lambda step: jnp.asarray(gamma))
    state, _ = run(algorithm, Params(theta, ()), batch_of(x), 1)
    share, mean = np.array([0.4, 0.6]), np.array([-50.0, 50.0])
    square = np.array([4.0, 9.0]) + mean**2
    r = (x * np.array([[-1.0, 1.0]]) > 0.0).astype(float)
    n = (1 - gamma) * share + gamma * r.mean(0)
    first = ((1 - gamma) * share * mean + gamma * (r * x).mean(0)) / n
    second = ((1 - gamma) * share * square + gamma * (r * x**2).mean(0)) / n
    new = state.params.generative
    np.testing.assert_allclose(special.softmax(new["logits"]), n, rtol=1e-9)
    np.testing.assert_allclose(new["mean"][:, 0], first, rtol=1e-9)
    np.testing.assert_allclose(
        new["scale_tril"][:, 0, 0] ** 2, second - first**2, rtol=1e-9
    )


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_variance": 0.0}, r"min_variance must lie in \(0, inf\), got 0\.0"),
        ({"min_variance": np.nan}, r"min_variance must lie in \(0, inf\), got nan"),
        ({"added_variance": -1.0}, r"added_variance must lie in \[0, inf\)"),
        ({"block_size": 0}, "block_size must be positive, got 0"),
        (
            {"added_variance": 1e-6, "step_size": lambda step: 1.0},
            "added_variance must be 0 with step_size",
        ),
    ],
)
def test_settings_that_make_no_em_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        gmm.em(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"delay": 0.5}, "delay .* got 0.5"), ({"power": 0.5}, "power .* got 0.5")],
)
def test_step_sizes_that_do_not_converge_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        gmm_em.stepwise(**changes)
