import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems
from vae_jax.evaluation import exact


@pytest.mark.parametrize("num_latents", [1, 2])
def test_the_grid_has_the_closed_form_of_a_linear_model(x64, num_latents):
    problem = problems.linear_gaussian(num_latents=num_latents, num_features=3)
    log_p = exact.grid_quadrature(
        problem.generative, num_latents=num_latents, num_nodes=64, limit=8.0
    )
    x = jnp.array([0.4, -1.0, 0.7])
    got, slope = jax.jit(jax.value_and_grad(log_p))(problem.params, x)
    wanted, exact_slope = jax.jit(jax.value_and_grad(problem.log_p))(problem.params, x)
    np.testing.assert_allclose(got, wanted, rtol=1e-9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9),
        slope.generative,
        exact_slope.generative,
    )


def test_the_grid_converges_on_a_nonlinear_model_of_binary_images(x64):
    generative, recognition = problems.bernoulli_vae()
    key_theta, key_phi = jax.random.split(jax.random.key(0))
    params = problems.Params(
        jax.tree.map(lambda w: 1.5 * w, generative.init(key_theta)),
        recognition.init(key_phi),
    )
    xs = jnp.asarray(problems.binary_rows(6).reshape(-1, 2, 3))

    def over_rows(num_nodes):
        log_p = exact.grid_quadrature(
            generative, num_latents=2, num_nodes=num_nodes, limit=8.0
        )
        return jax.jit(jax.vmap(log_p, in_axes=(None, 0)))(params, xs)

    coarse, fine, finer = (over_rows(num_nodes) for num_nodes in (12, 64, 128))
    assert np.abs(coarse - finer).max() > np.abs(fine - finer).max()
    np.testing.assert_allclose(fine, finer, rtol=1e-9)
    np.testing.assert_allclose(jnp.exp(finer).sum(), 1.0, rtol=1e-9)  # over every x


def test_a_grid_that_cannot_be_is_refused():
    generative, _ = problems.bernoulli_vae()
    with pytest.raises(ValueError, match="num_latents must be 1 to 3"):
        exact.grid_quadrature(generative, num_latents=4)
    with pytest.raises(ValueError, match="num_nodes must be at least two"):
        exact.grid_quadrature(generative, num_latents=2, num_nodes=1)
    with pytest.raises(ValueError, match="limit must be positive"):
        exact.grid_quadrature(generative, num_latents=2, limit=0.0)
