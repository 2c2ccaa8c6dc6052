import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax import vae
from vae_jax.estimators import disarm
from vae_jax.latent_models import sigmoid_belief
from vae_jax.types import log_joint

X = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
NUM_DRAWS = 20_000


def _disarm(problem, num_samples):
    return disarm.disarm(problem.model, num_samples=num_samples)


def _at_logits(problem):
    """(key, h) -> nats, of one pair at a q whose logits are h."""
    x = jnp.asarray(X)

    def nats(key, h):
        recognition = problem.recognition._replace(encode=lambda params, x: h)
        model = problem._replace(recognition=recognition).model
        objective = disarm.disarm(model, num_samples=2)
        return objective(key, problem.params, x)

    return nats


# Oracle


@pytest.mark.slow
def test_one_bit_gets_half_the_difference_in_f_where_the_pair_differs(x64):
    problem = problems.binary_model(num_latents=1)
    h, x = jnp.array([0.6]), jnp.asarray(X)
    keys = jax.random.split(jax.random.key(0), 400)
    slopes = jax.jit(jax.vmap(jax.grad(_at_logits(problem), 1), in_axes=(0, None)))(
        keys, h
    )[:, 0]

    def f(bit):
        z = jnp.array([bit])
        log_q = problem.recognition.log_prob(problem.params, h, z)
        return float(log_joint(problem.generative, problem.params, x, z) - log_q)

    p = 1.0 / (1.0 + np.exp(-0.6))
    step = 0.5 * (f(1.0) - f(0.0)) * p
    assert abs(step) > 1e-2
    differs = np.abs(np.asarray(slopes)) > 0.0
    np.testing.assert_allclose(slopes[differs], step, rtol=1e-9)
    testing.assert_mean_equals(differs.astype(float), 2.0 * (1.0 - p))


# Statistical


@pytest.mark.parametrize("num_samples", [2, 6])
@pytest.mark.slow
def test_value_and_gradients_are_unbiased(x64, num_samples):
    problem, x = problems.binary_model(seed=4), jnp.asarray(X)
    h = problem.recognition.encode(problem.params, x)
    assert float(h.min()) < -1.0 < 1.0 < float(h.max())  # both branches of |h|
    value, slope = jax.jit(jax.value_and_grad(problem.elbo))(problem.params, x)
    keys = jax.random.split(jax.random.key(num_samples), NUM_DRAWS)
    function = jax.value_and_grad(_disarm(problem, num_samples), 1)
    nats, slopes = jax.jit(jax.vmap(function, in_axes=(0, None, None)))(
        keys, problem.params, x
    )
    testing.assert_mean_equals(nats, value)
    testing.assert_mean_equals(slopes.generative, slope.generative)
    testing.assert_mean_equals(slopes.recognition, slope.recognition)


@pytest.mark.slow
def test_pairs_are_independent_of_each_other(x64):
    problem, x = problems.binary_model(), jnp.asarray(X)

    def spread(num_samples):
        keys = jax.random.split(jax.random.key(5), 4000)
        draw = jax.vmap(_disarm(problem, num_samples), in_axes=(0, None, None))
        return float(jax.jit(draw)(keys, problem.params, x).var())

    np.testing.assert_allclose(spread(2) / spread(16), 8.0, rtol=0.25)


# Transformation and edge


def test_a_q_that_is_not_factorial_is_refused_when_built():
    sizes = (3, 2)
    layered = vae.model(
        sigmoid_belief.generative(sizes, (5,)), sigmoid_belief.recognition(sizes, (5,))
    )
    for model, name in (
        (problems.categorical_model().model, "categorical"),
        (layered, "layers of bits"),
    ):
        with pytest.raises(ValueError, match=f"factorial bernoulli .*got {name}"):
            disarm.disarm(model, num_samples=2)


@pytest.mark.slow
@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_certain_bits_leave_value_and_gradient_finite(logit):
    problem = problems.binary_model()
    h = jnp.full((4,), logit)
    function = jax.jit(jax.value_and_grad(_at_logits(problem), 1))
    value, slope = function(jax.random.key(0), h)
    z = (h > 0.0).astype(float)
    expected = log_joint(problem.generative, problem.params, jnp.asarray(X), z)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_array_equal(slope, np.zeros(4))
