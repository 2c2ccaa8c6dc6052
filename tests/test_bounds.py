import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special

from tests import testing
from vae_jax import bounds

LOG_W = np.array([-3.0, 0.5, 2.0, -1.0])
BOTH = pytest.mark.parametrize("bound", [bounds.elbo, bounds.iwae])


def test_elbo_is_the_mean_log_weight(x64):
    np.testing.assert_allclose(bounds.elbo(jnp.asarray(LOG_W)), LOG_W.mean(), rtol=1e-9)


def test_iwae_is_the_log_of_the_mean_weight(x64):
    expected = np.log(np.exp(LOG_W).mean())
    np.testing.assert_allclose(bounds.iwae(jnp.asarray(LOG_W)), expected, rtol=1e-9)


def test_the_bounds_agree_on_one_weight_and_on_equal_weights(x64):
    for log_w in (jnp.array([-1.3]), jnp.full((5,), -1.3)):
        np.testing.assert_allclose(bounds.elbo(log_w), -1.3, rtol=1e-9)
        np.testing.assert_allclose(bounds.iwae(log_w), -1.3, rtol=1e-9)


def test_iwae_lies_between_the_elbo_and_the_largest_weight():
    rows = 3.0 * jax.random.normal(jax.random.key(0), (200, 6))
    elbo, iwae = jax.vmap(bounds.elbo)(rows), jax.vmap(bounds.iwae)(rows)
    assert (elbo < iwae).all()
    assert (iwae <= rows.max(1)).all()


def test_the_mean_weight_is_unbiased_and_its_log_is_biased_by_the_stated_amount():
    # log w ~ N(-s^2/2, s^2), so p = E[w] = 1 and Var(w) = exp(s^2) - 1.
    num_repeats, num_samples, s = 20_000, 20, 0.5
    eps = jax.random.normal(jax.random.key(1), (num_repeats, num_samples))
    log_p = jax.vmap(bounds.iwae)(s * eps - 0.5 * s**2)
    testing.assert_mean_equals(jnp.exp(log_p), 1.0)
    bias = -np.expm1(s**2) / (2 * num_samples)
    error = log_p.std() / np.sqrt(num_repeats)
    assert log_p.mean() < -5 * error
    np.testing.assert_allclose(log_p.mean(), bias, atol=5 * error + 0.1 * abs(bias))


@BOTH
def test_gradients_agree_with_finite_differences(x64, bound):
    check_grads(bound, (jnp.asarray(LOG_W),), order=2, modes=("rev",))


def test_gradient_weights_are_uniform_for_the_elbo_and_normalized_for_iwae(x64):
    log_w = jnp.asarray(LOG_W)
    np.testing.assert_allclose(jax.grad(bounds.elbo)(log_w), np.full(4, 0.25))
    expected = special.softmax(LOG_W)
    np.testing.assert_allclose(jax.grad(bounds.iwae)(log_w), expected, rtol=1e-9)


@BOTH
def test_jit_and_vmap_agree_with_a_loop(bound):
    rows = jax.random.normal(jax.random.key(0), (4, 3))
    expected = jnp.stack([bound(row) for row in rows])
    np.testing.assert_allclose(jax.jit(jax.vmap(bound))(rows), expected, rtol=1e-6)


@BOTH
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_weights_that_are_not_one_axis_of_samples_are_refused(bound, shape):
    with pytest.raises(ValueError, match=re.escape(f"got {shape}")):
        bound(jnp.zeros(shape))
