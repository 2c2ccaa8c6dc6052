import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tests import problems, testing
from vae_jax import divergences
from vae_jax.evaluation import representation

KL = divergences.diag_normal_to_standard_normal
MEAN, LOG_STD = np.array([0.3, -1.2, 0.0]), np.array([-0.5, 0.7, 0.0])
H = np.concatenate([MEAN, LOG_STD])


def test_kl_per_latent_matches_the_closed_form_of_each_latent(x64):
    got = representation.kl_per_latent(jnp.asarray(H), kl=KL)
    expected = 0.5 * (MEAN**2 + np.exp(2 * LOG_STD) - 1.0 - 2 * LOG_STD)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_kl_per_latent_is_never_negative_zero_at_the_prior_and_sums_to_the_kl(x64):
    hs = jax.random.normal(jax.random.key(0), (50, 6))
    parts = jax.jit(jax.vmap(lambda h: representation.kl_per_latent(h, kl=KL)))(hs)
    assert (parts > 0.0).all()
    whole = jax.vmap(KL)(hs[:, :3], hs[:, 3:])
    np.testing.assert_allclose(parts.sum(1), whole, rtol=1e-9)
    at_prior = representation.kl_per_latent(jnp.zeros(6), kl=KL)
    np.testing.assert_array_equal(at_prior, np.zeros(3))


def test_kl_per_latent_gradients_agree_with_finite_differences(x64):
    def function(h):
        return representation.kl_per_latent(h, kl=KL)

    check_grads(jax.jit(function), (jnp.asarray(H),), order=2, modes=("rev",))


def test_active_units_counts_the_latents_whose_mean_varies_beyond_the_threshold(x64):
    # Variances over the two rows: 0, 0.0064, 0.0144 and 1.
    means = jnp.array([[5.0, -0.08, 0.12, 1.0], [5.0, 0.08, -0.12, -1.0]])
    assert representation.active_units(means) == 2
    assert representation.active_units(means, threshold=0.005) == 3
    assert representation.active_units(means, threshold=2.0) == 0
    assert jax.jit(representation.active_units)(means) == 2


def test_the_variance_of_a_single_row_is_refused():
    with pytest.raises(ValueError, match="num_rows must be 2 or more, got 1"):
        representation.active_units(jnp.zeros((1, 3)))


def test_the_sampled_mean_comes_to_the_mean_of_the_posterior(x64):
    problem = problems.linear_gaussian()
    x = jnp.array([0.4, -0.7])
    code = representation.sampled_mean(problem.recognition, num_samples=25)
    keys = jax.random.split(jax.random.key(0), 1000)
    codes = jax.jit(jax.vmap(code, (0, None, None)))(keys, problem.params, x)
    exact = jnp.split(problem.recognition.encode(problem.params, x), 2)[0]
    testing.assert_mean_equals(codes, exact)


def test_a_single_sample_is_a_draw_of_the_posterior():
    problem = problems.linear_gaussian()
    x, key = jnp.array([0.4, -0.7]), jax.random.key(3)
    code = representation.sampled_mean(problem.recognition, num_samples=1)
    h = problem.recognition.encode(problem.params, x)
    z = problem.recognition.sample(jax.random.clone(key), problem.params, h)
    np.testing.assert_array_equal(code(key, problem.params, x), z)
    with pytest.raises(ValueError, match="num_samples must be positive, got 0"):
        representation.sampled_mean(problem.recognition, num_samples=0)


def test_the_sampled_mean_has_the_posteriors_variance_over_their_number(x64):
    problem = problems.linear_gaussian()
    x = jnp.array([0.4, -0.7])
    code = representation.sampled_mean(problem.recognition, num_samples=25)
    keys = jax.random.split(jax.random.key(1), 4000)
    codes = jax.jit(jax.vmap(code, (0, None, None)))(keys, problem.params, x)
    log_std = jnp.split(problem.recognition.encode(problem.params, x), 2)[1]
    ratio = codes.var(axis=0, ddof=1) * 25.0 * jnp.exp(-2.0 * log_std)
    np.testing.assert_allclose(ratio, 1.0, atol=5.0 * np.sqrt(2.0 / 4000))
