import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax import posteriors
from vae_jax.inference import hmc

MEAN = np.array([0.5, -1.0])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])
ARGUMENTS = {"num_samples": 20, "num_warmup": 10, "num_leapfrog": 3}


def _log_density(z):
    """N(MEAN, COVARIANCE) up to a constant."""
    centered = z - jnp.asarray(MEAN, z.dtype)
    precision = jnp.asarray(np.linalg.inv(COVARIANCE), z.dtype)
    return -0.5 * centered @ precision @ centered


def _draw_exactly(num, *, seed=0):
    noise = jax.random.normal(jax.random.key(seed), (num, 2))
    scale = jnp.asarray(np.linalg.cholesky(COVARIANCE), noise.dtype)
    return jnp.asarray(MEAN, noise.dtype)[None] + noise @ scale.T


def _moments(z):
    """The first and second moments of every row about the exact mean."""
    centered = np.asarray(z, np.float64) - MEAN
    return centered, centered[..., :, None] * centered[..., None, :]


@functools.cache
def _transitions(num_leapfrog):
    def move(key, z, step_size):
        return hmc.transition(key, _log_density, z, step_size, num_leapfrog)

    return jax.jit(jax.vmap(move, in_axes=(0, 0, None)))


@functools.cache
def _chains(num, **settings):
    """Chains from far away, each at its own key."""
    run = hmc.samples(**settings)
    return jax.jit(jax.vmap(lambda key, z: run(key, _log_density, z)))(
        jax.random.split(jax.random.key(3), num), jnp.full((num, 2), 4.0)
    )


# Statistical


@pytest.mark.slow
@pytest.mark.parametrize("step_size", [0.3, 1.0])
def test_exact_samples_stay_exact_and_the_mean_of_exp_minus_the_energy_error_is_one(
    step_size,
):
    z = _draw_exactly(40_000)
    keys = jax.random.split(jax.random.key(1), len(z))
    moved, info = _transitions(3)(keys, z, step_size)
    testing.assert_mean_equals(_moments(moved), (np.zeros(2), COVARIANCE))
    # E[exp(H - H')] = 1 for any map that preserves volume: Neal 2011, section 4.
    testing.assert_mean_equals(jnp.exp(-info.energy_error), 1.0)
    assert (jnp.abs(moved - z).max(1) > 0).mean() > 0.5
    # Rejected rows stay where they were, as often as the probabilities say.
    stayed = (moved == z).all(1).astype(z.dtype)
    testing.assert_mean_equals(stayed - (1.0 - info.acceptance), 0.0)
    np.testing.assert_allclose(
        info.acceptance, jnp.minimum(1.0, jnp.exp(-info.energy_error)), rtol=1e-5
    )


@pytest.mark.slow
def test_chains_find_the_mean_and_the_covariance_from_far_away():
    chains = _chains(400, num_samples=200, num_warmup=150, num_leapfrog=4)
    # Chains are independent, so the means of each are: autocorrelation is inside them.
    per_chain = jax.tree.map(lambda leaf: leaf.mean(1), _moments(chains.positions))
    testing.assert_mean_equals(per_chain, (np.zeros(2), COVARIANCE))
    assert (chains.divergent == 0.0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("target", "initial"), [(0.65, 10.0), (0.9, 0.02)])
def test_the_acceptance_after_warm_up_is_the_target(target, initial):
    chains = _chains(
        100,
        num_samples=200,
        num_warmup=300,
        num_leapfrog=10,
        target_acceptance=target,
        initial_step_size=initial,
    )
    np.testing.assert_allclose(chains.acceptance.mean(), target, atol=0.03)
    assert (chains.step_size > 0.05).all()


@pytest.mark.slow
def test_the_energy_error_goes_as_the_square_of_the_step_size(x64):
    z = _draw_exactly(2_000)
    errors = []
    for step_size, num_leapfrog in ((0.1, 5), (0.05, 10), (0.025, 20)):
        keys = jax.random.split(jax.random.key(1), len(z))
        _, info = _transitions(num_leapfrog)(keys, z, step_size)
        errors.append(jnp.abs(info.energy_error).mean())
    ratios = np.divide(errors[:-1], errors[1:])
    np.testing.assert_allclose(ratios, 4.0, rtol=0.02)


# Oracle


def test_a_fitted_normal_has_the_draws_mean_and_covariance(x64):
    draws = _draw_exactly(50)
    fit = hmc.normal_fit(num_latents=2, num_samples=50, shrinkage=0.01, inflation=1.5)
    h = fit(draws)
    mean, scale = posteriors.mean_and_scale_tril(h, 2)
    expected = np.cov(np.asarray(draws).T)
    expected[[0, 1], [1, 0]] *= 0.99
    np.testing.assert_allclose(mean, np.mean(draws, 0), rtol=1e-9)
    np.testing.assert_allclose(scale @ scale.T, 1.5**2 * expected, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0])
