import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax.estimators import arms, disarm, score_function

LOGITS = np.array([-4.0, -0.6, 0.0, 0.3, 2.5])


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [2, 3, 5])
def test_bits_are_draws_of_q_with_the_correlation_that_is_stated(x64, num_samples):
    logits = jnp.asarray(LOGITS)
    rho = arms.correlation(logits, num_samples=num_samples)
    assert float(rho.max()) < 0.0
    assert float(rho.min()) >= -1.0 / (num_samples - 1) - 1e-12

    @jax.jit
    @jax.vmap
    def centered(key):
        z = arms.antithetic_bits(key, logits, num_samples=num_samples)
        return z - jax.nn.sigmoid(logits)[None]

    gaps = centered(jax.random.split(jax.random.key(0), 40_000))
    testing.assert_mean_equals(gaps, jnp.zeros((num_samples, 5)))
    p = jax.nn.sigmoid(logits)
    pairs = gaps[:, :1] * gaps[:, 1:]
    expected = jnp.broadcast_to(rho * p * (1.0 - p), pairs.shape[1:])
    testing.assert_mean_equals(pairs, expected)
    across = gaps[:, 0, :1] * gaps[:, 1, 1:]  # of one latent with the others
    testing.assert_mean_equals(across, jnp.zeros(4))


@pytest.mark.slow
def test_two_samples_are_disarms_pair(x64):
    """The same law of a pair, and the same slope at each pair of it."""
    logits = jnp.asarray(LOGITS)
    rho = arms.correlation(logits, num_samples=2)
    p = np.minimum(jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits))
    np.testing.assert_allclose(rho, -p / (1.0 - p), rtol=1e-9)
    np.testing.assert_allclose(1.0 / (1.0 - rho), jax.nn.sigmoid(np.abs(logits)))
    problem, x = problems.binary_model(num_latents=1), jnp.array([1.0, 0, 1, 1, 0])
    slopes = []
    for objective in (
        arms.arms(problem.model, num_samples=2),
        disarm.disarm(problem.model, num_samples=2),
    ):
        _, grads = testing.draws(objective, problem.params, x, num_draws=200)
        bias = grads.recognition["encoder"]["output"]["bias"][:, 0]
        slopes.append(np.unique(np.round(bias, 9)))
    np.testing.assert_allclose(*slopes, atol=2e-9)
    assert len(slopes[0]) == 2  # zero where the bits agree


@pytest.mark.parametrize("logit", [-90.0, -20.0, -12.0, 20.0, 90.0])
def test_a_bit_that_is_nearly_certain_keeps_a_finite_factor(logit):
    for num_samples in (2, 4):
        rho = arms.correlation(jnp.array([logit]), num_samples=num_samples)
        assert -1e-4 < float(rho[0]) <= 1e-6


@pytest.mark.slow
def test_the_group_is_quieter_than_independent_samples():
    problem, x = problems.binary_model(), jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])
    spreads = []
    for build in (arms.arms, score_function.leave_one_out):
        objective = build(problem.model, num_samples=4)
        _, grads = testing.draws(objective, problem.params, x, num_draws=20_000)
        leaves = jax.tree.leaves(grads.recognition)
        spreads.append(sum(float(leaf.var(0).sum()) for leaf in leaves))
    assert spreads[0] < 0.95 * spreads[1]


def test_a_q_of_another_family_is_refused():
    model = problems.linear_gaussian().model
    with pytest.raises(ValueError, match="must be a factorial bernoulli"):
        arms.arms(model, num_samples=2)
