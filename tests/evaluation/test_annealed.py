import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import problems, testing
from vae_jax import posteriors, vae
from vae_jax.evaluation import annealed, annealing, examples, marginal, weights
from vae_jax.types import Params, log_joint


def _chains(num_temperatures, num_chains, **settings):
    return annealing.chains(
        temperatures=annealing.linear(num_temperatures),
        num_chains=num_chains,
        **settings,
    )


def _check(results, *, step=1):
    """Refuses the results of every step-th example that `annealed` refuses."""
    values = results.log_p, results.acceptance, results.step_size
    annealed.check(*(np.ravel(leaf)[::step] for leaf in values))


def _exact(problem):
    """p(z | x) of a linear-Gaussian model with its full covariance."""
    density = posteriors.full_normal(problem.posterior(problem.params, _X)[0].size)

    def encode(params, x):
        mean, covariance = problem.posterior(params, x)
        scale = jnp.linalg.cholesky(covariance)
        logs = jnp.tril(scale, -1) + jnp.diag(jnp.log(jnp.diagonal(scale)))
        return jnp.concatenate([mean, logs[jnp.tril_indices(mean.size)]])

    return vae.recognition(encode, density)


_X = jnp.linspace(-1.0, 0.7, 4)


@functools.cache
def _simulated(num_temperatures, num_draws, num_chains):
    """Both sides of log p(x) for draws of a linear model, and what theory says.

    Ten latents, twenty features, W_ij ~ N(0, 1/10), noise of std 1.
    """
    problem = problems.linear_gaussian(num_latents=10, num_features=20, std=1.0)
    layer = problem.params.generative["decoder"]["output"]
    kernel = np.random.default_rng(0).normal(size=(10, 20)) / np.sqrt(10.0)
    theta = {"decoder": {"output": {**layer, "kernel": jnp.asarray(kernel, "float32")}}}
    params = Params({**problem.params.generative, **theta}, problem.params.recognition)
    # Rejected transitions widen the gap, at an acceptance of 0.65 about threefold.
    chains = _chains(
        num_temperatures,
        num_chains,
        kernel=annealing.hmc_kernel(num_leapfrog=4),
        target_acceptance=0.9,
    )
    both = annealed.bidirectional(problem.generative, chains)
    keys = jax.random.split(jax.random.key(1), num_draws)
    results = jax.jit(jax.vmap(both, in_axes=(0, None)))(keys, params)
    results = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), results)

    w, b = kernel.T, np.asarray(layer["bias"], np.float64)
    exact = stats.multivariate_normal(b, w @ w.T + np.eye(20)).logpdf(results.x)
    covariance = np.linalg.inv(np.eye(10) + w.T @ w)
    means = (results.x - b) @ w @ covariance

    def log_likelihood(means, covariance):
        residual = ((results.x - b - means @ w.T) ** 2).sum(1)
        return -0.5 * (residual + np.trace(w @ covariance @ w.T))

    gain = log_likelihood(means, covariance) - log_likelihood(0.0 * means, np.eye(10))
    return results, exact, gain.mean()


# Oracle


@pytest.mark.slow
def test_from_the_exact_posterior_every_weight_is_p_of_x():
    problem = problems.linear_gaussian(num_latents=2, num_features=4)
    estimate = annealed.ais(
        problem.generative, _chains(3, 5, num_pilot=4), recognition=_exact(problem)
    )
    results = jax.jit(estimate)(jax.random.key(0), problem.params, _X)
    exact = problem.log_p(problem.params, _X)
    np.testing.assert_allclose(results.log_p, exact, atol=1e-5)
    np.testing.assert_allclose(results.mean_log_weight, exact, atol=1e-5)
    assert results.standard_error < 1e-3
    assert results.effective_sample_size > 4.999