def test_a_fit_to_draws_on_a_line_or_on_a_point_is_finite(spread):
    line = jnp.linspace(-spread, spread, 30)
    fit = hmc.normal_fit(num_latents=3, num_samples=30)
    h = fit(jnp.stack([line, 2.0 * line, line], 1) + 1.0)
    log_q = posteriors.full_normal(3).log_prob((), h, jnp.ones(3))
    assert jnp.isfinite(h).all()
    assert jnp.isfinite(log_q)


# Transformation


@pytest.mark.slow
def test_jit_and_vmap_agree_with_a_loop(x64):
    run = hmc.samples(**ARGUMENTS)
    keys, z = jax.random.split(jax.random.key(0), 3), _draw_exactly(3)

    def single(key, z):
        return run(key, _log_density, z)

    got = jax.jit(jax.vmap(single))(jax.random.clone(keys), z)
    eager = single(jax.random.clone(keys)[0], z[0])
    compiled = jax.jit(single)
    for i in range(3):
        expected = compiled(keys[i], z[i])
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-8)
    for a, b in zip(got, eager, strict=True):
        np.testing.assert_allclose(a[0], b, rtol=1e-8)


@pytest.mark.slow
def test_the_step_size_is_frozen_while_draws_are_taken():
    short = _chains(5, **ARGUMENTS)
    long = _chains(5, **ARGUMENTS | {"num_samples": 30})
    np.testing.assert_array_equal(short.step_size, long.step_size)
    np.testing.assert_allclose(short.positions, long.positions[:, :20], rtol=1e-6)
    cold = _chains(5, **ARGUMENTS | {"num_warmup": 0, "initial_step_size": 0.25})
    np.testing.assert_allclose(cold.step_size, np.full(5, 0.25), rtol=1e-6)


@pytest.mark.parametrize("double", [False, True])
def test_the_dtype_is_that_of_the_position(double):
    with jax.enable_x64(double):
        dtype = jnp.float64 if double else jnp.float32
        z = jnp.zeros(2, dtype)
        draws = jax.eval_shape(
            lambda key: hmc.samples(**ARGUMENTS)(key, _log_density, z),
            jax.random.key(0),
        )
        moved, info = jax.eval_shape(
            lambda key: hmc.transition(key, _log_density, z, 0.1, 2), jax.random.key(0)
        )
        assert {leaf.dtype for leaf in draws} == {jnp.dtype(dtype)}
        assert moved.dtype == info.acceptance.dtype == info.energy_error.dtype == dtype


def test_matrix_products_of_the_density_run_at_the_highest_precision():
    weights = jnp.eye(2)

    def log_density(z):
        return -0.5 * jnp.sum((weights @ z) ** 2)

    program = jax.make_jaxpr(
        lambda key: hmc.transition(key, log_density, jnp.ones(2), 0.1, 2)
    )(jax.random.key(0))
    text = str(program)
    assert "HIGHEST" in text
    assert "precision=None" not in text


# Edge


def test_a_trajectory_that_leaves_the_numbers_is_rejected():
    def log_density(z):
        return jnp.where(z[0] > 3.0, jnp.nan, -jnp.sum(z**4))

    z = jnp.array([2.0, 0.0])
    moved, info = jax.jit(lambda key: hmc.transition(key, log_density, z, 50.0, 3))(
        jax.random.key(0)
    )
    np.testing.assert_array_equal(moved, z)
    assert info.acceptance == 0.0
    assert info.energy_error == jnp.inf
    assert info.divergent


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_samples", 0),
        ("num_warmup", -1),
        ("num_leapfrog", 0),
        ("target_acceptance", 1.0),
        ("target_acceptance", 0.0),
        ("initial_step_size", 0.0),
        ("jitter", 1.0),
        ("jitter", -0.1),
    ],
)
def test_numbers_that_cannot_work_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        hmc.samples(**ARGUMENTS | {name: value})


def test_a_trajectory_of_no_steps_is_refused():
    with pytest.raises(ValueError, match=r"num_leapfrog .*0"):
        hmc.transition(jax.random.key(0), _log_density, jnp.zeros(2), 0.1, 0)


@pytest.mark.slow
def test_the_start_is_near_a_draw_of_the_posterior(x64):
    problem = problems.linear_gaussian(num_latents=2, num_features=3)
    x = jnp.array([0.5, -0.3, 0.2])
    keys = jax.random.split(jax.random.key(8), 4000)

    def at(num_draws):
        return jax.jit(
            jax.vmap(
                lambda key: hmc.start(
                    key, problem.generative, problem.params, x, num_draws=num_draws
                )
            )
        )

    mean, covariance = map(np.asarray, problem.posterior(problem.params, x))
    many = np.asarray(at(500)(jax.random.clone(keys)))
    testing.assert_mean_equals(many, mean)
    products = (many - mean)[:, :, None] * (many - mean)[:, None, :]
    testing.assert_mean_equals(products, covariance)
    alone = np.asarray(at(1)(keys))  # a draw of the prior
    testing.assert_mean_equals(alone, np.zeros(2))
    testing.assert_mean_equals(alone**2, np.ones(2))
    with pytest.raises(ValueError, match="num_draws must be positive"):
        hmc.start(jax.random.key(0), problem.generative, problem.params, x, num_draws=0)
