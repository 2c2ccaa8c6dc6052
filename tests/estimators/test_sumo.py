import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
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


@pytest.mark.parametrize("k", [1, 2, 80, 180, 200, 300])
def test_as_many_terms_run_as_survive_also_where_that_is_rare(k):
    """P(K >= k) by the bits that give it: those up to a number, as u grows in them."""
    survives = sumo.survival(300)

    def num_terms(bits):
        high, low = divmod(bits, 2**32)
        u = sumo.uniform(jnp.array([high, low], jnp.uint32))
        assert 0.0 < float(u) <= 1.0
        return int((float(u) <= survives.astype(np.float32)).sum())

    below, above = -1, 2**64
    while above - below > 1:
        middle = (below + above) // 2
        reaches = num_terms(middle) >= k
        below, above = (middle, above) if reaches else (below, middle)
    np.testing.assert_allclose(above / 2**64, survives[k - 1], rtol=1e-6)


@pytest.mark.slow
def test_draws_have_as_many_terms_as_survive(x64):
    problem, x = problems.linear_gaussian(), jnp.array([0.4, -1.0])
    draw = sumo.draws(problem.model, num_samples=1, max_terms=4)
    keys = jax.random.split(jax.random.key(0), 20_000)
    _, num_terms = jax.vmap(draw, (0, None, None))(keys, problem.params, x)
    for k, chance in enumerate(sumo.survival(4), start=1):
        testing.assert_mean_equals((num_terms >= k).astype(float), chance)


def test_a_draw_reaches_terms_rarer_than_single_precisions_steps(monkeypatch):
    problem, x = problems.linear_gaussian(), jnp.array([0.4, -1.0])
    survives = sumo.survival(250)
    assert survives[199] < 2.0**-23
    rare = int(survives[199] * 2.0**32)
    bits = jnp.array([rare - 1, 0], jnp.uint32)
    monkeypatch.setattr(jax.random, "bits", lambda *_: bits)
    draw = sumo.draws(problem.model, num_samples=1, max_terms=250)
    assert draw(jax.random.key(0), problem.params, x)[1] == 200


def test_first_weights_of_zero_are_minus_infinity_and_later_ones_cost_nothing():
    log_w, num_terms = jnp.array([-jnp.inf, -1.0, -2.0, -3.0]), jnp.asarray(2)
    assert sumo.roulette(log_w, num_terms, num_samples=1) == -jnp.inf
    got = sumo.roulette(log_w, num_terms, num_samples=2)
    w = np.exp(log_w)
    means = np.log([w[:k].mean() for k in (2, 3, 4)])
    expected = means[0] + np.diff(means) @ (1.0 / sumo.survival(2))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
