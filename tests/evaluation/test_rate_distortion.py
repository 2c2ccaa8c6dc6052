"""Curves by annealing against those of a linear model, and of an enumerated one."""

import itertools
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax.evaluation import annealing, rate_distortion
from vae_jax.latent_models import ppca, ppca_bounds, sigmoid_belief
from vae_jax.types import Generative, Params, log_likelihood

BETAS = (0.1, 1.0, 8.0)
STD = 0.6


@pytest.fixture(scope="module")
def linear():
    """A linear model of two latents, its parameters, and an x."""
    rng = np.random.default_rng(0)
    theta = ppca.parameters(rng.normal(size=(4, 2)), rng.normal(size=4), np.log(STD))
    params = Params(jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), theta), ())
    return ppca.generative(2, (4,)), params, jnp.asarray([0.4, -1.3, 2.0, 0.1])


class _Settings(TypedDict):
    num_chains: int


def _exact(params, x, betas=BETAS):
    """Rates and distortions in closed form, [2, B]."""
    closed = jax.jit(ppca_bounds.rate_distortion, static_argnames="beta")
    return np.array([closed(params, x, beta=beta) for beta in betas], np.float64).T


def _within(curve, rates, distortions):
    z_rate = (np.asarray(curve.rate) - rates) / curve.rate_standard_error
    errors = np.asarray(curve.distortion) - distortions
    z_distortion = errors / curve.distortion_standard_error
    assert np.abs(z_rate).max() < 4.0, z_rate
    assert np.abs(z_distortion).max() < 4.0, z_distortion
    assert np.asarray(curve.rate_standard_error).max() < 0.2
    assert (np.asarray(curve.distortion_standard_error) < 0.1 * distortions).all()


@pytest.mark.slow
def test_the_curve_is_the_closed_one_within_its_standard_errors(linear):
    generative, params, x = linear
    estimate = rate_distortion.annealed_curve(
        generative, betas=BETAS, num_temperatures=150, num_chains=400, num_pilot=100
    )
    curve = jax.jit(estimate)(jax.random.key(0), params, x)
    exact = _exact(params, x)
    _within(curve, *exact)
    assert 0.4 < curve.acceptance < 0.95
    assert (
        (curve.effective_sample_size > 50) & (curve.effective_sample_size < 400)
    ).all()
    np.testing.assert_allclose(
        curve.rate + np.array(BETAS) * curve.distortion, -curve.log_z, rtol=1e-5
    )
    log_p = float(ppca.log_evidence(params, x))
    np.testing.assert_allclose(curve.log_z[1], log_p, atol=0.2)


@pytest.mark.slow
def test_forward_standard_errors_are_the_spread_over_repeats(linear):
    generative, params, x = linear
    estimate = rate_distortion.annealed_curve(
        generative,
        betas=(0.1, 0.3, 1.0),
        num_temperatures=6,  # few, so that log Z and D of a chain depend on each other
        num_chains=300,
        num_pilot=0,
    )
    keys = jax.random.split(jax.random.key(5), 400)
    curves = jax.jit(jax.vmap(estimate, (0, None, None)))(keys, params, x)
    for name in ("rate", "distortion"):
        spread = np.std(getattr(curves, name), axis=0, ddof=1)
        error = np.mean(getattr(curves, f"{name}_standard_error"), axis=0)
        np.testing.assert_allclose(error, spread, rtol=0.15)


@pytest.mark.slow
def test_reverse_standard_errors_are_the_spread_over_repeats_from_one_z(linear):
    """Whose unit is estimated too: at beta = 1 it is all that varies."""
    whole, params, x = linear
    generative = Generative(
        init=whole.init,
        sample_prior=lambda key, params: jnp.array([0.5, -0.2]),
        log_prior=whole.log_prior,
        log_likelihood_terms=whole.log_likelihood_terms,
        sample_observation=lambda key, params, z: x,
        mean_observation=whole.mean_observation,
    )
    estimate = rate_distortion.simulated_curves(
        generative,
        betas=(0.3, 1.0),
        num_temperatures=20,
        num_chains=100,
        num_pilot=0,
    )
    keys = jax.random.split(jax.random.key(6), 400)
    curves = jax.jit(jax.vmap(estimate, (0, None)))(keys, params).reverse
    spread = np.std(curves.rate, axis=0, ddof=1)
    error = np.mean(curves.rate_standard_error, axis=0)
    assert spread.min() > 0.01
    np.testing.assert_allclose(error, spread, rtol=0.2)


