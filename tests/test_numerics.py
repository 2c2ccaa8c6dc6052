import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special

from vae_jax import numerics

LOG_W = np.array([-3.0, 0.5, 2.0, -40.0, 1.9])
POINTS = np.array([-30.0, -2.0, -1e-3, 0.0, 1e-3, 2.0, 30.0])


# log_mean_exp


def test_log_mean_exp_matches_scipy(x64):
    expected = special.logsumexp(LOG_W) - np.log(LOG_W.size)
    np.testing.assert_allclose(
        numerics.log_mean_exp(jnp.asarray(LOG_W)), expected, rtol=1e-9
    )


@pytest.mark.parametrize("offset", [-2e4, 2e4])
def test_log_mean_exp_of_equal_weights_far_from_zero_is_that_weight(offset):
    got = numerics.log_mean_exp(jnp.full((7,), offset))
    np.testing.assert_allclose(got, offset, rtol=1e-6)


def test_log_mean_exp_of_all_minus_infinity_is_minus_infinity():
    assert numerics.log_mean_exp(jnp.full((3,), -jnp.inf)) == -jnp.inf


def test_log_mean_exp_counts_weights_of_zero(x64):
    got = numerics.log_mean_exp(jnp.array([0.0, -jnp.inf, -jnp.inf, -jnp.inf]))
    np.testing.assert_allclose(got, -np.log(4.0), rtol=1e-9)


def test_log_mean_exp_has_the_normalized_weights_as_its_gradient(x64):
    got = jax.grad(numerics.log_mean_exp)(jnp.asarray(LOG_W))
    np.testing.assert_allclose(got, special.softmax(LOG_W), rtol=1e-9)
    check_grads(numerics.log_mean_exp, (jnp.asarray(LOG_W),), order=2, modes=("rev",))


def test_log_mean_exp_is_the_same_under_jit_and_vmap():
    rows = jax.random.normal(jax.random.key(0), (4, 5))
    got = jax.jit(jax.vmap(numerics.log_mean_exp))(rows)
    expected = jnp.stack([numerics.log_mean_exp(row) for row in rows])
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


# attach_gradient


@pytest.mark.parametrize("size", [1.0, 1e5, 1e20])
def test_attach_gradient_keeps_every_digit_of_the_value(size):
    value = jnp.float32(-100.123)
    assert numerics.attach_gradient(value, jnp.float32(size)) == value


def test_attach_gradient_differentiates_as_the_surrogate(x64):
    def function(x):
        return numerics.attach_gradient(jnp.sin(x), x**3)

    value, slope = jax.value_and_grad(function)(jnp.asarray(1.7))
    np.testing.assert_allclose(value, np.sin(1.7), rtol=1e-9)
    np.testing.assert_allclose(slope, 3.0 * 1.7**2, rtol=1e-9)


# softplus


def test_softplus_matches_numpy(x64):
    got = numerics.softplus(jnp.asarray(POINTS))
    np.testing.assert_allclose(got, np.logaddexp(POINTS, 0.0), rtol=1e-9)


def test_softplus_has_the_logistic_function_and_its_slope_as_derivatives(x64):
    first = jax.vmap(jax.grad(numerics.softplus))(jnp.asarray(POINTS))
    second = jax.vmap(jax.grad(jax.grad(numerics.softplus)))(jnp.asarray(POINTS))
    p = special.expit(POINTS)
    np.testing.assert_allclose(first, p, rtol=1e-9)
    slope = p * special.expit(-POINTS)
    np.testing.assert_allclose(second, slope, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("x", [-2.0, 0.0, 0.3])
def test_softplus_gradients_agree_with_finite_differences(x64, x):
    check_grads(numerics.softplus, (jnp.asarray(x),), order=2, modes=("rev",))


@pytest.mark.parametrize("x", [-3e38, -500.0, 500.0, 3e38])
def test_softplus_and_two_derivatives_are_finite_at_any_finite_number(x):
    function = numerics.softplus
    for _ in range(3):
        assert jnp.isfinite(function(jnp.float32(x)))
        function = jax.grad(function)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.float64])
def test_results_have_the_dtype_of_the_arguments(x64, dtype):
    row = jnp.ones((3,), dtype)
    assert numerics.softplus(row).dtype == dtype
    assert numerics.log_mean_exp(row).dtype == dtype
    assert numerics.attach_gradient(row[0], row[1]).dtype == dtype


# over_samples


def test_over_samples_draws_once_for_each_key_split_from_the_one_given():
    key = jax.random.key(0)
    got = numerics.over_samples(jax.random.clone(key), jax.random.normal, num_samples=4)
    expected = jax.vmap(jax.random.normal)(jax.random.split(key, 4))
    np.testing.assert_array_equal(got, expected)
    assert np.unique(got).size == 4


def test_over_samples_hands_a_single_sample_the_key_itself():
    key = jax.random.key(0)
    got = numerics.over_samples(jax.random.clone(key), jax.random.normal, num_samples=1)
    np.testing.assert_array_equal(got, jax.random.normal(key)[None])


def test_over_samples_needs_a_sample():
    with pytest.raises(ValueError, match="num_samples must be positive, got 0"):
        numerics.over_samples(jax.random.key(0), jax.random.normal, num_samples=0)
