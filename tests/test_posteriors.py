import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from tests import testing
from vae_jax import posteriors

MEAN, LOG_STD = np.array([0.3, -1.2]), np.array([-0.5, 0.7])
H = np.concatenate([MEAN, LOG_STD])


def _draws(num):
    keys = jax.random.split(jax.random.key(0), num)
    sample = posteriors.diag_normal(2).sample
    return jax.vmap(sample, in_axes=(0, None, None))(keys, (), jnp.asarray(H))


def test_diag_normal_log_prob_matches_scipy(x64):
    z = np.array([0.9, -4.0])
    expected = stats.norm.logpdf(z, MEAN, np.exp(LOG_STD)).sum()
    got = posteriors.diag_normal(2).log_prob((), jnp.asarray(H), jnp.asarray(z))
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    arrays = [jnp.asarray(a) for a in (z, MEAN, LOG_STD)]
    got = posteriors.diag_normal_log_prob(*arrays)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_diag_normal_samples_have_its_moments_and_its_entropy(x64):
    z = _draws(20_000)
    testing.assert_mean_equals(z, MEAN)
    centred = np.asarray(z) - MEAN
    testing.assert_mean_equals(
        centred[:, :, None] * centred[:, None, :], np.diag(np.exp(2 * LOG_STD))
    )
    density = posteriors.diag_normal(2)
    log_q = jax.vmap(lambda z: density.log_prob((), jnp.asarray(H), z))(z)
    entropy = stats.norm.entropy(MEAN, np.exp(LOG_STD)).sum()
    testing.assert_mean_equals(log_q, -entropy)


def test_samples_carry_the_gradient_to_mean_and_log_std(x64):
    density, key = posteriors.diag_normal(2), jax.random.key(3)

    def sample(h):
        return density.sample(jax.random.clone(key), (), h)

    jacobian = jax.jacobian(sample)(jnp.asarray(H))
    displacement = np.asarray(sample(jnp.asarray(H))) - MEAN  # std * eps
    expected = np.concatenate([np.eye(2), np.diag(displacement)], axis=1)
    np.testing.assert_allclose(jacobian, expected, rtol=1e-9, atol=1e-15)


def test_pathwise_gradient_of_a_square_has_variance_4_std_squared(x64):
    # d/dmu (mu + s eps)^2 = 2 (mu + s eps): mean 2 mu, variance 4 s^2.
    density, mean, log_std = posteriors.diag_normal(1), 0.7, -0.3
    keys = jax.random.split(jax.random.key(4), 20_000)

    def square(key, h):
        return density.sample(key, (), h)[0] ** 2

    grads = jax.vmap(jax.grad(square, 1), in_axes=(0, None))
    slopes = grads(keys, jnp.array([mean, log_std]))[:, 0]
    testing.assert_mean_equals(slopes, 2 * mean)
    testing.assert_mean_equals((slopes - 2 * mean) ** 2, 4 * np.exp(2 * log_std))


def test_log_prob_gradients_agree_with_finite_differences(x64):
    log_prob = posteriors.diag_normal(2).log_prob
    arguments = jnp.asarray(H), jnp.array([0.9, -4.0])
    check_grads(lambda h, z: log_prob((), h, z), arguments, order=2, modes=("rev",))


def test_log_prob_stays_finite_where_the_variance_underflows():
    log_std = jnp.array([-80.0])  # exp(-160) is 0 in float32
    got = posteriors.diag_normal_log_prob(jnp.ones(1), jnp.ones(1), log_std)
    np.testing.assert_allclose(got, 80.0 - 0.5 * np.log(2 * np.pi), rtol=1e-6)


def test_sample_and_log_prob_are_the_same_under_jit_and_vmap():
    density = posteriors.diag_normal(2)
    hs = jax.random.normal(jax.random.key(1), (3, 4))
    keys = jax.random.split(jax.random.key(2), 3)

    def draw(key, h):
        z = density.sample(key, (), h)
        return z, density.log_prob((), h, z)

    got = jax.jit(jax.vmap(draw))(jax.random.clone(keys), hs)
    for i in range(3):
        z, log_q = draw(keys[i], hs[i])
        np.testing.assert_allclose(got[0][i], z, rtol=1e-6)
        np.testing.assert_allclose(got[1][i], log_q, rtol=1e-5)


def test_h_holds_a_mean_and_a_log_std_for_each_latent():
    density = posteriors.diag_normal(3)
    assert density.width == 6
    assert density.init(jax.random.key(0)) == ()


@pytest.mark.parametrize("num_latents", [0, -2])
def test_a_size_below_one_is_refused(num_latents):
    with pytest.raises(ValueError, match=f"num_latents .*{num_latents}"):
        posteriors.diag_normal(num_latents)
