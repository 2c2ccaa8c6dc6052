import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from tests import testing
from vae_jax import likelihoods, networks, posteriors, priors, vae
from vae_jax.data import sources
from vae_jax.estimators import importance
from vae_jax.latent_models import ppca
from vae_jax.types import Batch, Params, log_joint

X_SHAPE = (2, 3)
KEY = jax.random.key(0)


def _model(*, num_latents=2, std=0.7, seed=3):
    """theta of order one, with its W [P, D], mu [P] and s2 as NumPy arrays."""
    rng = np.random.default_rng(seed)
    w, mu = rng.normal(size=(6, num_latents)), rng.normal(size=6)
    dtype = jnp.result_type(float)
    theta = ppca.parameters(w, mu, math.log(std))
    theta = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), theta)
    generative = ppca.generative(num_latents, X_SHAPE, initial_std=std)
    return generative, Params(theta, ()), (w, mu, std**2)


def _batch(x, weight=None):
    weight = jnp.ones(x.shape[0], x.dtype) if weight is None else jnp.asarray(weight)
    return Batch(x, jnp.arange(x.shape[0]), weight)


def _run(algorithm, params, batch, *, num_steps):
    """The state after the last step, and infos stacked on the steps."""

    @jax.jit
    def run(params):
        def step(state, _):
            return algorithm.step(jax.random.key(0), state, batch)

        start = algorithm.init(jax.random.key(1), params)
        return jax.lax.scan(step, start, length=num_steps)

    return run(params)


def _mean_log_p(params, x, *, min_std=1e-3):
    log_p = functools.partial(ppca.log_evidence, min_std=min_std)
    return float(jax.jit(jax.vmap(log_p, (None, 0)))(params, x).mean())


def _scipy_log_p(x, w, mu, s2):
    """log N(x; mu, W W^T + s2 I) of rows [N, 6]."""
    covariance: Any = w @ w.T + s2 * np.eye(6)
    return stats.multivariate_normal(mu, covariance).logpdf(x)


def _data(num_rows=200):
    """Draws of a model of its own, [N, 2, 3] in the default float type."""
    rng = np.random.default_rng(5)
    w, mu = rng.normal(size=(6, 2)), rng.normal(size=6)
    x = rng.normal(size=(num_rows, 2)) @ w.T + mu
    x = x + 0.5 * rng.normal(size=x.shape)
    return jnp.asarray(x.reshape(num_rows, *X_SHAPE), jnp.result_type(float))


@functools.cache
def _digits():
    return sources.load("digits").train.reshape(1000, 64) / 16.0


# Oracle


def test_log_evidence_is_scipys_normal_density_with_its_gradient(x64):
    _, params, (w, mu, s2) = _model()
    xs = np.random.default_rng(0).normal(size=(4, *X_SHAPE))
    got = jax.jit(jax.vmap(ppca.log_evidence, (None, 0)))(params, jnp.asarray(xs))
    expected = _scipy_log_p(xs.reshape(4, 6), w, mu, s2)
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    log_p = jax.jit(lambda p, x: ppca.log_evidence(p, x))
    check_grads(log_p, (params, jnp.asarray(xs[0])), order=1, modes=("rev",))


@pytest.mark.parametrize("num_latents", [1, 5])
@pytest.mark.slow
def test_recognition_is_the_normal_conditioned_on_x(x64, num_latents):
    _, params, (w, mu, s2) = _model(num_latents=num_latents)
    recognition = ppca.recognition(num_latents)
    assert recognition.init(KEY) == ()
    x = np.random.default_rng(1).normal(size=X_SHAPE)
    h = jax.jit(recognition.encode)(params, jnp.asarray(x))
    mean, scale_tril = posteriors.mean_and_scale_tril(h, num_latents)
    gain = w.T @ np.linalg.inv(w @ w.T + s2 * np.eye(6))  # of the joint normal
    np.testing.assert_allclose(mean, gain @ (x.ravel() - mu), rtol=1e-9)
    covariance: Any = np.eye(num_latents) - gain @ w
    np.testing.assert_allclose(
        scale_tril @ scale_tril.T, covariance, rtol=1e-9, atol=1e-12
    )
    z = np.linspace(-1.0, 1.0, num_latents)
    expected = stats.multivariate_normal(np.asarray(mean), covariance).logpdf(z)
    log_q = jax.jit(recognition.log_prob)(params, h, jnp.asarray(z))
    np.testing.assert_allclose(log_q, expected, rtol=1e-9)


