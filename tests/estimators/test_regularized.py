import jax
import jax.numpy as jnp
import numpy as np

from tests import problems, testing
from vae_jax.estimators import regularized

X = np.array([0.4, -1.0])


def _build(name, problem, **settings):
    builder = getattr(regularized, name)
    return builder(problem.model, num_samples=1, **settings)


def _check(objective, problem, surrogate):
    """The value is the ELBO's, the gradient that of the surrogate."""
    x = jnp.asarray(X)
    values, grads = testing.draws(objective, problem.params, x)
    testing.assert_mean_equals(values, problem.elbo(problem.params, x))
    testing.assert_mean_equals(grads, jax.jit(jax.grad(surrogate))(problem.params, x))


def test_no_free_bits_are_the_elbo(x64):
    problem = problems.linear_gaussian(num_latents=2)
    _check(_build("free_bits", problem, min_nats=0.0), problem, problem.elbo)


def test_capacity_pushes_down_a_kl_above_its_target(x64):
    problem, x = problems.linear_gaussian(num_latents=2), jnp.asarray(X)
    nats = float(problem.kl(problem.params, x)) - 0.5
    objective = _build("capacity", problem, nats=nats, strength=3.0)

    def surrogate(params, x):
        return problem.reconstruction(params, x) - 3.0 * problem.kl(params, x)

    _check(objective, problem, surrogate)
