import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.estimators import sumo


@pytest.mark.slow
def test_the_mean_over_the_terms_is_the_bound_of_all_weights(x64):
    """sum_K P(K) S_K, for weights that are what they are."""
    num_samples, max_terms = 3, 150
    log_w = 2.0 * jax.random.normal(jax.random.key(0), (num_samples + max_terms,))
    survives = sumo.survival(max_terms)
    chances = survives - np.append(survives[1:], 0.0)
    values = jax.vmap(lambda k: sumo.roulette(log_w, k, num_samples=num_samples))(
        jnp.arange(1, max_terms + 1)
    )
    exact = jax.nn.logsumexp(log_w) - np.log(len(log_w))
    np.testing.assert_allclose(chances @ values, exact, rtol=1e-9)
    assert np.std(values) > 0.1


def test_fewer_terms_survive_and_almost_none_are_left_out():
    survives = sumo.survival(200)
    np.testing.assert_allclose(survives[[0, 1, 78]], [1.0, 0.5, 1 / 79])
    np.testing.assert_allclose(survives[[79, 80]], [1 / 80, 0.9 / 80])
    assert np.all(np.diff(survives) < 0.0)
    assert survives[-1] < 2.0**-23