@pytest.mark.slow
def test_every_log_weight_under_the_exact_posterior_is_log_p(x64):
    generative, params, _ = _model()
    model = vae.model(generative, ppca.recognition(2))
    x = jnp.asarray(np.random.default_rng(2).normal(size=X_SHAPE))

    @jax.jit
    def draw(key):
        h = model.recognition.encode(params, x)
        log_w = importance.log_weights(model, num_samples=5)
        return log_w(key, params, x, h)

    exact = ppca.log_evidence(params, x)
    np.testing.assert_allclose(draw(jax.random.key(4)), np.full(5, exact), rtol=1e-9)


def test_samples_of_the_posterior_have_its_moments():
    _, params, (w, mu, s2) = _model()
    recognition, x = ppca.recognition(2), jnp.ones(X_SHAPE)
    keys = jax.random.split(jax.random.key(1), 20_000)

    @jax.jit
    def draw(keys, params, x):
        h = recognition.encode(params, x)
        return jax.vmap(recognition.sample, (0, None, None))(keys, params, h)

    z = np.asarray(draw(keys, params, x))
    inverse = np.linalg.inv(w.T @ w + s2 * np.eye(2))
    mean = inverse @ w.T @ (np.ones(6) - mu)
    testing.assert_mean_equals(z, mean)
    centered = z - mean
    testing.assert_mean_equals(centered[:, :, None] * centered[:, None], s2 * inverse)


def test_the_layout_is_that_of_a_linear_vae():
    linear_vae = vae.decoder_model(
        networks.mlp(2, (), 6),
        priors.standard_normal(2),
        likelihoods.normal_learned_std(X_SHAPE, initial_std=0.5, min_std=0.01),
    )
    model = ppca.generative(2, X_SHAPE, initial_std=0.5, min_std=0.01)
    theta = jax.jit(model.init)(jax.random.key(0))
    expected = jax.jit(linear_vae.init)(jax.random.key(0))
    chex.assert_trees_all_equal(theta, expected)
    fitted = ppca.maximum_likelihood(_data(), num_latents=2).generative
    shapes = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert shapes(fitted) == shapes(theta)
    params, z = Params(fitted, ()), jnp.array([0.3, -1.0])
    x = jnp.ones(X_SHAPE)
    np.testing.assert_allclose(
        log_joint(model, params, x, z), log_joint(linear_vae, params, x, z), rtol=1e-6
    )


# Maximum likelihood


@pytest.mark.slow
def test_the_likelihood_of_digits_is_the_known_one_and_no_other_s2_is_better(x64):
    x = jnp.asarray(_digits())
    for num_latents, nats in ((2, -0.0366), (5, 9.7170), (10, 18.6886)):
        params = ppca.maximum_likelihood(x, num_latents=num_latents)
        np.testing.assert_allclose(_mean_log_p(params, x), nats, atol=5e-5)
    params = ppca.maximum_likelihood(x, num_latents=2)
    log_std = params.generative["likelihood"]["log_std"]
    np.testing.assert_allclose(np.exp(2.0 * log_std), 0.054262, atol=5e-7)
    mean = jax.vmap(ppca.log_evidence, (None, 0))
    slope = jax.jit(jax.grad(lambda params: mean(params, x).mean()))(params)
    for leaf in jax.tree.leaves(slope):
        np.testing.assert_allclose(leaf, np.zeros(leaf.shape), atol=1e-9)
    w = np.asarray(params.generative["decoder"]["output"]["kernel"])
    gram = w @ w.T
    np.testing.assert_allclose(gram[0, 1], 0.0, atol=1e-12)
    assert gram[0, 0] > gram[1, 1]


def test_maximum_likelihood_has_the_dtype_of_the_data():
    x = np.random.default_rng(0).normal(size=(20, 4))
    for data in (x.astype(np.float32), (10 * x).astype(np.int32)):
        params = ppca.maximum_likelihood(jnp.asarray(data), num_latents=2)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


# EM


def test_every_step_of_em_lies_between_two_likelihoods(x64):
    _, start, _ = _model(seed=9)
    x, weight = _data(), np.random.default_rng(0).uniform(0.1, 2.0, 200)
    for used in (None, weight):
        state, info = _run(ppca.em(), start, _batch(x, used), num_steps=400)
        np.testing.assert_allclose(info.bound_after_e_step, info.log_p, rtol=1e-9)
        after = np.asarray(info.log_p)[1:]
        below = np.asarray(info.bound_after_m_step)[:-1]
        slack = 1e-9
        assert (np.asarray(info.bound_after_e_step)[:-1] <= below + slack).all()
        assert (below <= after + slack).all()
        assert after[-1] - after[0] > 0.1
        share = np.ones(200) / 200 if used is None else weight / weight.sum()
        mean = np.einsum("n,nij->ij", share, x)
        bias = state.params.generative["decoder"]["output"]["bias"]
        np.testing.assert_allclose(bias, mean.ravel(), rtol=1e-9)


