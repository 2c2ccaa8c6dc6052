import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import stats

from tests import problems
from vae_jax.estimators import total_correlation
from vae_jax.types import Batch

XS = jnp.array([[0.4, -1.0], [-0.7, 0.2], [1.1, 0.3], [0.5, 0.9]])


@pytest.mark.slow
def test_the_gradient_of_a_whole_data_set_is_that_of_its_total_correlation(x64):
    """A batch of all four rows: q(z) is their mixture, written out here."""
    problem = problems.linear_gaussian(num_latents=2)
    model, xs = problem.model, XS.astype(float)
    key, weight = jax.random.key(8), jnp.ones(4)

    def climbed(params):
        h = jax.vmap(model.recognition.encode, (None, 0))(params, xs)
        draw = jax.vmap(model.draw, (0, None, 0, 0))
        draws = draw(jax.random.split(jax.random.clone(key), 4), params, xs, h)
        mean, log_std = jnp.split(h, 2, axis=1)
        z = draws.z[:, None]
        q = stats.norm.pdf(z, mean[None], jnp.exp(log_std)[None])  # [4, 4, 2]
        joint, each = q.prod(axis=2).mean(axis=1), q.mean(axis=1)
        kl = jax.vmap(problem.kl, (None, 0))(params, xs)
        reconstruction = draws.log_likelihood.sum(axis=1)
        tc = jnp.log(joint) - jnp.log(each).sum(axis=1)
        return (reconstruction - kl - 3.0 * tc).mean(), tc

    objective = total_correlation.beta_tc(model, num_samples=1, num_data=4, beta=4.0)

    def mean(params):
        batch = Batch(xs, jnp.arange(4), weight)
        nats, _, logged = objective.value(jax.random.clone(key), params, (), batch)
        return nats.mean(), logged

    exact, tc = jax.jit(jax.grad(climbed, has_aux=True))(problem.params)
    got, logged = jax.jit(jax.grad(mean, has_aux=True))(problem.params)
    np.testing.assert_allclose(
        logged["total_correlation_stratified"], tc.mean(), rtol=1e-9
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), got, exact)


def test_a_negative_beta_is_refused():
    model = problems.linear_gaussian(num_latents=2).model
    with pytest.raises(ValueError, match=r"beta must not be negative, got -0\.5"):
        total_correlation.beta_tc(model, num_samples=1, num_data=4, beta=-0.5)