@pytest.mark.slow
def test_one_temperature_is_sampling_from_the_prior():
    problem = problems.linear_gaussian(num_latents=2, num_features=4)
    x = _X
    chains = _chains(1, 400, num_pilot=0)
    keys = jax.random.split(jax.random.key(0), 200)
    samples = jax.jit(
        jax.vmap(annealed.ais(problem.generative, chains), (0, None, None))
    )
    results = samples(keys, problem.params, x)
    z = jax.random.normal(jax.random.key(1), (100_000, 2))
    log_joints = jax.vmap(lambda z: log_joint(problem.generative, problem.params, x, z))
    log_lik = np.asarray(log_joints(z)) - stats.norm.logpdf(np.asarray(z)).sum(1)
    testing.assert_mean_equals(results.mean_log_weight, log_lik.mean())
    exact = problem.log_p(problem.params, x)
    testing.assert_mean_equals(np.exp(results.log_p - exact), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("num_temperatures", [50, 100])
def test_forward_and_reverse_stand_on_their_sides_about_j_over_2t_away(
    num_temperatures,
):
    results, exact, gain = _simulated(num_temperatures, 300, 4)
    expected = 0.5 * gain / num_temperatures
    below = exact - results.lower.mean_log_weight
    above = results.upper.mean_log_weight - exact
    for distance in (below, above):
        error = distance.std(ddof=1) / np.sqrt(len(distance))
        assert distance.mean() > 3.0 * error
        assert error < 0.2 * expected
        assert 0.5 * expected < distance.mean() < 2.0 * expected


@pytest.mark.slow
def test_twice_the_temperatures_halve_the_gap():
    gaps = []
    for num_temperatures in (50, 100):
        results, _, _ = _simulated(num_temperatures, 300, 4)
        gap = results.upper.mean_log_weight - results.lower.mean_log_weight
        gaps.append(gap.mean())
    assert 1.4 < gaps[0] / gaps[1] < 2.9


@pytest.mark.long
def test_at_1000_temperatures_the_gap_is_below_a_twentieth_of_a_nat():
    results, exact, gain = _simulated(1000, 4000, 4)
    gap = results.upper.mean_log_weight - results.lower.mean_log_weight
    assert gap.std() / np.sqrt(len(gap)) < 0.004
    assert 0.5 * gain / 1000 < gap.mean() < min(0.05, 2.0 * gain / 1000)
    assert (results.lower.mean_log_weight - exact).mean() < 0.0
    assert (results.upper.mean_log_weight - exact).mean() > 0.0


@pytest.mark.slow
def test_binary_latents_agree_with_their_sum():
    problem = problems.binary_model(num_latents=6, num_pixels=8)
    kernel = annealing.gibbs_kernel(num_updates=6)
    chains = _chains(100, 64, kernel=kernel, num_pilot=0)
    data = jnp.asarray(problems.binary_rows(8)[[3, 100, 200]], "float32")
    evaluate = examples.over_examples(
        annealed.ais(problem.generative, chains), batch_size=3
    )
    results = evaluate(jax.random.key(0), problem.params, data)
    exact = jax.vmap(problem.log_p, in_axes=(None, 0))(problem.params, data)
    error = np.abs(results.log_p - exact) / results.standard_error
    assert (error < 4.0).all()
    assert (results.standard_error < 0.2).all()


@pytest.mark.long
def test_of_twelve_bits_the_sum_importance_sampling_and_annealing_agree():
    problem = problems.binary_model(num_latents=12, num_pixels=20)
    generative, steep = problem.generative, problem.recognition
    # The untrained encoder is so sure of wrong bits that 1e5 draws miss the posterior.
    flat = steep._replace(encode=lambda params, x: 0.3 * steep.encode(params, x))
    keys = jax.random.split(jax.random.key(2), 10)

    def draw(key):
        key_z, key_x = jax.random.split(key)
        z = problem.generative.sample_prior(key_z, problem.params)
        return problem.generative.sample_observation(key_x, problem.params, z)

    data = jax.vmap(draw)(keys)
    exact = np.asarray([problem.log_p(problem.params, x) for x in data], np.float64)
    chains = _chains(
        500, 100, kernel=annealing.gibbs_kernel(num_updates=12), num_pilot=0
    )

    def evaluated(evaluator):
        evaluate = examples.over_examples(evaluator, batch_size=2)
        return evaluate(jax.random.key(0), problem.params, data)

    for evaluator in (
        annealed.ais(generative, chains),
        marginal.importance_sampling(vae.model(generative, flat), num_samples=100_000),
    ):
        results = evaluated(evaluator)
        z = (np.asarray(results.log_p) - exact) / np.asarray(results.standard_error)
        assert np.abs(z).max() < 4.0
    untrusted = marginal.importance_sampling(problem.model, num_samples=100_000)
    assert any("pareto_k" in doubt for doubt in weights.doubts(evaluated(untrusted)))


# Statistical


def _posterior_draw(problem, key, x):
    mean, covariance = problem.posterior(problem.params, x)
    eps = jax.random.normal(key, mean.shape)
    return mean + jnp.linalg.cholesky(covariance) @ eps


@pytest.mark.slow
@pytest.mark.parametrize("from_q", [False, True])
def test_weights_average_to_p_of_x_however_few_temperatures(from_q):
    """Two coarse temperatures, and chains that hardly mix."""
    problem = problems.linear_gaussian(num_latents=2, num_features=4)
    recognition = problem.recognition if from_q else None
    chains = annealing.chains(
        temperatures=np.array([0.0, 0.3, 1.0]),
        num_chains=2,
        kernel=annealing.hmc_kernel(num_leapfrog=2),
        num_pilot=3,
        initial_step_size=0.4,
    )
    settings = {"recognition": recognition}
    up = annealed.ais(problem.generative, chains, **settings)
    down = annealed.reverse_ais(problem.generative, chains, **settings)
    log_p = problem.log_p(problem.params, _X)

    def one(key):
        key_up, key_z, key_down = jax.random.split(key, 3)
        z = _posterior_draw(problem, key_z, _X)
        return (
            jnp.exp(up(key_up, problem.params, _X).log_p - log_p),
            jnp.exp(log_p - down(key_down, problem.params, _X, z).log_p),
        )

    keys = jax.random.split(jax.random.key(0), 10_000)
    below, above = jax.jit(jax.vmap(one))(keys)
    testing.assert_mean_equals(below, 1.0)
    testing.assert_mean_equals(above, 1.0)


@pytest.mark.slow
def test_weights_of_binary_latents_average_to_p_of_x():
    problem = problems.binary_model(num_latents=4, num_pixels=5)
    x = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])
    kernel = annealing.gibbs_kernel(num_updates=2)
    chains = _chains(2, 1, kernel=kernel, num_pilot=0)
    up = annealed.ais(problem.generative, chains)
    down = annealed.reverse_ais(problem.generative, chains)
    z, _, joint = problem.table(problem.params, x)
    log_p = problem.log_p(problem.params, x)

    def one(key):
        key_up, key_z, key_down = jax.random.split(key, 3)
        exact = z[jax.random.categorical(key_z, jnp.log(joint))]
        return (
            jnp.exp(up(key_up, problem.params, x).log_p - log_p),
            jnp.exp(log_p - down(key_down, problem.params, x, exact).log_p),
        )

    keys = jax.random.split(jax.random.key(0), 20_000)
    below, above = jax.jit(jax.vmap(one))(keys)
    testing.assert_mean_equals(below, 1.0)
    testing.assert_mean_equals(above, 1.0)


