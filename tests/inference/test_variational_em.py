import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems, testing
from vae_jax import posteriors, vae
from vae_jax.estimators import sgvb
from vae_jax.inference import variational_em
from vae_jax.training import loop
from vae_jax.types import Batch, Params

pytestmark = pytest.mark.uses_optax
NUM_DATA = 200


def _rows(problem, num):
    """Rows drawn from the model with another theta."""

    def draw(key):
        key_z, key_x = jax.random.split(key)
        z = problem.generative.sample_prior(key_z, problem.params)
        return problem.generative.sample_observation(key_x, problem.params, z)

    return jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), num))


def _fit(problem, *, num_data=NUM_DATA, optimizer=None, **settings):
    return variational_em.variational_em(
        problem.generative,
        posteriors.diag_normal(1),
        optimizer or optax.adam(0.02),
        num_data=num_data,
        **settings,
    )


@pytest.mark.slow
def test_the_search_finds_the_exact_posterior_where_the_family_holds_it(x64):
    problem = problems.linear_gaussian(num_latents=2, num_features=3)
    q = variational_em.optimized(
        jax.random.key(0),
        problem.generative,
        posteriors.full_normal(2),
        num_samples=4,
        num_steps=1000,
    )
    x = jnp.array([0.7, -1.2, 0.4])
    h = jax.jit(q.encode)(problem.params, x)
    mean, covariance = problem.posterior(problem.params, x)
    got_mean, scale = posteriors.mean_and_scale_tril(h, 2)
    # The path gradient has no noise at the posterior, so the search lands on it.
    np.testing.assert_allclose(got_mean, mean, rtol=1e-3)
    np.testing.assert_allclose(scale @ scale.T, covariance, rtol=1e-3)
    objective = sgvb.sgvb_a(vae.model(problem.generative, q), num_samples=1)
    value = jax.jit(objective)(jax.random.key(1), problem.params, x)
    np.testing.assert_allclose(value, problem.log_p(problem.params, x), atol=1e-3)


@pytest.mark.slow
def test_a_search_runs_where_no_type_is_promoted():
    problem = problems.linear_gaussian()
    q = variational_em.optimized(
        jax.random.key(0), problem.generative, posteriors.diag_normal(1), num_steps=2
    )
    with jax.numpy_dtype_promotion("strict"):
        h = jax.jit(q.encode)(problem.params, jnp.array([0.7, -1.2]))
    assert h.dtype == jnp.float32
    assert h.any()


@pytest.mark.slow
def test_theta_gets_the_exact_gradient_of_the_bound_at_the_rows_own_q(x64):
    problem = problems.linear_gaussian()
    still = _fit(problem, num_steps=1, learning_rate=1e-12, optimizer=optax.sgd(1.0))
    x = _rows(problem, 4)
    state = jax.jit(still.init)(jax.random.key(0), problem.params)
    batch = Batch(x, jnp.arange(4), jnp.ones(4))

    def moved(key):
        after, info = still.step(key, state, batch)
        return jax.tree.map(jnp.subtract, after.params, state.params), info.bound

    keys = jax.random.split(jax.random.key(1), 20_000)
    theta, values = jax.jit(jax.vmap(moved))(keys)
    # h = 0: an encoder whose weights are all zero.
    blank = jax.tree.map(jnp.zeros_like, problem.params.recognition)

    def bound(theta):
        params = Params(theta, blank)
        return jax.vmap(problem.elbo, in_axes=(None, 0))(params, x).mean()

    exact, slope = jax.jit(jax.value_and_grad(bound))(problem.params.generative)
    testing.assert_mean_equals(theta.generative, slope)
    testing.assert_mean_equals(values, exact)
    assert all(not leaf.any() for leaf in jax.tree.leaves(theta.recognition))


