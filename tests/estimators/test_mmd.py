import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax.estimators import mmd

M, STD = np.array([0.7, -0.4, 0.2]), 0.6  # of the one normal; the other is N(0, I)


def _samples(kernel, *, num_latents, mean, num_draws=4000):
    """Unbiased estimates from batches of four rows, the last of no weight, and three.

    A row of no weight is far out, where it would show.
    """

    def one(key):
        key_z, key_y = jax.random.split(key)
        z = mean + STD * jax.random.normal(key_z, (4, num_latents))
        z = z.at[3].set(100.0)
        y = jax.random.normal(key_y, (3, num_latents))
        return mmd.unbiased(z, y, jnp.array([1.0, 2.0, 1.0, 0.0]), kernel)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num_draws))


def test_mmd_of_two_normals_is_their_closed_form(x64):
    """E exp(-|x - y|^2 / c) = (c / (c + 2v))^(D/2) exp(-|m|^2 / (c + 2v))."""

    def expected(difference, variance):
        total = 0.0
        for scale in (0.5, 1.5):
            c = 2.0 * 3.0 * scale**2
            wide = c + 2.0 * variance
            total += 0.5 * (c / wide) ** 1.5 * np.exp(-(difference @ difference) / wide)
        return total

    exact = expected(0 * M, 2 * STD**2) + expected(0 * M, 2.0)
    exact -= 2.0 * expected(M, 1.0 + STD**2)
    assert exact > 0.05
    kernel = mmd.rbf(scales=(0.5, 1.5))
    testing.assert_mean_equals(_samples(kernel, num_latents=3, mean=M[None]), exact)


def test_the_inverse_quadratic_has_its_expectation_by_quadrature(x64):
    t = np.linspace(-12.0, 12.0, 4001)

    def expected(difference, variance):
        p = np.exp(-0.5 * t**2)
        k = 2.0 / (2.0 + (difference + np.sqrt(variance) * t) ** 2)
        return (p / p.sum()) @ k

    exact = expected(0.0, 2 * STD**2) + expected(0.0, 2.0)
    exact -= 2.0 * expected(0.9, 1.0 + STD**2)
    kernel = mmd.imq(scales=(1.0,))
    testing.assert_mean_equals(_samples(kernel, num_latents=1, mean=0.9), exact)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alpha": 1.5}, r"alpha must be at most 1, got 1\.5"),
        ({"alpha": -0.5}, r"alpha must not be negative, got -0\.5"),
        ({"strength": 0.5}, r"strength must be at least 1 - alpha, got 0\.5"),
    ],
)
def test_weights_below_zero_are_refused(changes, said):
    model = problems.linear_gaussian(num_latents=2).model
    numbers = {"alpha": 0.0, "strength": 1.0} | changes
    kernel = mmd.rbf(scales=(1.0,))
    with pytest.raises(ValueError, match=said):
        mmd.mmd(model, num_samples=1, num_data=4, kernel=kernel, **numbers)


@pytest.mark.parametrize("scales", [(), (1.0, 0.0)])
def test_scales_are_positive(scales):
    with pytest.raises(ValueError, match="scales must be positive, at least one, got"):
        mmd.imq(scales=scales)