def test_em_reports_the_weighted_log_p_of_the_model_it_starts_from(x64):
    x, weight = _data(), np.random.default_rng(0).uniform(0.1, 2.0, 200)
    start = ppca.maximum_likelihood(x[:50], num_latents=2)
    _, info = _run(ppca.em(), start, _batch(x, weight), num_steps=1)
    theta = jax.tree.map(np.asarray, start.generative)
    w, rows = theta["decoder"]["output"]["kernel"].T, np.asarray(x).reshape(200, 6)
    s2 = np.exp(2.0 * theta["likelihood"]["log_std"])
    log_p = _scipy_log_p(rows, w, np.average(rows, 0, weight), s2)
    expected = np.average(log_p, weights=weight)
    np.testing.assert_allclose(info.log_p[0], expected, rtol=1e-9)


def test_em_reaches_the_maximum_likelihood_and_stays_there(x64):
    x = _data()
    exact = ppca.maximum_likelihood(x, num_latents=2)
    _, start, _ = _model()
    state, _ = _run(ppca.em(), start, _batch(x), num_steps=400)
    best = _mean_log_p(exact, x)
    np.testing.assert_allclose(_mean_log_p(state.params, x), best, rtol=1e-9)
    state, _ = _run(ppca.em(), exact, _batch(x), num_steps=1)
    chex.assert_trees_all_close(
        state.params.generative, exact.generative, rtol=1e-9, atol=1e-12
    )


@pytest.mark.slow
def test_em_of_digits_reaches_the_known_likelihood_in_single_precision():
    x = jnp.asarray(_digits(), jnp.float32)
    generative = ppca.generative(2, (64,), initial_std=0.5)
    start = Params(jax.jit(generative.init)(KEY), ())
    state, info = _run(ppca.em(), start, _batch(x), num_steps=300)
    leaves = jax.tree.leaves((state, info))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    np.testing.assert_allclose(info.log_p[-1], -0.0366, atol=1e-3)
    np.testing.assert_allclose(info.log_p, info.bound_after_e_step, atol=2e-4)
    assert (np.diff(info.log_p) > -2e-4).all()


