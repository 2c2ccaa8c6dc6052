import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import posteriors
from vae_jax.latent_models import ppca, ppca_bounds
from vae_jax.types import Params

X_SHAPE = (2, 2)


def _params(*, num_latents=2, std=0.6, seed=0):
    rng = np.random.default_rng(seed)
    kernel, mu = rng.normal(size=(num_latents, 4)), rng.normal(size=4)
    theta = ppca.parameters(kernel.T, mu, math.log(std))
    return Params(jax.tree.map(lambda a: jnp.asarray(a, float), theta), ())


def _matrices(params):
    """W, mu, s2, and the posterior's covariance and gain, by inverses in NumPy."""
    layer = params.generative["decoder"]["output"]
    w, mu = np.asarray(layer["kernel"]).T, np.asarray(layer["bias"])
    s2 = float(np.exp(2.0 * params.generative["likelihood"]["log_std"]))
    covariance = np.linalg.inv(np.eye(w.shape[1]) + w.T @ w / s2)
    return w, mu, s2, covariance, covariance @ w.T / s2


def _q(*, num_latents=2):
    rng = np.random.default_rng(1)
    tril = np.tril(0.3 * rng.normal(size=(num_latents, num_latents)), -1)
    tril += np.diag(rng.uniform(0.4, 1.5, num_latents))
    return jnp.asarray(rng.normal(size=num_latents)), jnp.asarray(tril)


X = np.array([[0.4, -1.3], [2.0, 0.1]])


@pytest.mark.parametrize("num_latents", [1, 3])
def test_log_p_less_the_bound_is_the_divergence_from_the_posterior(x64, num_latents):
    params, x = _params(num_latents=num_latents), jnp.asarray(X)
    mean, tril = _q(num_latents=num_latents)
    log_p = jax.jit(ppca.log_evidence)(params, x)
    bound = jax.jit(ppca_bounds.bound)(params, x, mean, tril)
    kl = jax.jit(ppca_bounds.posterior_divergence)(params, x, mean, tril)
    np.testing.assert_allclose(log_p - bound, kl, rtol=1e-11)
    # The divergence of two normals, from their matrices.
    _, mu, _, covariance, gain = _matrices(params)
    apart = np.asarray(mean) - gain @ (X.reshape(-1) - mu)
    sigma, precision = np.asarray(tril @ tril.T), np.linalg.inv(covariance)
    log_dets = np.linalg.slogdet(covariance)[1] - np.linalg.slogdet(sigma)[1]
    trace = np.trace(precision @ sigma) - num_latents
    wanted = 0.5 * (trace + apart @ precision @ apart + log_dets)
    np.testing.assert_allclose(kl, wanted, rtol=1e-11)


def test_the_bound_is_the_mean_of_its_integrand_over_q(x64):
    params, x = _params(), jnp.asarray(X)
    mean, tril = _q()
    model = ppca.generative(2, X_SHAPE)
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)  # exact to degree nine
    eps = jnp.asarray(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2))
    shares = np.outer(weights, weights).reshape(-1) / (2.0 * math.pi)

    @jax.jit
    @jax.vmap
    def integrand(eps):
        z = mean + tril @ eps
        terms = model.log_likelihood_terms(params, x, z)
        log_q = posteriors.full_normal_log_prob(z, mean, tril)
        return terms.sum() + model.log_prior(params, z) - log_q

    got = jax.jit(ppca_bounds.bound)(params, x, mean, tril)
    np.testing.assert_allclose(got, shares @ integrand(eps), rtol=1e-11)


