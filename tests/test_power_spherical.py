import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests import testing
from vae_jax import divergences, numerics, power_spherical

OFF_AXIS = {2: (0.6, -0.8), 3: (-0.48, 0.6, 0.64)}
CONCENTRATIONS = (1.5, 4.0, 60.0)


def _h(direction, kappa):
    return jnp.asarray([*direction, np.log(kappa)], jnp.result_type(float))


def _sphere(num_latents, *, num_nodes=120):
    """Points on the sphere and the area that each stands for."""
    angle = 2.0 * np.pi * np.arange(2 * num_nodes) / (2 * num_nodes)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    if num_latents == 2:
        return circle, np.full(len(circle), np.pi / num_nodes)
    t, weight = np.polynomial.legendre.leggauss(num_nodes)
    around = np.sqrt(1.0 - t**2)[:, None, None] * circle
    z = np.concatenate(
        [np.broadcast_to(t[:, None, None], around[..., :1].shape), around], 2
    )
    return z.reshape(-1, 3), np.repeat(weight * np.pi / num_nodes, 2 * num_nodes)


def _log_probs(num_latents, h, z):
    q = power_spherical.posterior(num_latents)
    return jax.vmap(q.log_prob, in_axes=(None, None, 0))((), h, jnp.asarray(z))


@pytest.mark.slow
@pytest.mark.parametrize("num_latents", [2, 3])
def test_the_density_sums_to_one_with_the_entropy_and_the_kl_of_quadrature(
    x64, num_latents
):
    z, area = _sphere(num_latents)
    prior = power_spherical.uniform_prior(num_latents)
    log_p = prior.log_prob((), jnp.zeros(0), jnp.asarray(z[0]))
    np.testing.assert_allclose(np.exp(log_p) * area.sum(), 1.0, rtol=1e-12)
    for kappa in CONCENTRATIONS:
        h = _h(OFF_AXIS[num_latents], kappa)
        log_q = np.asarray(_log_probs(num_latents, h, z))
        q = area * np.exp(log_q)
        np.testing.assert_allclose(q.sum(), 1.0, rtol=1e-4)
        kl = divergences.power_spherical_to_uniform_sphere(h[:-1], h[-1])
        np.testing.assert_allclose(
            (q * (log_q - log_p)).sum(), kl, rtol=1e-4, atol=1e-8
        )
        entropy = power_spherical.log_area(num_latents) - kl
        np.testing.assert_allclose(-(q * log_q).sum(), entropy, rtol=1e-4, atol=1e-8)