@pytest.mark.slow
def test_squared_error_has_the_curve_of_its_normal_likelihood(linear):
    generative, params, x = linear
    scale = 2.0 * STD**2
    estimate = rate_distortion.annealed_curve(
        generative,
        betas=[beta / scale for beta in BETAS],
        num_temperatures=150,
        num_chains=400,
        num_pilot=100,
        distortion=rate_distortion.squared_error(generative),
    )
    curve = jax.jit(estimate)(jax.random.key(1), params, x)
    rates, distortions = _exact(params, x)
    normalizer = 2.0 * np.log(2.0 * np.pi * STD**2)
    _within(curve, rates, scale * (distortions - normalizer))


@pytest.mark.slow
def test_simulated_curves_are_unbiased_from_both_ends_however_short(linear):
    generative, params, _ = linear
    betas = (0.3, 1.0, 2.0)
    estimate = rate_distortion.simulated_curves(
        generative, betas=betas, num_temperatures=6, num_chains=2, num_pilot=6
    )
    keys = jax.random.split(jax.random.key(2), 3000)
    sides = jax.jit(jax.vmap(estimate, in_axes=(0, None)))(keys, params)
    exact = {
        beta: jax.jit(
            jax.vmap(lambda x, b=beta: ppca_bounds.rate_distortion(params, x, beta=b))
        )(sides.x)
        for beta in betas
    }
    for i, beta in enumerate(betas):
        log_z = -exact[beta].rate - beta * exact[beta].distortion
        ratio = jnp.exp(sides.forward.log_z[:, i] - log_z)
        testing.assert_mean_equals(ratio, jnp.ones(()))
    assert sides.reverse.log_z.shape == (3000, 2)
    log_p = jax.vmap(ppca.log_evidence, in_axes=(None, 0))(params, sides.x)
    inverse = jnp.exp(log_p - sides.reverse.log_z[:, 1])
    testing.assert_mean_equals(inverse, jnp.ones(()))
    error = sides.reverse.distortion[:, 1] - exact[1.0].distortion
    testing.assert_mean_equals(error, jnp.zeros(()))
    # Both bounds are loose after six steps, each on its own side.
    assert (sides.forward.log_z[:, 1] - log_p).mean() < -0.02
    assert (sides.reverse.log_z[:, 1] - log_p).mean() > 0.02


@pytest.mark.slow
def test_longer_walks_bring_both_ends_together_below_one_too(linear):
    generative, params, _ = linear
    betas = (0.1, 0.4, 1.0)
    estimate = rate_distortion.simulated_curves(
        generative, betas=betas, num_temperatures=120, num_chains=100, num_pilot=100
    )
    keys = jax.random.split(jax.random.key(3), 20)
    sides = jax.jit(jax.vmap(estimate, in_axes=(0, None)))(keys, params)
    exact = np.stack([_exact(params, x, betas) for x in sides.x])
    for side in (sides.forward, sides.reverse):  # at 1 the reverse D is of one draw
        errors = np.asarray(side.rate - exact[:, 0])[:, :2]
        assert np.abs(errors).max() < 0.4
        assert np.abs(errors.mean(axis=0)).max() < 0.05


@pytest.mark.slow
def test_bits_have_the_curve_of_their_enumeration():
    generative = sigmoid_belief.generative((3,), (4,))
    params = Params(
        jax.tree.map(
            lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape),
            generative.init(jax.random.key(0)),
        ),
        (),
    )
    x = jnp.array([1.0, 0.0, 1.0, 1.0])
    estimate = rate_distortion.annealed_curve(
        generative,
        betas=BETAS,
        num_temperatures=60,
        num_chains=1000,
        kernel=annealing.gibbs_kernel(num_updates=3),
        num_pilot=0,
    )
    curve = jax.jit(estimate)(jax.random.key(4), params, x)
    all_z = jnp.array([*itertools.product((0.0, 1.0), repeat=3)])
    log_prior = jax.vmap(generative.log_prior, in_axes=(None, 0))(params, all_z)
    d = -jax.vmap(lambda z: log_likelihood(generative, params, x, z))(all_z)
    for i, beta in enumerate(BETAS):
        q = np.asarray(jax.nn.softmax(log_prior - beta * d), np.float64)
        log_z = jax.nn.logsumexp(log_prior - beta * d)
        z = (curve.distortion[i] - q @ d) / curve.distortion_standard_error[i]
        assert abs(z) < 4.0
        np.testing.assert_allclose(curve.log_z[i], log_z, atol=0.1)


