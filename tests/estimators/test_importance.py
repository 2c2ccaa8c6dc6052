import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax.estimators import importance, sgvb
from vae_jax.types import log_joint

X = np.array([0.4, -1.0])
NUM_DRAWS = 20_000


def _draws(function, params, *, seed=1):
    keys = jax.random.split(jax.random.key(seed), NUM_DRAWS)
    return jax.jit(jax.vmap(function, in_axes=(0, None, None)))(
        keys, params, jnp.asarray(X)
    )


def _iwae(problem, num_samples, recognition=None):
    return importance.iwae(
        problem.generative, recognition or problem.recognition, num_samples=num_samples
    )


def _two_sample_bound(problem, num_nodes):
    """L_2 of one latent by Gauss-Hermite quadrature over the noise of both samples."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    weights = jnp.asarray(weights / weights.sum())

    def bound(params, x):
        h = problem.recognition.encode(params, x)
        zs = h[0] + jnp.exp(h[1]) * jnp.asarray(nodes)[:, None]

        def log_weight(z):
            log_q = problem.recognition.log_prob(params, h, z)
            return log_joint(problem.generative, params, x, z) - log_q

        log_w = jax.vmap(log_weight)(zs)
        pairs = jnp.logaddexp(log_w[:, None], log_w[None, :]) - np.log(2.0)
        return weights @ pairs @ weights

    return bound


# Oracle


def test_log_weights_are_the_joint_over_q_at_draws_from_q(x64):
    problem = problems.linear_gaussian(num_latents=2)
    params, x = problem.params, jnp.asarray(X)
    draw = importance.log_weights(
        problem.generative, problem.recognition, num_samples=3
    )
    h = problem.recognition.encode(params, x)
    key = jax.random.key(0)
    got = draw(jax.random.clone(key), params, x, h)
    for log_w, key_sample in zip(got, jax.random.split(key, 3), strict=True):
        z = problem.recognition.sample(key_sample, params, h)
        log_q = problem.recognition.log_prob(params, h, z)
        expected = log_joint(problem.generative, params, x, z) - log_q
        np.testing.assert_allclose(log_w, expected, rtol=1e-9)


def test_log_weights_follow_the_h_they_are_given(x64):
    problem = problems.linear_gaussian()
    params, x = problem.params, jnp.asarray(X)
    draw = importance.log_weights(
        problem.generative, problem.recognition, num_samples=4
    )
    log_w = jax.jit(draw)(jax.random.key(0), params, x, problem.exact.encode(params, x))
    np.testing.assert_allclose(log_w, np.full(4, problem.log_p(params, x)), rtol=1e-9)


@pytest.mark.parametrize("num_samples", [1, 5])
def test_iwae_with_the_posterior_as_q_is_log_p_without_noise(x64, num_samples):
    problem = problems.linear_gaussian()
    log_p = problem.log_p(problem.params, jnp.asarray(X))
    nats = _draws(_iwae(problem, num_samples, problem.exact), problem.params)
    np.testing.assert_allclose(nats, np.full(NUM_DRAWS, log_p), rtol=1e-9)


def test_iwae_with_one_sample_is_estimator_a(x64):
    problem = problems.linear_gaussian(num_latents=2)
    pair, key = (problem.generative, problem.recognition), jax.random.key(2)
    a = sgvb.sgvb_a(*pair, num_samples=1)
    arguments = problem.params, jnp.asarray(X)
    iwae = jax.jit(jax.value_and_grad(_iwae(problem, 1), 1))
    got = iwae(jax.random.clone(key), *arguments)
    expected = jax.jit(jax.value_and_grad(a, 1))(key, *arguments)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), got, expected
    )


# Statistical


def test_the_mean_weight_is_unbiased_for_p(x64):
    problem = problems.linear_gaussian()
    near = problems.widened(problem.exact, log_factor=0.3, shift=0.2)
    log_p_hat = _draws(_iwae(problem, 3, near), problem.params)
    log_p = problem.log_p(problem.params, jnp.asarray(X))
    testing.assert_mean_equals(jnp.exp(log_p_hat), jnp.exp(log_p))


def test_the_bound_increases_with_k_and_stays_below_log_p(x64):
    problem = problems.linear_gaussian(num_latents=2)
    log_p = float(problem.log_p(problem.params, jnp.asarray(X)))
    means, errors = [], []
    for seed, num_samples in enumerate((1, 4, 16)):
        nats = _draws(_iwae(problem, num_samples), problem.params, seed=seed)
        means.append(float(nats.mean()))
        errors.append(float(nats.std()) / np.sqrt(NUM_DRAWS))
    elbo = problem.elbo(problem.params, jnp.asarray(X))
    assert abs(means[0] - elbo) < 5 * errors[0]  # L_1 is the ELBO
    levels, slack = [*means, log_p], [*errors, 0.0]
    for i in range(len(means)):
        assert levels[i + 1] - levels[i] > 5 * np.hypot(slack[i], slack[i + 1])


def test_two_samples_have_the_value_and_gradients_of_the_exact_l2(x64):
    problem = problems.linear_gaussian()
    params, x = problem.params, jnp.asarray(X)
    exact = jax.jit(jax.value_and_grad(_two_sample_bound(problem, 60)))(params, x)
    coarse = jax.jit(jax.value_and_grad(_two_sample_bound(problem, 40)))(params, x)
    jax.tree.map(  # the oracle has converged far below the noise of the estimate
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        exact,
        coarse,
    )
    nats, grads = _draws(jax.value_and_grad(_iwae(problem, 2), 1), params)
    testing.assert_mean_equals(nats, exact[0])
    testing.assert_mean_equals(grads.generative, exact[1].generative)
    testing.assert_mean_equals(grads.recognition, exact[1].recognition)


# Transformation and edge


def test_jit_and_vmap_agree_with_a_loop():
    problem = problems.linear_gaussian(num_latents=2)
    objective = _iwae(problem, 3)
    value_and_grad = jax.value_and_grad(objective, argnums=1)
    keys = jax.random.split(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (3, 2))
    batched = jax.jit(jax.vmap(value_and_grad, in_axes=(0, None, 0)))
    got = batched(jax.random.clone(keys), problem.params, xs)
    eager = objective(jax.random.clone(keys)[0], problem.params, xs[0])
    np.testing.assert_allclose(got[0][0], eager, rtol=1e-5)
    single = jax.jit(value_and_grad)
    for i in range(3):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5),
            got,
            single(keys[i], problem.params, xs[i]),
        )


def test_x_is_encoded_once_for_all_samples():
    problem, calls = problems.linear_gaussian(), []

    def encode(params, x):
        jax.debug.callback(lambda: calls.append(1))
        return problem.recognition.encode(params, x)

    counted = problem.recognition._replace(encode=encode)
    objective = jax.jit(_iwae(problem, 7, counted))
    jax.block_until_ready(objective(jax.random.key(0), problem.params, jnp.asarray(X)))
    jax.effects_barrier()
    assert len(calls) == 1


@pytest.mark.parametrize("num_samples", [0, -3])
def test_fewer_samples_than_one_are_refused(num_samples):
    problem = problems.linear_gaussian()
    for build in (importance.iwae, importance.log_weights):
        with pytest.raises(ValueError, match=f"num_samples .*{num_samples}"):
            build(problem.generative, problem.recognition, num_samples=num_samples)
