import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import problems, testing
from vae_jax.estimators import rebar, score_function

X = np.array([1.0, 0.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize("logit", [-3.0, 0.4, 2.0])
def test_both_relaxations_are_logistic_and_have_the_sign_of_the_bit(x64, logit):
    draw = jax.jit(jax.vmap(rebar.relaxed_pair, (0, None)))
    keys = jax.random.split(jax.random.key(0), 20_000)
    bits, z, again = draw(keys, jnp.array([logit]))
    np.testing.assert_array_equal(z > 0.0, bits == 1.0)
    np.testing.assert_array_equal(again > 0.0, bits == 1.0)
    for values in (z, again):
        ranks = stats.logistic.cdf(np.asarray(values)[:, 0], loc=logit)
        testing.assert_mean_equals(ranks, 0.5)
        testing.assert_mean_equals(ranks**2, 1.0 / 3.0)
    # Apart from the sign the two are independent.
    ranks = [stats.logistic.cdf(np.asarray(v)[:, 0], loc=logit) for v in (z, again)]
    inside = np.asarray(bits)[:, 0] == 1.0
    gaps = [r[inside] - r[inside].mean() for r in ranks]
    testing.assert_mean_equals(gaps[0] * gaps[1], 0.0)


@pytest.mark.slow
def test_without_strength_it_is_the_score_function_of_its_own_bits(x64):
    problem, x = problems.binary_model(), jnp.asarray(X)
    objective = rebar.rebar(problem.model, num_samples=1, temperature=0.5, strength=0.0)
    key = jax.random.key(3)
    value, grads = jax.value_and_grad(objective, 1)(
        jax.random.clone(key), problem.params, x
    )
    h = problem.recognition.encode(problem.params, x)
    bits = rebar.relaxed_pair(key, h)[0]

    def log_q(params):
        encoded = problem.recognition.encode(params, x)
        return problem.recognition.log_prob(params, encoded, bits)

    score = jax.grad(log_q)(problem.params).recognition
    expected = jax.tree.map(lambda s: value * s, score)
    chex.assert_trees_all_close(grads.recognition, expected, rtol=1e-9)


@pytest.mark.slow
def test_the_control_variate_takes_most_of_the_noise_away():
    problem, x = problems.binary_model(), jnp.asarray(X)
    spreads = []
    for objective in (
        rebar.rebar(problem.model, num_samples=1, temperature=0.5),
        score_function.score_function(problem.model, num_samples=1),
    ):
        _, grads = testing.draws(objective, problem.params, x, num_draws=5_000)
        leaves = jax.tree.leaves(grads.recognition)
        spreads.append(sum(float(leaf.var(0).sum()) for leaf in leaves))
    assert spreads[0] < 0.5 * spreads[1]


def test_a_q_of_another_family_is_refused():
    model = problems.linear_gaussian().model
    with pytest.raises(ValueError, match="must be a factorial bernoulli"):
        rebar.rebar(model, num_samples=2, temperature=0.5)