# Transformation


@pytest.mark.slow
def test_batches_of_examples_and_single_ones_agree():
    problem = problems.linear_gaussian(num_latents=2, num_features=4)
    estimate = annealed.ais(problem.generative, _chains(10, 3, num_pilot=5))
    data = jnp.stack([_X, -_X, 2.0 * _X])
    runs = [
        examples.over_examples(estimate, batch_size=size)(
            jax.random.key(0), problem.params, data
        )
        for size in (1, 3)
    ]
    chex.assert_trees_all_close(*runs, rtol=2e-4)


@pytest.mark.slow
def test_one_key_gives_both_directions_the_same_step_sizes():
    problem = problems.linear_gaussian(num_latents=2, num_features=4)
    chains = _chains(10, 3, num_pilot=5)
    key = jax.random.key(3)
    up = jax.jit(annealed.ais(problem.generative, chains))
    down = jax.jit(annealed.reverse_ais(problem.generative, chains))
    above = down(jax.random.clone(key), problem.params, _X, jnp.zeros(2))
    assert up(key, problem.params, _X).step_size == above.step_size


# Edge


@pytest.mark.slow
@pytest.mark.parametrize("offset", [-5e4, 5e4])
def test_weights_far_from_one_neither_overflow_nor_underflow(offset):
    problem = problems.linear_gaussian(num_latents=2, num_features=4)
    generative = problem.generative

    def terms(params, x, z):
        return generative.log_likelihood_terms(params, x, z) + offset / 4.0

    chains = _chains(8, 3, num_pilot=4)

    def estimates(generative):
        up, down = (
            annealed.ais(generative, chains),
            annealed.reverse_ais(generative, chains),
        )
        key = jax.random.key(3)
        return jax.jit(
            lambda params, z: (
                up(key, params, _X),
                down(jax.random.clone(key), params, _X, z),
            )
        )(problem.params, jnp.zeros(2))

    moved = estimates(generative._replace(log_likelihood_terms=terms))
    for got, expected in zip(moved, estimates(generative), strict=True):
        # An offset of 5e4 leaves the log weights, sums of 8 terms, 4e-2 nats.
        np.testing.assert_allclose(got.log_p, expected.log_p + offset, atol=0.1)
        np.testing.assert_allclose(
            got.standard_error, expected.standard_error, rtol=0.2
        )


