import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax.evaluation import representation


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


def _codes(num_keys, *, num_samples, seed):
    """Sampled means of q for one x, a key each; its mean and log std."""
    problem = problems.linear_gaussian()
    x = jnp.array([0.4, -0.7])
    code = representation.sampled_mean(problem.recognition, num_samples=num_samples)
    keys = jax.random.split(jax.random.key(seed), num_keys)
    codes = jax.jit(jax.vmap(code, (0, None, None)))(keys, problem.params, x)
    return codes, *jnp.split(problem.recognition.encode(problem.params, x), 2)


def test_the_sampled_mean_comes_to_the_mean_of_the_posterior(x64):
    codes, mean, _ = _codes(1000, num_samples=25, seed=0)
    testing.assert_mean_equals(codes, mean)


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
    codes, _, log_std = _codes(4000, num_samples=25, seed=1)
    ratio = codes.var(axis=0, ddof=1) * 25.0 * jnp.exp(-2.0 * log_std)
    np.testing.assert_allclose(ratio, 1.0, atol=5.0 * np.sqrt(2.0 / 4000))
