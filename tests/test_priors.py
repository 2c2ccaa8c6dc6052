import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from tests import testing
from vae_jax import priors

NOTHING = jnp.zeros((0,))


def test_standard_normal_log_prob_matches_scipy(x64):
    z = np.array([0.3, -2.0, 5.0])
    got = priors.standard_normal(3).log_prob((), jnp.zeros(0), jnp.asarray(z))
    np.testing.assert_allclose(got, stats.norm.logpdf(z).sum(), rtol=1e-9)


def test_standard_normal_samples_have_its_moments_and_its_entropy():
    prior = priors.standard_normal(2)
    keys = jax.random.split(jax.random.key(0), 20_000)
    z = jax.vmap(prior.sample, in_axes=(0, None, None))(keys, (), NOTHING)
    testing.assert_mean_equals(z, np.zeros(2))
    testing.assert_mean_equals(z[:, :, None] * z[:, None, :], np.eye(2))
    log_p = jax.vmap(lambda z: prior.log_prob((), NOTHING, z))(z)
    testing.assert_mean_equals(log_p, -2 * stats.norm.entropy())


def test_standard_normal_has_no_parameters_and_no_condition():
    prior = priors.standard_normal(2)
    assert prior.width == 0
    assert prior.init(jax.random.key(0)) == ()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_standard_normal_draws_in_the_dtype_of_h(x64, dtype):
    prior, h = priors.standard_normal(2), jnp.zeros((0,), dtype)
    z = prior.sample(jax.random.key(0), (), h)
    assert z.dtype == dtype
    assert prior.log_prob((), h, z).dtype == dtype


def test_standard_normal_gradient_is_minus_z(x64):
    prior, z = priors.standard_normal(2), jnp.array([0.4, -3.0])
    np.testing.assert_allclose(jax.grad(prior.log_prob, 2)((), NOTHING, z), -z)
    check_grads(lambda z: prior.log_prob((), NOTHING, z), (z,), order=2, modes=("rev",))


@pytest.mark.parametrize("num_latents", [0, -1])
def test_a_size_below_one_is_refused(num_latents):
    with pytest.raises(ValueError, match=f"num_latents .*{num_latents}"):
        priors.standard_normal(num_latents)