def test_a_weight_of_two_is_the_row_twice_and_of_zero_no_row(x64):
    x = _data(20)
    weight = np.ones(20)
    weight[3], weight[7] = 2.0, 0.0
    rows = np.concatenate([np.delete(np.arange(20), 7), [3]])
    _, start, _ = _model()
    states = [
        _run(ppca.em(), start, batch, num_steps=3)
        for batch in (_batch(x, weight), _batch(x[rows]))
    ]
    chex.assert_trees_all_close(*states, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_em_compiled_is_em_run_eagerly():
    _, start, _ = _model()
    algorithm, batch = ppca.em(), _batch(_data(20))
    state = algorithm.init(jax.random.key(0), start)
    state, info = algorithm.step(jax.random.key(1), state, batch)
    expected = _run(algorithm, start, batch, num_steps=1)
    chex.assert_trees_all_close(
        (state, info),
        (expected[0], jax.tree.map(lambda leaf: leaf[-1], expected[1])),
        rtol=1e-4,
        atol=1e-5,
    )


# Edge


def test_single_precision_stands_a_thousand_to_one_and_equal_columns():
    """M has a condition of 1e8 there; its Cholesky factor in float32 is NaN."""
    w = np.random.default_rng(0).normal(size=(6, 1)) @ np.ones((1, 2))
    w32, log_std = jnp.asarray(w, jnp.float32), jnp.float32(math.log(1e-4))
    params = Params(ppca.parameters(w32, jnp.zeros(6), log_std), ())
    x = (w @ [0.4, 0.3]).reshape(X_SHAPE)
    x32 = jnp.asarray(x, jnp.float32)
    log_p = jax.jit(functools.partial(ppca.log_evidence, min_std=1e-4))
    rounded = np.asarray(w32, np.float64), np.zeros(6), 1e-8
    expected = _scipy_log_p(np.asarray(x32, np.float64).ravel(), *rounded)
    np.testing.assert_allclose(log_p(params, x32), expected, rtol=1e-3)
    h = jax.jit(ppca.recognition(2, min_std=1e-4).encode)(params, x32)
    assert np.isfinite(h).all()


def test_a_std_below_the_bound_counts_as_the_bound(x64):
    generative = ppca.generative(2, X_SHAPE, initial_std=0.5, min_std=0.5)
    _, params, (w, mu, _) = _model()
    low = {"likelihood": {"log_std": jnp.asarray(-9.0)}}
    params = params._replace(generative=params.generative | low)
    x, z = jnp.ones(X_SHAPE), jnp.array([0.3, -1.0])
    expected = _scipy_log_p(np.ones(6), w, mu, 0.25)
    got = ppca.log_evidence(params, x, min_std=0.5)
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    recognition = ppca.recognition(2, min_std=0.5)
    log_q = recognition.log_prob(params, recognition.encode(params, x), z)
    np.testing.assert_allclose(
        log_joint(generative, params, x, z) - log_q, got, rtol=1e-9
    )


@pytest.mark.parametrize("constant", ["some", "all", "one row"])
@pytest.mark.slow
def test_constant_features_leave_the_std_at_its_bound(constant):
    x = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    x[:, 2 if constant == "some" else 0 :] = 1.5  # two features vary, as many as D
    x = jnp.asarray(x[:1] if constant == "one row" else x)
    exact = ppca.maximum_likelihood(x, num_latents=2, min_std=0.1)
    _, start, _ = _model()
    state, info = _run(ppca.em(min_std=0.1), start, _batch(x), num_steps=1000)
    for params in (exact, state.params):
        log_std = params.generative["likelihood"]["log_std"]
        np.testing.assert_allclose(log_std, math.log(0.1), rtol=1e-6)
        assert np.isfinite(_mean_log_p(params, x, min_std=0.1))
    chex.assert_tree_all_finite((state, info))
    best = _mean_log_p(exact, x, min_std=0.1)
    np.testing.assert_allclose(info.log_p[-1], best, atol=1e-3)
    assert (np.asarray(info.bound_after_m_step) >= info.log_p - 1e-4).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "weight", "reported"),
    [([3], 1.0, np.nan), ([], 0.0, 0.0), ([3, 5], 0.0, 0.0)],
)
def test_em_keeps_its_parameters_where_a_batch_is_no_number(broken, weight, reported):
    _, start, _ = _model()
    x = _data(20)
    x = x.at[jnp.array(broken, int)].set(jnp.nan)
    batch = _batch(x, np.full(20, weight, "f"))
    state, info = _run(ppca.em(), start, batch, num_steps=1)
    jax.tree.map(np.testing.assert_array_equal, state.params, start)
    np.testing.assert_array_equal(info.log_p, [reported])
    if not weight:
        np.testing.assert_array_equal(jax.tree.leaves(info), np.zeros((3, 1)))


def test_em_does_not_read_a_row_of_weight_zero():
    _, start, _ = _model()
    x, weight = _data(20), np.ones(20, "f")
    weight[3] = 0.0
    broken = _run(ppca.em(), start, _batch(x.at[3].set(jnp.nan), weight), num_steps=2)
    whole = _run(ppca.em(), start, _batch(x, weight), num_steps=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), broken, whole
    )


def test_what_cannot_be_fitted_is_refused_in_one_line():
    x = _data(20)
    for num_latents in (0, 6, 7):
        with pytest.raises(
            ValueError, match=f"below the 6 entries.* got {num_latents}"
        ):
            ppca.maximum_likelihood(x, num_latents=num_latents)
    broken = x.at[3].set(jnp.nan).at[5, 0, 0].set(jnp.inf)
    with pytest.raises(ValueError, match="NaN or infinity in 2 of its rows"):
        ppca.maximum_likelihood(broken, num_latents=2)
    with pytest.raises(ValueError, match="at least one row"):
        ppca.maximum_likelihood(x[:0], num_latents=2)
    wide = ppca.generative(6, X_SHAPE)
    with pytest.raises(ValueError, match="below the 6 entries of x, got 6"):
        ppca.em().init(KEY, Params(wide.init(jax.random.key(1)), ()))
    with pytest.raises(ValueError, match="num_latents must be positive, got 0"):
        ppca.recognition(0)


@pytest.mark.parametrize("min_std", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_that_is_none_is_refused(min_std):
    _, params, _ = _model()
    for call in (
        lambda: ppca.generative(2, X_SHAPE, min_std=min_std),
        lambda: ppca.recognition(2, min_std=min_std),
        lambda: ppca.log_evidence(params, jnp.ones(X_SHAPE), min_std=min_std),
        lambda: ppca.maximum_likelihood(_data(9), num_latents=2, min_std=min_std),
        lambda: ppca.em(min_std=min_std),
    ):
        with pytest.raises(ValueError, match=r"min_std must lie in \(0, inf\)"):
            call()
