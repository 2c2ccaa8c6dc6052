"""The evaluators on a linear-Gaussian ladder of three layers, of known log p(x).

q is beside the posterior, and reads theta; p is the chain's own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import ladders, laws, testing
from vae_jax import vae
from vae_jax.evaluation import annealed, annealing, completion, hmc_density, marginal

pytestmark = pytest.mark.slow
PAIR = np.array([0.8, -1.3])


@functools.cache
def _chain():
    """The ladder, its parameters with another q, and log p(x)."""
    known = ladders.chain(3, form="residual")
    phi = laws.jiggled(known.params.recognition, std=0.15)
    return known.model, known.params._replace(recognition=phi), known


def test_importance_sampling_rises_with_k_up_to_log_p_and_trusts_its_weights(x64):
    model, params, known = _chain()
    log_p, x = known.log_p(PAIR), jnp.asarray(PAIR)
    by_k = [marginal.importance_sampling(model, num_samples=k) for k in (1, 5, 50)]
    by_many = marginal.importance_sampling(model, num_samples=2000)

    @jax.jit
    def estimates(key):
        *each, last = jax.random.split(key, 4)
        few = [
            jax.vmap(of_k, (0, None, None))(jax.random.split(key, 1000), params, x)
            for of_k, key in zip(by_k, each, strict=True)
        ]
        return [of_k.log_p for of_k in few], by_many(last, params, x)

    few, many = estimates(jax.random.key(0))
    for log_p_hat in few:
        testing.assert_mean_equals(jnp.exp(log_p_hat - log_p), 1.0)
    bounds = [float(log_p_hat.mean()) for log_p_hat in few]
    assert bounds[0] + 0.05 < bounds[1] < bounds[2] < log_p
    assert abs(many.log_p - log_p) < 5.0 * many.standard_error
    assert many.standard_error < 0.05
    assert many.pareto_k < 0.7


@pytest.mark.parametrize("base", ["prior", "q"])
def test_annealing_holds_log_p_between_its_sides_and_importance_sampling_below(
    x64, base
):
    model, params, known = _chain()
    chains = annealing.chains(
        temperatures=annealing.linear(12),
        num_chains=2,
        kernel=annealing.hmc_kernel(num_leapfrog=4),
    )
    recognition = model.recognition if base == "q" else None
    both = annealed.bidirectional(model.generative, chains, recognition=recognition)
    by_samples = marginal.importance_sampling(model, num_samples=50)

    def estimate(key):
        key_both, key_is = jax.random.split(key)
        sides = both(key_both, params)
        return sides, by_samples(key_is, params, sides.x).log_p

    keys = jax.random.split(jax.random.key(2), 800)
    sides, by_is = jax.jit(jax.vmap(estimate))(keys)
    log_p = np.array([known.log_p(np.asarray(x)) for x in sides.x])
    testing.assert_mean_equals(np.exp(sides.lower.log_p - log_p), 1.0)
    testing.assert_mean_equals(np.exp(log_p - sides.upper.log_p), 1.0)
    assert sides.lower.log_p.mean() < log_p.mean() < sides.upper.log_p.mean()
    assert by_is.mean() < sides.upper.log_p.mean()
    testing.assert_mean_equals(np.exp(by_is - log_p), 1.0)
    assert float(sides.lower.acceptance.mean()) > 0.5


def test_chains_on_the_flat_z_give_log_p_by_a_density_of_their_draws(x64):
    model, params, known = _chain()
    estimate = hmc_density.hmc_density(
        model.generative, num_latents=3, num_samples=1000, num_warmup=300
    )
    keys = jax.random.split(jax.random.key(3), 8)
    estimated = jax.jit(jax.vmap(estimate, (0, None, None)))(
        keys, params, jnp.asarray(PAIR)
    )
    log_p = known.log_p(PAIR)
    np.testing.assert_allclose(estimated.log_p, log_p, atol=0.05)
    assert (estimated.standard_error < 0.01).all()
    assert (estimated.pareto_k < 0.7).all()


@functools.cache
def _conditional(observed):
    """log p(x_1), and mean and variance of x_2 given it, by quadrature of log p(x)."""
    nodes, step = np.linspace(-12.0, 12.0, 1201, retstep=True)
    log_p = _chain()[2].log_p
    joint = np.exp([log_p(np.array([observed, node])) for node in nodes]) * step
    mean = (joint @ nodes) / joint.sum()
    return np.log(joint.sum()), mean, joint @ (nodes - mean) ** 2 / joint.sum()


@pytest.mark.parametrize("method", ["importance", "metropolis_within_gibbs"])
def test_what_is_missing_is_completed_from_its_conditional(x64, method):
    model, params, _ = _chain()
    log_p, mean, variance = _conditional(PAIR[0])
    whole, x = vae.masked(model), jnp.array([PAIR[0], np.nan])
    if method == "importance":
        complete = completion.importance(whole, num_samples=500, num_draws=1)
    else:
        complete = completion.metropolis_within_gibbs(
            whole, num_draws=1, num_warmup=5, num_burn_in=40
        )
    keys = jax.random.split(jax.random.key(4), 1500)
    completed = jax.jit(jax.vmap(complete, (0, None, None)))(keys, params, x)
    draws = completed.x[:, 0, 1]
    testing.assert_mean_equals(draws, mean)
    testing.assert_mean_equals((draws - mean) ** 2, variance)
    testing.assert_mean_equals(completed.x[:, 0, 0], PAIR[0])
    if method == "importance":
        testing.assert_mean_equals(np.exp(completed.evidence.log_p - log_p), 1.0)
    else:
        assert 0.2 < float(completed.acceptance.mean()) < 0.99