@pytest.mark.slow
def test_an_encoders_point_is_its_kl_and_its_expected_distortion():
    problem, x = problems.linear_gaussian(num_features=3), jnp.array([0.5, -1.0, 2.0])
    exact = problem.kl(problem.params, x), -problem.reconstruction(problem.params, x)
    plain = rate_distortion.encoder_point(problem.model, num_samples=4000)
    squared = rate_distortion.squared_error(problem.generative)
    errors = rate_distortion.encoder_point(
        problem.model, num_samples=4000, distortion=squared
    )
    for estimate, scale, constant in ((plain, 1.0, 0.0), (errors, 2.0 * 0.8**2, None)):
        rate, distortion = jax.jit(estimate)(jax.random.key(0), problem.params, x)
        if constant is None:
            constant = 1.5 * np.log(2.0 * np.pi * 0.8**2)
        np.testing.assert_allclose(rate, exact[0], rtol=0.05)
        np.testing.assert_allclose(distortion, scale * (exact[1] - constant), rtol=0.05)


def test_a_schedule_holds_the_betas_in_equal_shares():
    walk = rate_distortion.schedule(BETAS, num_temperatures=9)
    np.testing.assert_array_equal(walk.temperatures[walk.places], BETAS)
    assert walk.temperatures[0] == 0.0
    assert len(walk.temperatures) == 10
    np.testing.assert_array_equal(walk.places, [3, 6, 9])
    np.testing.assert_allclose(np.diff(walk.temperatures[:4]), 0.1 / 3)
    np.testing.assert_allclose(np.diff(np.log(walk.temperatures[3:7])), np.log(10) / 3)
    assert rate_distortion.schedule((2.0,), num_temperatures=1).temperatures[1] == 2.0


def test_tangents_meet_the_curve_at_its_points_and_stay_below_between():
    beta = np.geomspace(0.05, 20.0, 40)
    precision = 1.0 + beta  # of q, for z and x - z standard normal, and x = 2
    mean = 2.0 * beta / precision
    rates = 0.5 * (1.0 / precision + mean**2 - 1.0 + np.log(precision))
    distortions = 0.5 * ((2.0 - mean) ** 2 + 1.0 / precision)
    log_z = -rates - beta * distortions
    few = slice(None, None, 13)
    for i, (rate, distortion) in enumerate(zip(rates, distortions, strict=True)):
        at = rate_distortion.rate_at(distortion, beta.tolist(), log_z)
        np.testing.assert_allclose(at, rate, rtol=1e-9)
        at = rate_distortion.rate_at(distortion, beta[few].tolist(), log_z[few])
        assert at < rate + 1e-12
        assert (at > rate - 1e-12) == (i % 13 == 0)
    assert rate_distortion.rate_at(1e6, beta.tolist(), log_z) == 0.0


def test_what_has_no_curve_is_refused():
    problem = problems.linear_gaussian()
    build, settings = rate_distortion.annealed_curve, _Settings(num_chains=2)
    for betas in ((), (0.0, 1.0), (1.0, 1.0), (1.0, np.inf)):
        with pytest.raises(ValueError, match="betas must be positive, finite and ris"):
            build(problem.generative, betas=betas, num_temperatures=9, **settings)
    with pytest.raises(ValueError, match="=1 is below the number of betas, 2"):
        build(problem.generative, betas=(1, 2), num_temperatures=1, **settings)
    with pytest.raises(ValueError, match=r"betas must hold 1, .* got \(0.5, 2.0\)"):
        rate_distortion.simulated_curves(
            problem.generative, betas=(0.5, 2.0), num_temperatures=9, **settings
        )