@pytest.mark.slow
def test_no_diagonal_normal_has_a_greater_bound_than_the_best(x64):
    params, x = _params(num_latents=3), jnp.asarray(X)
    mean, log_std = jax.jit(ppca_bounds.best_diagonal)(params, x)
    w, mu, s2, _, gain = _matrices(params)
    np.testing.assert_allclose(mean, gain @ (X.reshape(-1) - mu), rtol=1e-9)
    variances = 1.0 / np.diag(np.eye(3) + w.T @ w / s2)
    np.testing.assert_allclose(np.exp(2.0 * log_std), variances, rtol=1e-11)

    def bound(h):
        mean, log_std = jnp.split(h, 2)
        return ppca_bounds.bound(params, x, mean, jnp.diag(jnp.exp(log_std)))

    h = jnp.concatenate([mean, log_std])
    slope, curvature = jax.jit(lambda h: (jax.grad(bound)(h), jax.hessian(bound)(h)))(h)
    np.testing.assert_allclose(slope, 0.0, atol=1e-9)
    assert np.linalg.eigvalsh(curvature).max() < 0.0
    gap = jax.jit(ppca.log_evidence)(params, x) - bound(h)
    got = jax.jit(ppca_bounds.diagonal_gap)(params)
    np.testing.assert_allclose(got, gap, rtol=1e-9)
    assert got > 0.01


def test_orthogonal_columns_leave_the_diagonal_no_gap(x64):
    params = _params()
    w = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 2)))[0] * [2.0, 0.5]
    params.generative["decoder"]["output"]["kernel"] = jnp.asarray(w.T)
    got = jax.jit(ppca_bounds.diagonal_gap)(params)
    np.testing.assert_allclose(got, 0.0, atol=1e-12)


def test_the_divergence_keeps_its_digits_at_the_posterior():
    # In float32, where log p - bound has none left: each is -20, the gap 1e-7.
    params, x = _params(), jnp.asarray(X, jnp.float32)
    h = jax.jit(ppca.recognition(2).encode)(params, x)
    mean, tril = posteriors.mean_and_scale_tril(h, 2)
    divergence = jax.jit(ppca_bounds.posterior_divergence)
    assert 0.0 <= divergence(params, x, mean, tril) < 1e-11
    moved = float(divergence(params, x, mean, tril * 1.0002))
    np.testing.assert_allclose(moved, 2.0 * 0.0002**2, rtol=2e-2)
    assert divergence(params, x, mean, tril).dtype == jnp.float32


def test_the_gradients_fit_together_as_the_values_do(x64):
    params, x = _params(), jnp.asarray(X)

    def excess(params, mean, tril):
        """log p - bound - divergence: zero for every theta and q."""
        fall = ppca.log_evidence(params, x) - ppca_bounds.bound(params, x, mean, tril)
        return fall - ppca_bounds.posterior_divergence(params, x, mean, tril)

    value, slope = jax.jit(jax.value_and_grad(excess, (0, 1, 2)))(params, *_q())
    np.testing.assert_allclose(value, 0.0, atol=1e-12)
    jax.tree.map(lambda leaf: np.testing.assert_allclose(leaf, 0.0, atol=1e-9), slope)


def test_the_floor_of_the_noise_is_that_of_the_model(x64):
    x, (mean, tril) = jnp.asarray(X), _q()
    low, floor = _params(std=0.01), _params(std=0.2)
    for function in (ppca_bounds.bound, ppca_bounds.posterior_divergence):
        got = function(low, x, mean, tril, min_std=0.2)
        np.testing.assert_allclose(got, function(floor, x, mean, tril), rtol=1e-9)
        with pytest.raises(ValueError, match=r"min_std must be positive.*0\.0"):
            function(low, x, mean, tril, min_std=0.0)


def test_rows_under_vmap_are_as_one_by_one(x64):
    params, (mean, tril) = _params(), _q()
    x = jnp.asarray(np.stack([X, X[::-1], 2.0 * X]))
    for function in (ppca_bounds.bound, ppca_bounds.posterior_divergence):
        got = jax.jit(jax.vmap(function, (None, 0, None, None)))(params, x, mean, tril)
        one = jax.jit(function)
        for i in range(3):
            wanted = one(params, x[i], mean, tril)
            np.testing.assert_allclose(got[i], wanted, rtol=1e-10)


def test_a_factor_of_another_size_is_refused():
    with pytest.raises((ValueError, TypeError)):
        ppca_bounds.bound(_params(), jnp.asarray(X), jnp.zeros(2), jnp.eye(3))
