import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems
from vae_jax import flows, networks, posteriors
from vae_jax.evaluation import gaps
from vae_jax.types import Params

pytestmark = pytest.mark.uses_optax
X = np.array([[0.7, -1.2, 0.4], [-0.3, 0.8, 1.5]])
SEARCH = {"num_samples": 20, "num_steps": 150, "num_evaluated": 10_000}


def problem_of_two():
    return problems.linear_gaussian(num_latents=2, num_features=3, std=0.5)


def best_diagonal(problem, x):
    """h of the best diagonal normal, and log p - L[q*], from matrices."""
    mean, covariance = problem.posterior(problem.params, x)
    precision = np.linalg.inv(covariance)
    variances = 1.0 / np.diag(precision)
    gap = -0.5 * (np.log(variances).sum() + np.linalg.slogdet(precision)[1])
    return np.concatenate([mean, 0.5 * np.log(variances)]), gap


def exact_bound(problem, x, h):
    """L of a diagonal normal: an encoder with no weights and h for its biases."""
    layer = problem.params.recognition["encoder"]["output"]
    alone = {"kernel": jnp.zeros_like(layer["kernel"]), "bias": h}
    phi = {"encoder": {"output": alone}, "posterior": ()}
    return problem.elbo(Params(problem.params.generative, phi), x)


@functools.cache
def diagonal_fits():
    """The best diagonal normals found for two rows, from the encoder's h."""
    problem = problem_of_two()
    fit = gaps.fit_local(problem.generative, posteriors.diag_normal(2), **SEARCH)

    def from_encoder(key, params, x):
        return fit(key, params, x, problem.recognition.encode(params, x))

    keys = jax.random.split(jax.random.key(0), 2)
    run = jax.jit(jax.vmap(from_encoder, in_axes=(0, None, 0)))
    return problem, jnp.asarray(X), run(keys, problem.params, jnp.asarray(X))


# The best q of a family


@pytest.mark.slow
def test_the_local_fit_is_the_best_diagonal_normal(x64):
    problem, xs, best = diagonal_fits()
    assert best.converged.all()
    for x, h, value in zip(xs, best.h, best.bound, strict=True):
        wanted, gap = best_diagonal(problem, x)
        np.testing.assert_allclose(h, wanted, atol=0.03)
        # The bound is flat there: what the search leaves is of second order.
        left = problem.log_p(problem.params, x) - gap - exact_bound(problem, x, h)
        assert 0.0 <= left < 5e-4
        np.testing.assert_allclose(value, exact_bound(problem, x, h), atol=0.03)


@pytest.mark.slow
def test_the_gap_splits_into_approximation_and_amortization(x64):
    problem, xs, best = diagonal_fits()
    for x, best_bound in zip(xs, best.bound, strict=True):
        _, gap = best_diagonal(problem, x)
        log_p, elbo = problem.log_p(problem.params, x), problem.elbo(problem.params, x)
        results = gaps.Gaps(log_p, best_bound, elbo)
        np.testing.assert_allclose(results.approximation, gap, atol=0.03)
        np.testing.assert_allclose(results.amortization, log_p - gap - elbo, atol=0.03)
        np.testing.assert_allclose(results.inference, log_p - elbo, rtol=1e-9)
        both = results.approximation + results.amortization
        np.testing.assert_allclose(both, results.inference, rtol=1e-9)


@pytest.mark.slow
def test_a_local_flow_reaches_a_correlated_posterior(x64):
    problem, x = problem_of_two(), jnp.asarray(X[0])
    # With an affine network a coupling makes every normal of two latents.
    flow = flows.affine_coupling(networks.linear(1, 2), 2)
    posterior = posteriors.flow(posteriors.diag_normal(2), flow)
    local = gaps.with_parameters_in_h(posterior)
    fit = gaps.fit_local(problem.generative, local, **SEARCH)
    start = gaps.parameters_into_h(posterior.init(jax.random.key(1)), jnp.zeros(4))
    got = jax.jit(fit)(jax.random.key(2), problem.params, x, start)
    assert got.converged
    assert best_diagonal(problem, x)[1] > 0.05, "a diagonal normal does not reach it"
    log_p = problem.log_p(problem.params, x)
    np.testing.assert_allclose(got.bound, log_p, atol=1e-4)
    np.testing.assert_allclose(got.change, 0.0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [3.0, 1e3])  # too far, and to infinity
def test_a_search_that_does_not_rest_is_not_converged(learning_rate):
    problem = problem_of_two()
    local = posteriors.diag_normal(2)
    numbers = {"num_samples": 1, "num_steps": 2, "num_evaluated": 1, "max_rounds": 3}
    fit = gaps.fit_local(
        problem.generative, local, learning_rate=learning_rate, **numbers
    )
    start, x = jnp.zeros(4), jnp.asarray(X[0], jnp.float32)
    got = jax.jit(fit)(jax.random.key(0), problem.params, x, start)
    assert not got.converged
    assert got.num_rounds == 3
    np.testing.assert_array_equal(got.h, start, "what it started from is better")
    assert np.isfinite(got.bound)


# Parameters of their own


@pytest.mark.slow
def test_parameters_in_h_leave_the_density_as_it_is():
    flow = flows.affine_coupling(networks.mlp(2, (3,), 2), 2, context_width=1)
    posterior = posteriors.flow(posteriors.diag_normal(2), flow)
    alone = posterior.init(jax.random.key(0))
    alone = jax.tree.map(lambda leaf: leaf + 0.1, alone)
    h = jax.random.normal(jax.random.key(1), (posterior.width,))
    local = gaps.with_parameters_in_h(posterior)
    longer = gaps.parameters_into_h(alone, h)
    assert longer.shape == (local.width,)
    assert local.init(jax.random.key(2)) == ()
    key = jax.random.key(3)
    z = posterior.sample(key, alone, h)
    np.testing.assert_array_equal(local.sample(jax.random.clone(key), (), longer), z)
    np.testing.assert_array_equal(
        local.log_prob((), longer, z), posterior.log_prob(alone, h, z)
    )
    with pytest.raises(ValueError, match=r"reads h of \d+ entries, got \(5,\)"):
        local.log_prob((), h, z)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "num_samples must be positive, got 0"),
        ({"num_steps": 0}, "num_steps must be positive, got 0"),
        ({"learning_rate": 0.0}, r"learning_rate must lie in \(0, inf\), got 0\.0"),
        ({"tolerance": 0.0}, r"tolerance must lie in \(0, inf\], got 0\.0"),
        ({"max_rounds": 0}, "max_rounds must be positive, got 0"),
        ({"num_evaluated": 15}, "multiple of num_samples=10, got 15"),
        ({"num_evaluated": 0}, "multiple of num_samples=10, got 0"),
    ],
)
def test_numbers_that_make_no_search_are_refused(changes, message):
    problem = problem_of_two()
    with pytest.raises(ValueError, match=message):
        gaps.fit_local(problem.generative, posteriors.diag_normal(2), **changes)


def test_a_start_of_another_family_is_refused():
    problem = problem_of_two()
    fit = gaps.fit_local(problem.generative, posteriors.diag_normal(2))
    with pytest.raises(ValueError, match=r"start must be \[4\], got \(5,\)"):
        fit(jax.random.key(0), problem.params, jnp.asarray(X[0]), jnp.zeros(5))
