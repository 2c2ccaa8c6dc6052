import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import grids
from vae_jax import finite_scalar

LEVELS = grids.LEVELS


def test_levels_and_values_are_one_to_one():
    k = grids.codes()
    z = grids.values(k)
    assert len({tuple(row) for row in np.asarray(z)}) == 2 * 3 * 4 * 5
    np.testing.assert_array_equal(grids.symbols(z), k)
    assert (np.abs(z) <= 1.0).all()


def test_every_level_is_reached_in_order_and_the_grid_is_symmetric():
    q, key = finite_scalar.posterior(LEVELS), jax.random.key(0)
    sweep = jnp.tile(jnp.linspace(-9.0, 9.0, 800)[:, None], (1, 4))
    z = jax.vmap(lambda h: q.sample(jax.random.clone(key), (), h))(sweep)
    for of_latent, size in zip(np.asarray(z).T, LEVELS, strict=True):
        assert (np.diff(of_latent) >= 0.0).all()
        np.testing.assert_allclose(
            np.unique(of_latent), np.linspace(-1, 1, size), rtol=1e-6
        )
        np.testing.assert_allclose(of_latent, -of_latent[::-1], rtol=1e-6)


def test_the_gradient_passes_the_rounding_straight_through():
    q, h = finite_scalar.posterior(LEVELS), jnp.array([0.3, -2.0, 1.0, 0.1])
    slope = jax.jacobian(lambda h: q.sample(jax.random.key(0), (), h))(h)
    np.testing.assert_allclose(slope, np.diag(1.0 - np.tanh(h) ** 2), rtol=1e-5)


def test_q_is_a_point_mass_at_its_code():
    q, h = finite_scalar.posterior(LEVELS), jnp.array([0.3, -2.0, 1.0, 0.1])
    z, log_q = q.sample_and_log_prob(jax.random.key(0), (), h)
    codes = grids.values(grids.codes())
    log_probs = jax.vmap(lambda z: q.log_prob((), h, z))(codes)
    assert log_q == q.log_prob((), h, z) == 0.0
    assert jnp.exp(log_probs).sum() == 1.0
    slope = jax.grad(lambda h: q.log_prob((), h, z))(h)
    np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize("levels", [(), (1,), (3, 1)])
def test_levels_that_are_none_are_refused(levels):
    for build in (finite_scalar.posterior, finite_scalar.grid):
        with pytest.raises(ValueError, match="levels must be two or more"):
            build(levels)
