import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems, testing
from vae_jax import posteriors, vae
from vae_jax.estimators import sgvb
from vae_jax.evaluation import marginal
from vae_jax.inference import mcem
from vae_jax.training import loop
from vae_jax.types import Batch, log_joint

pytestmark = pytest.mark.uses_optax
X = np.array([0.7, -1.2, 0.4], np.float32)
FIT = {"num_latents": 2, "num_samples": 40, "num_warmup": 20, "num_leapfrog": 4}


def _problem():
    return problems.linear_gaussian(num_latents=2, num_features=3)


def _data(num=200):
    """Draws of another linear-Gaussian model than the one that is fitted."""
    draws = np.random.default_rng(0).normal(size=(num, 3))
    mixing = np.array([[1.5, 0.0, 0.0], [1.0, 0.9, 0.0], [-0.5, 0.4, 0.8]])
    return (draws @ mixing.T + [1.0, 0.0, -1.0]).astype(np.float32)


@functools.cache
def _run(num_steps, **settings):
    """A run over batches of 50 distinct rows of 200."""
    algorithm = mcem.mcem(_problem().generative, optax.adam(0.02), **settings)
    state = loop.start(jax.random.key(5), algorithm, _problem().params)
    return algorithm, loop.scan(algorithm, loop.take_rows), state, _order(num_steps)


def _order(num_steps):
    draw = np.random.default_rng(1)
    return np.stack([draw.permutation(200)[:50] for _ in range(num_steps)])


def _numbers(state):
    state = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def _largest_mean_log_p(data, num_latents, std):
    """Over W and b, at that std: Tipping & Bishop 1999, equations 3 to 7."""
    eigenvalues = np.linalg.eigvalsh(np.cov(data.T, bias=True))[::-1]
    of_model = np.full(data.shape[1], std**2)
    top = eigenvalues[:num_latents]
    of_model[:num_latents] = np.maximum(top, std**2)
    return -0.5 * np.sum(np.log(2 * np.pi * of_model) + eigenvalues / of_model)


# The fit


@pytest.mark.slow
def test_theta_approaches_maximum_likelihood_at_the_target_acceptance():
    problem, data = _problem(), _data()
    schedule = optax.linear_schedule(0.05, 0.0, 5 * 800)
    algorithm = mcem.mcem(problem.generative, optax.adam(schedule), num_data=200)
    state = loop.start(jax.random.key(5), algorithm, problem.params)
    run = loop.scan(algorithm, loop.take_rows)
    state, info = run(state, jnp.asarray(data), jnp.asarray(_order(800)))
    fitted = state.inner.params
    log_p = jax.vmap(problem.log_p, (None, 0))(fitted, jnp.asarray(data)).mean()
    start = jax.vmap(problem.log_p, (None, 0))(problem.params, jnp.asarray(data)).mean()
    best = _largest_mean_log_p(data.astype(np.float64), 2, 0.8)
    assert start < best - 0.5
    assert best - 0.01 < log_p < best + 1e-5
    np.testing.assert_allclose(info.acceptance[400:].mean(), 0.9, atol=0.01)
    assert info.energy_error[400:].mean() < 0.4
    # phi is handed through.
    chex.assert_trees_all_equal(fitted.recognition, problem.params.recognition)


@pytest.mark.slow
def test_chains_at_a_fixed_theta_are_draws_from_the_posterior():
    problem, num = _problem(), 20_000
    algorithm = mcem.mcem(
        problem.generative, optax.sgd(0.0), num_data=num, initial_step_size=0.5
    )
    state = loop.start(jax.random.key(5), algorithm, problem.params)
    order = jnp.broadcast_to(jnp.arange(num)[None], (60, num))
    data = jnp.broadcast_to(jnp.asarray(X)[None], (num, 3))
    state, info = loop.scan(algorithm, loop.take_rows)(state, data, order)
    mean, covariance = problem.posterior(problem.params, jnp.asarray(X))
    centered = np.asarray(state.inner.chains) - np.asarray(mean)
    testing.assert_mean_equals(centered, np.zeros(2))
    testing.assert_mean_equals(centered[:, :, None] * centered[:, None], covariance)
    np.testing.assert_allclose(info.acceptance[-10:].mean(), 0.9, atol=0.01)


# One step


def _one_step(**settings):
    problem = _problem()
    algorithm = mcem.mcem(problem.generative, optax.sgd(0.1), num_data=10, **settings)
    state = algorithm.init(jax.random.key(1), problem.params)
    batch = Batch(jnp.asarray(_data(4)), jnp.array([7, 2, 9, 0]), jnp.ones(4))
    after, info = jax.jit(algorithm.step)(jax.random.key(2), state, batch)
    return problem, state, batch, after, info


@pytest.mark.slow
def test_only_the_chains_of_the_batch_move_and_each_from_where_it_was():
    _, state, batch, after, _ = _one_step(initial_step_size=1e-3, num_leapfrog=2)
    moved = np.abs(after.chains - state.chains).max(1)
    others = np.setdiff1d(np.arange(10), batch.index)
    np.testing.assert_array_equal(moved[others], np.zeros(6))
    # Two steps of 1e-3 go about 2e-3 far, so a chain that took another's place shows.
    assert ((moved[batch.index] > 0.0) & (moved[batch.index] < 0.02)).all()
    assert np.abs(state.chains).max() > 0.5  # they start at draws from the prior


