import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax.estimators import mmd, sgvb
from vae_jax.types import Batch, per_example

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


def test_fewer_than_two_rows_have_no_penalty_and_a_batch_of_one_is_refused():
    kernel, z = mmd.rbf(scales=(1.0,)), jnp.array([[3.0], [2.0], [-1.0]])
    y = jnp.array([[0.1], [0.5]])
    for weight in (jnp.zeros(3), jnp.array([0.0, 2.0, 0.0])):
        value, slope = jax.value_and_grad(mmd.unbiased)(z, y, weight, kernel)
        assert value == 0.0
        np.testing.assert_array_equal(slope, 0.0)
    assert mmd.unbiased(z, y, jnp.array([0.0, 2.0, 1.0]), kernel) != 0.0
    with pytest.raises(ValueError, match="at least, got 1 and 2"):
        mmd.unbiased(z[:1], y, jnp.ones(1), kernel)


def test_kernels_have_their_scales_in_units_of_the_prior(x64):
    """C = 2 D s^2, by hand."""
    squared = jnp.array([0.0, 3.0])
    got = mmd.imq(scales=(0.5,))(squared, 2)
    np.testing.assert_allclose(got, [1.0, 1.0 / 4.0], rtol=1e-12)
    got = mmd.imq(scales=(0.5, 2.0))(squared, 2)
    np.testing.assert_allclose(got, [1.0, 0.5 * (1.0 / 4.0 + 16.0 / 19.0)], rtol=1e-12)
    got = mmd.rbf(scales=(0.5,))(squared, 2)
    np.testing.assert_allclose(got, [1.0, np.exp(-3.0)], rtol=1e-12)


@pytest.mark.slow
def test_what_is_climbed_weighs_the_kl_less_and_the_mmd_more(x64):
    """(1 - alpha) KL and (alpha + lambda - 1) MMD^2, with z and the prior's draws."""
    problem = problems.linear_gaussian(num_latents=2)
    model, kernel = problem.model, mmd.rbf(scales=(1.0,))
    rows = jnp.array([[0.4, -1.0], [-0.7, 0.2], [1.1, 0.3]])
    key = jax.random.key(8)
    objective = mmd.mmd(
        model, num_samples=1, num_data=9, alpha=0.6, strength=2.4, kernel=kernel
    )
    less = per_example(sgvb.sgvb_b(model, num_samples=1, beta=0.4))

    def mean(objective, params):
        batch = Batch(rows, jnp.arange(3), jnp.ones(3))
        return objective.value(jax.random.clone(key), params, (), batch)[0].mean()

    def squared(params):
        draw = jax.vmap(model.recognition.sample, (0, None, 0))
        h = jax.vmap(model.recognition.encode, (None, 0))(params, rows)
        z = draw(jax.random.split(jax.random.clone(key), 3), params, h)
        keys = jax.random.split(jax.random.fold_in(jax.random.clone(key), 2**31), 1)
        y = jax.vmap(lambda key: jax.random.normal(key, (2,)))(
            jax.random.split(keys[0], 3)
        )
        k = [[jnp.exp(-jnp.sum((a - b) ** 2) / 4.0) for b in (*z, *y)] for a in z]
        within = sum(k[i][j] for i in range(3) for j in range(3) if i != j) / 6.0
        return within - 2.0 * sum(k[i][3 + j] for i in range(3) for j in range(3)) / 9.0

    @jax.jit
    def slopes(params):
        got = jax.grad(lambda params: mean(objective, params))(params)
        exact = jax.grad(lambda params: mean(less, params) - 2.0 * squared(params))
        return got, exact(params)

    got, exact = slopes(problem.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), got, exact)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1\.5"),
        ({"alpha": -0.5}, r"alpha must lie in \[0, 1\], got -0\.5"),
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