def test_the_series_of_gamma_ratios_is_the_difference_of_log_gammas(x64):
    for num_halves, a in itertools.product((1, 2, 3, 8, 31), (0.5, 2.2, 40.0)):
        shifts, weights, rest = numerics.gamma_ratio(num_halves)
        ratio = (weights * np.log(a + shifts)).sum() + rest(jnp.asarray(a))
        exact = special.gammaln(a + 0.5 * num_halves) - special.gammaln(a)
        np.testing.assert_allclose(ratio, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("num_latents", [2, 3, 12, 65])
def test_single_precision_keeps_its_digits_at_every_concentration(num_latents):
    q, least = power_spherical.posterior(num_latents), 0.5 * (num_latents - 1)
    direction = np.random.default_rng(0).normal(size=num_latents)
    log_kappa = jnp.log(jnp.array([1e-3, 1e-1, 1.0, 30.0, 1e3, 1e5]))
    h = jnp.concatenate([jnp.tile(direction, (6, 1)), log_kappa[:, None]], 1)
    keys = jax.random.split(jax.random.key(0), 6)

    @jax.jit
    @jax.vmap
    def measured(key, h):
        z, nats = q.sample_and_log_prob(key, (), h)
        kl, slope = jax.value_and_grad(
            divergences.power_spherical_to_uniform_sphere, argnums=1
        )(h[:-1], h[-1])
        return z, nats, q.log_prob((), h, z), kl, slope

    z, nats, log_q, kl, slope = map(np.asarray, measured(keys, h))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1.0, rtol=1e-6)
    kappa = np.exp(np.asarray(log_kappa, np.float64))
    a, total = least + kappa, 2.0 * least + kappa
    at_zero = special.gammaln(2.0 * least) - special.gammaln(least)
    ratio = special.gammaln(total) - special.gammaln(a)
    psi = special.digamma(total) - special.digamma(a)
    trigamma = special.polygamma(1, a) - special.polygamma(1, total)
    np.testing.assert_allclose(kl, ratio - at_zero - kappa * psi, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(slope, kappa**2 * trigamma, rtol=1e-3, atol=1e-9)
    # Of z as it was rounded; and from the noise, before it was.
    np.testing.assert_allclose(log_q, nats, rtol=1e-5, atol=2e-3)
    mu = direction / np.linalg.norm(direction)
    near = ((z.astype(np.float64) - mu) ** 2).sum(1)
    constant = 2.0 * least * np.log(2.0) + least * np.log(np.pi)
    exact = ratio - constant + kappa * np.log1p(-near / 4.0)
    np.testing.assert_allclose(log_q, exact, rtol=1e-5, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("direction", [(1.0, 0.0, 0.0), (-1.0, 1e-4, 0.0)])
def test_the_gradient_of_a_sample_is_that_of_the_expectation_even_at_the_poles(
    x64, direction
):
    """Against quadrature; at e_1 the paper's reflection has no gradient."""
    q, h = power_spherical.posterior(3), _h(direction, 3.0)
    z, area = _sphere(3)

    def f(z):
        return jnp.exp(z[0] - 0.5 * z[1] + z[2] * z[1])

    def expectation(h):
        return (area * jnp.exp(_log_probs(3, h, z)) * jax.vmap(f)(jnp.asarray(z))).sum()

    def of_sample(key):
        return jax.grad(lambda h: f(q.sample(key, (), h)))(h)

    keys = jax.random.split(jax.random.key(1), 40_000)
    slopes = jax.jit(jax.vmap(of_sample))(keys)
    testing.assert_mean_equals(slopes, jax.grad(expectation)(h))


@pytest.mark.slow
def test_no_direction_has_a_steep_or_a_missing_gradient():
    """Near the axis, near its opposite, of any length, and of no direction at all."""
    q, key = power_spherical.posterior(3), jax.random.key(2)
    directions = [
        (1.0, 0.0, 0.0),
        (1.0, 1e-6, 0.0),
        (-1.0, 0.0, 1e-7),
        (0.0, 1.0, 0.0),
        (0.0, 0.0, 0.0),
    ]
    slope = jax.jit(jax.jacobian(lambda h: q.sample(jax.random.clone(key), (), h)))
    for direction in directions:
        of_direction = np.asarray(slope(_h(direction, 2.0)))[:, :-1]
        assert 0.3 < np.linalg.norm(of_direction, 2) < 3.0
    for length in (1e-30, 1e30):
        h = jnp.asarray([3.0 * length, -4.0 * length, 0.0, 20.0])
        z = q.sample(jax.random.clone(key), (), h)
        np.testing.assert_allclose(z, (0.6, -0.8, 0.0), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("log_kappa", [-200.0, 200.0])
def test_no_concentration_leaves_a_nan(log_kappa):
    q, h = power_spherical.posterior(3), jnp.asarray([0.6, -0.8, 0.0, log_kappa])
    parameters, moments = q.family.parameters, q.moments
    assert parameters is not None
    assert moments is not None

    def measured(h):
        z, nats = q.sample_and_log_prob(jax.random.key(0), (), h)
        kl = divergences.power_spherical_to_uniform_sphere(*parameters((), h))
        return z, nats, q.log_prob((), h, z), kl, moments((), h)

    values, slopes = measured(h), jax.jacobian(measured)(h)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((values, slopes)))
    if log_kappa > 0.0:
        np.testing.assert_allclose(values[0], (0.6, -0.8, 0.0), atol=1e-5)
    else:
        np.testing.assert_allclose(values[1], -power_spherical.log_area(3), rtol=1e-6)


@pytest.mark.parametrize(
    "build", [power_spherical.posterior, power_spherical.uniform_prior]
)
def test_a_sphere_has_two_dimensions_or_more(build):
    with pytest.raises(ValueError, match="num_latents must be 2 or more"):
        build(1)