@pytest.mark.slow
@pytest.mark.parametrize(
    "weight_decay", [3.0, pytest.param(0.0, marks=pytest.mark.slow)]
)
def test_the_updates_climb_the_mean_log_joint_of_the_new_positions(weight_decay):
    problem, state, batch, after, info = _one_step(
        num_updates=2, weight_decay=weight_decay
    )
    z = after.chains[batch.index]

    def mean_log_joint(theta):
        params = problem.params._replace(generative=theta)
        rows = jax.vmap(lambda x, z: log_joint(problem.generative, params, x, z))
        return rows(batch.x, z).mean()

    def log_prior(theta):
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(theta))
        return -0.5 * weight_decay * squares / 10

    theta = problem.params.generative
    np.testing.assert_allclose(info.log_joint, mean_log_joint(theta), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda theta: mean_log_joint(theta) + log_prior(theta)))
    norm = optax.tree.norm(gradient(theta))
    np.testing.assert_allclose(info.gradient_norm, norm, rtol=1e-4)
    for _ in range(2):
        theta = jax.tree.map(lambda a, g: a + 0.1 * g, theta, gradient(theta))
    chex.assert_trees_all_close(after.params.generative, theta, rtol=1e-4, atol=1e-6)
    assert after.step == 1
    np.testing.assert_allclose(info.step_size, 0.1, rtol=1e-6)
    np.testing.assert_allclose(
        after.log_step_size - state.log_step_size,
        0.5 * (info.acceptance - 0.9),
        rtol=1e-3,
        atol=1e-6,
    )


# The run


@pytest.mark.slow
def test_a_run_in_two_scans_ends_bit_for_bit_where_one_does():
    data = jnp.asarray(_data())
    _, run, state, order = _run(6, num_data=200)
    whole, _ = run(jax.tree.map(jnp.copy, state), data, jnp.asarray(order))
    half, _ = run(jax.tree.map(jnp.copy, state), data, jnp.asarray(order[:3]))
    both, _ = run(half, data, jnp.asarray(order[3:]))
    for a, b in zip(_numbers(whole), _numbers(both), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_state_keeps_its_types_in_double_precision(x64):
    algorithm = mcem.mcem(_problem().generative, optax.sgd(0.1), num_data=10)
    state = algorithm.init(jax.random.key(1), _problem().params)
    batch = Batch(jnp.ones((4, 3)), jnp.arange(4), jnp.ones(4))
    after, info = jax.eval_shape(algorithm.step, jax.random.key(2), state, batch)
    assert state.chains.dtype == jnp.float64
    assert {leaf.dtype for leaf in info} == {jnp.dtype(jnp.float64)}
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)),
        state,
        after,
    )


# The fitted normal


@pytest.mark.slow
def test_a_fitted_normal_is_the_posterior_of_a_linear_gaussian_model(x64):
    problem, x = _problem(), jnp.asarray(X, jnp.float64)
    q = mcem.fitted_normal(
        jax.random.key(0),
        problem.generative,
        num_latents=2,
        num_samples=20_000,
        num_warmup=300,
        num_leapfrog=6,
        inflation=1.1,
    )
    h = jax.jit(q.encode)(problem.params, x)
    mean, scale = posteriors.mean_and_scale_tril(h, 2)
    exact_mean, exact_covariance = problem.posterior(problem.params, x)
    std = np.sqrt(np.diag(exact_covariance))
    # Five standard errors of 20,000 draws, as though they were 5,000 independent ones.
    np.testing.assert_allclose((mean - exact_mean) / std, 0.0, atol=5 / 5_000**0.5)
    got = scale @ scale.T / 1.1**2 / std[:, None] / std[None, :]
    expected = exact_covariance / std[:, None] / std[None, :]
    np.testing.assert_allclose(got, expected, atol=5 * (2 / 5_000) ** 0.5)

    fixed = q._replace(encode=lambda params, x: h)  # one chain for all draws
    model = vae.model(problem.generative, fixed)
    evidence = marginal.importance_sampling(model, num_samples=2_000)
    results = jax.jit(evidence)(jax.random.key(1), problem.params, x)
    log_p = problem.log_p(problem.params, x)
    assert abs(results.log_p - log_p) < 5 * results.standard_error
    assert results.effective_sample_size > 1_800

    bound = sgvb.sgvb_a(model, num_samples=2_000)
    elbo = jax.jit(bound)(jax.random.key(2), problem.params, x)
    assert -0.05 < elbo - log_p < 0.01


@pytest.mark.slow
def test_a_fit_repeats_itself_and_stops_gradients():
    problem, x = _problem(), jnp.asarray(X)
    q = mcem.fitted_normal(jax.random.key(0), problem.generative, **FIT)
    encode = jax.jit(q.encode)
    xs = jnp.stack([x, x + 0.5])
    both = jax.jit(jax.vmap(q.encode, (None, 0)))(problem.params, xs)
    for i in range(2):
        np.testing.assert_allclose(both[i], encode(problem.params, xs[i]), rtol=1e-3)
    np.testing.assert_array_equal(encode(problem.params, x), encode(problem.params, x))
    assert jnp.abs(both[0] - both[1]).max() > 0.01
    grads = jax.jit(jax.grad(lambda *a: q.encode(*a).sum(), (0, 1)))(problem.params, x)
    assert all((leaf == 0.0).all() for leaf in jax.tree.leaves(grads))


# Edge


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_data", 0),
        ("num_leapfrog", 0),
        ("num_updates", 0),
        ("target_acceptance", 1.5),
        ("initial_step_size", -1.0),
        ("jitter", 1.0),
        ("weight_decay", -1.0),
    ],
)
def test_numbers_that_cannot_work_are_refused(name, value):
    settings = {"num_data": 10} | {name: value}
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        mcem.mcem(_problem().generative, optax.sgd(0.1), **settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_samples", 2),
        ("num_warmup", -1),
        ("num_latents", 0),
        ("shrinkage", 0.0),
        ("inflation", 0.0),
    ],
)
def test_a_fit_that_cannot_work_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        mcem.fitted_normal(
            jax.random.key(0), _problem().generative, **FIT | {name: value}
        )
