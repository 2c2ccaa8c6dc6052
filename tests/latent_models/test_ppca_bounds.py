import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import divergences, posteriors
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        with pytest.raises(
            ValueError, match=r"min_std must lie in \(0, inf\), got 0\.0"
        ):
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


BETAS = (0.01, 0.1, 0.5, 1.0, 4.0, 100.0)


def _curve(params, x):
    """Rates and distortions at BETAS by the library."""
    points = [ppca_bounds.rate_distortion(params, x, beta=beta) for beta in BETAS]
    return np.array([[float(n) for n in point] for point in points]).T


def _log_z(params, beta):
    """log of the integral of p(z) p(x | z)^beta, from the covariance of x."""
    w, mu, s2, _, _ = _matrices(params)
    size = len(mu)
    covariance = w @ w.T + s2 / beta * np.eye(size)
    r = X.reshape(-1) - mu
    log_p = -0.5 * (
        np.linalg.slogdet(covariance)[1] + r @ np.linalg.solve(covariance, r)
    )
    log_p -= 0.5 * size * np.log(2.0 * np.pi)
    of_power = (
        0.5 * size * (np.log(2 * np.pi * s2 / beta) - beta * np.log(2 * np.pi * s2))
    )
    return log_p + of_power


def test_rate_and_distortion_are_those_of_the_algebra(x64):
    params = _params()
    rates, distortions = _curve(params, jnp.asarray(X))
    w, mu, s2, _, _ = _matrices(params)
    r = X.reshape(-1) - mu
    for beta, rate, distortion in zip(BETAS, rates, distortions, strict=True):
        s = np.linalg.inv(np.eye(2) + beta * w.T @ w / s2)
        m = beta * s @ w.T @ r / s2
        wanted = 0.5 * (np.trace(s) + m @ m - 2 - np.linalg.slogdet(s)[1])
        np.testing.assert_allclose(rate, wanted, rtol=1e-9)
        error = np.sum((r - w @ m) ** 2) + np.trace(w @ s @ w.T)
        wanted = 0.5 * error / s2 + 2.0 * np.log(2.0 * np.pi * s2)
        np.testing.assert_allclose(distortion, wanted, rtol=1e-9)


@pytest.mark.slow
def test_the_curve_passes_through_log_p_with_slope_minus_beta(x64):
    params, x = _params(), jnp.asarray(X)
    rates, distortions = _curve(params, x)
    at_one = BETAS.index(1.0)
    log_p = float(ppca.log_evidence(params, x))
    np.testing.assert_allclose(rates[at_one] + distortions[at_one], -log_p, rtol=1e-12)
    for i, beta in enumerate(BETAS):
        log_z = _log_z(params, beta)
        np.testing.assert_allclose(-rates[i] - beta * distortions[i], log_z, rtol=1e-9)
        h = 1e-4 * beta
        derivative = (_log_z(params, beta + h) - _log_z(params, beta - h)) / (2.0 * h)
        np.testing.assert_allclose(distortions[i], -derivative, rtol=1e-6)
        near = [
            ppca_bounds.rate_distortion(params, x, beta=beta + step) for step in (h, -h)
        ]
        change = near[0].rate - near[1].rate, near[0].distortion - near[1].distortion
        np.testing.assert_allclose(change[0] / change[1], -beta, rtol=1e-5)
    assert (np.diff(rates) > 0).all()
    assert (np.diff(distortions) < 0).all()
    slopes = np.diff(rates) / np.diff(distortions)
    assert (np.diff(slopes) < 0).all()  # convex: steeper toward small distortions


@pytest.mark.parametrize("beta", [0.2, 5.0])
def test_a_normal_q_that_minimizes_rate_and_distortion_is_on_the_curve(x64, beta):
    params, x = _params(), jnp.asarray(X)
    point = ppca_bounds.rate_distortion(params, x, beta=beta)
    w, mu, s2, _, _ = _matrices(params)
    s = np.linalg.inv(np.eye(2) + beta * w.T @ w / s2)
    q = jnp.asarray(beta * s @ w.T @ (X.reshape(-1) - mu) / s2), np.linalg.cholesky(s)

    def loss(mean, tril):
        """What a beta-VAE minimizes, its beta being one over ours."""
        rate = divergences.full_normal_to_standard_normal(mean, tril)
        elbo = ppca_bounds.bound(params, x, mean, tril)
        return rate + beta * -(elbo + rate)

    value, gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
        q[0], jnp.asarray(q[1])
    )
    np.testing.assert_allclose(value, point.rate + beta * point.distortion, rtol=1e-10)
    np.testing.assert_allclose(gradient[0], 0.0, atol=1e-9)
    np.testing.assert_allclose(np.tril(gradient[1]), 0.0, atol=1e-9)


def test_a_beta_without_a_curve_is_refused():
    for beta in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"beta must lie in \(0, inf\)"):
            ppca_bounds.rate_distortion(_params(), jnp.asarray(X), beta=beta)