@pytest.mark.slow
def test_log_weights_that_overflow_are_refused_and_counted():
    problem = problems.linear_gaussian(num_latents=2, num_features=4)
    estimate = annealed.ais(problem.generative, _chains(5, 3, num_pilot=4))
    x = jnp.stack([_X, 1e25 * _X, -_X])  # its square is no float32
    results = jax.jit(jax.vmap(estimate, in_axes=(0, None, 0)))(
        jax.random.split(jax.random.key(0), 3), problem.params, x
    )
    _check(results, step=2)
    with pytest.raises(ValueError, match=r"example 1, .* 1 of 3: .* overflow float32"):
        _check(results)


@pytest.mark.slow
def test_chains_that_stand_still_are_refused_by_their_step_size():
    problem = problems.linear_gaussian(num_latents=2, num_features=4)
    chains = _chains(5, 3, num_pilot=0, initial_step_size=1e3)
    results = jax.jit(annealed.ais(problem.generative, chains))(
        jax.random.key(0), problem.params, _X
    )
    with pytest.raises(ValueError, match=r"step_size=1e\+03"):
        _check(results)
    finite, steps = np.zeros(2), np.array([0.1, 0.1])
    annealed.check(finite, np.array([0.6, 0.5]), steps)
    with pytest.raises(ValueError, match="do not move"):
        annealed.check(finite, np.array([0.6, np.nan]), steps)


@pytest.mark.slow
def test_a_pilot_mends_a_step_size_that_is_far_too_large():
    problem = problems.linear_gaussian(num_latents=2, num_features=4)
    chains = _chains(20, 8, num_pilot=60, initial_step_size=50.0)
    results = jax.jit(annealed.ais(problem.generative, chains))(
        jax.random.key(0), problem.params, _X
    )
    assert 0.4 < results.acceptance < 0.9


@pytest.mark.slow
def test_the_mean_log_weight_lies_further_out_than_the_estimate():
    results, _, _ = _simulated(50, 300, 4)
    assert (results.lower.mean_log_weight <= results.lower.log_p + 1e-5).all()
    assert (results.upper.mean_log_weight >= results.upper.log_p - 1e-5).all()