@pytest.mark.slow
def test_variational_em_reaches_the_maximum_likelihood_of_a_linear_model():
    problem = problems.linear_gaussian(num_features=3, std=0.5)
    x = _rows(problem, NUM_DATA)
    fit = _fit(problem, num_samples=2)
    start = Params(problem.generative.init(jax.random.key(5)), ())
    state = loop.start(jax.random.key(0), fit, start)
    order = jnp.tile(jnp.arange(NUM_DATA).reshape(4, 50), (60, 1))
    state, info = loop.scan(fit, loop.take_rows)(state, x, order)
    params = Params(state.inner.params.generative, problem.params.recognition)
    reached = jax.vmap(problem.log_p, in_axes=(None, 0))(params, x).mean()
    # W W^T = (l_1 - s2) u u^T, Tipping & Bishop 1999, at the known s2.
    centered = np.asarray(x, np.float64) - np.asarray(x, np.float64).mean(0)
    covariance = centered.T @ centered / NUM_DATA
    values, vectors = np.linalg.eigh(covariance)
    spread = max(values[-1] - 0.25, 0.0) * np.outer(vectors[:, -1], vectors[:, -1])
    model = spread + 0.25 * np.eye(3)
    best = -0.5 * (
        np.linalg.slogdet(2 * np.pi * model)[1]
        + np.trace(np.linalg.solve(model, covariance))
    )
    assert best - 0.02 < reached < best + 1e-4
    np.testing.assert_allclose(info.bound[-20:].mean(), best, atol=0.05)
    assert (info.bound[:4] > info.monitored["starting_bound"][:4] + 0.1).all()


@pytest.mark.slow
def test_only_the_rows_of_the_batch_move_and_noise_is_the_steps_own():
    problem = problems.linear_gaussian()
    fit = _fit(problem, num_data=6, num_steps=3)
    x = _rows(problem, 6)
    key = jax.random.key(0)
    whole, halves = (loop.start(jax.random.clone(key), fit, problem.params),) * 2
    halves = loop.start(jax.random.clone(key), fit, problem.params)
    order = jnp.array([[0, 2], [2, 4]])
    scan = loop.scan(fit, loop.take_rows)
    whole, _ = scan(whole, x, order)
    for row in (order[:1], order[1:]):
        halves, _ = scan(halves, x, row)
    moved = np.abs(np.asarray(whole.inner.memory)).sum(axis=1) > 0.0
    assert moved.tolist() == [True, False, True, False, True, False]
    chex.assert_trees_all_equal(whole.inner, halves.inner)


@pytest.mark.slow
def test_a_prior_on_theta_reaches_the_m_step():
    problem = problems.linear_gaussian()
    x = _rows(problem, 4)
    batch = Batch(x, jnp.arange(4), jnp.ones(4))
    moved = []
    for weight_decay in (0.0, 8.0):
        fit = _fit(
            problem,
            num_data=4,
            num_steps=1,
            optimizer=optax.sgd(1.0),
            weight_decay=weight_decay,
        )
        state = fit.init(jax.random.key(0), problem.params)
        after, _ = jax.jit(fit.step)(jax.random.key(1), state, batch)
        moved.append(after.params.generative)
    difference = jax.tree.map(jnp.subtract, moved[0], moved[1])
    jax.tree.map(
        lambda d, theta: np.testing.assert_allclose(d, 2.0 * theta, rtol=1e-4),
        difference,
        problem.params.generative,
    )


@pytest.mark.parametrize(
    "changes",
    [{"num_data": 0}, {"num_samples": 0}, {"num_steps": 0}, {"learning_rate": 0.0}],
)
def test_bad_settings_are_refused_when_built(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must "):
        _fit(problems.linear_gaussian(), **changes)


@pytest.mark.slow
def test_an_optimizer_with_weight_decay_leaves_phi_as_it_is():
    problem = problems.linear_gaussian()
    fit = _fit(problem, optimizer=optax.adamw(0.1, weight_decay=0.5), num_steps=1)
    state = jax.jit(fit.init)(jax.random.key(0), problem.params)
    batch = Batch(_rows(problem, 2), jnp.arange(2), jnp.ones(2))
    after, _ = jax.jit(fit.step)(jax.random.key(0), state, batch)
    chex.assert_trees_all_equal(after.params.recognition, problem.params.recognition)
