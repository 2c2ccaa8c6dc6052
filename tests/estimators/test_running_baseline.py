import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems, testing
from vae_jax import types
from vae_jax.estimators import running_baseline, score_function
from vae_jax.training import gradient
from vae_jax.types import Batch, Objective, Params

pytestmark = pytest.mark.uses_optax
DECAY = 0.8


def _batch(seed=0, size=6):
    x = jax.random.bernoulli(jax.random.key(seed), 0.5, (size, 5)).astype(jnp.float32)
    return Batch(x, jnp.arange(size), jnp.ones(size))


def _build(problem):
    def build(baseline, scale):
        return score_function.score_function(
            problem.model, num_samples=1, baseline=baseline, scale=scale
        )

    return build


def _objective(problem, **settings):
    build = _build(problem)
    return running_baseline.running_baseline(
        lambda *numbers: types.per_example(build(*numbers)), **settings
    )


def _run(problem, num_steps, *, monitor=None, **settings):
    """States and infos of a few steps."""
    objective = _objective(problem, decay=DECAY, **settings)
    watched = {} if monitor is None else {"monitor": monitor}
    algorithm = gradient.ascent(objective, optax.sgd(0.1), **watched)
    states, infos = [algorithm.init(jax.random.key(1), problem.params)], []
    step = jax.jit(algorithm.step)
    for t in range(num_steps):
        key = jax.random.fold_in(jax.random.key(0), t)
        state, info = step(key, states[-1], _batch(t))
        states.append(state)
        infos.append(info)
    return states, infos


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.slow
def test_each_step_is_an_ascent_with_the_numbers_of_the_steps_before(normalize):
    problem = problems.binary_model()
    states, infos = _run(problem, 4, normalize=normalize)
    values = []
    for t, state in enumerate(states[:-1]):
        weights = DECAY ** np.arange(t)[::-1]
        baseline, scale = 0.0, 1.0
        if t:
            nats = np.asarray(values)  # [t, B]
            baseline = weights @ nats.mean(1) / weights.sum()
            square = weights @ (nats**2).mean(1) / weights.sum()
            scale = max(1.0, np.sqrt(square - baseline**2)) if normalize else 1.0
        objective = _build(problem)(jnp.float32(baseline), jnp.float32(scale))
        plain = gradient.ascent(types.per_example(objective), optax.sgd(0.1))
        key = jax.random.fold_in(jax.random.key(0), t)
        expected, _ = jax.jit(plain.step)(key, state._replace(memory=()), _batch(t))
        chex.assert_trees_all_close(
            states[t + 1]._replace(memory=()), expected, rtol=2e-4, atol=2e-5
        )
        assert states[t + 1].memory.step == t + 1
        keys = jax.random.split(jax.random.clone(key), 6)
        batched = jax.jit(jax.vmap(objective, in_axes=(0, None, 0)))
        values.append(batched(keys, state.params, _batch(t).x))
        np.testing.assert_allclose(infos[t].bound, values[-1].mean(), rtol=1e-5)


@pytest.mark.slow
def test_the_baseline_approaches_the_bound_and_cuts_the_variance():
    problem = problems.binary_model()
    states, _ = _run(problem, 60)
    x = _batch(3).x[0]
    spread = []
    for baseline in (0.0, float(states[-1].memory.mean)):
        objective = _build(problem)(jnp.float32(baseline), jnp.float32(1.0))
        _, grads = testing.draws(objective, problem.params, x, num_draws=2000)
        leaves = jax.tree.leaves(grads.recognition)
        spread.append(sum(float(leaf.var(0).sum()) for leaf in leaves))
    assert spread[1] < 0.5 * spread[0]


@pytest.mark.slow
def test_the_callers_monitor_is_what_is_reported():
    problem = problems.binary_model()
    _, infos = _run(problem, 1, monitor=lambda key, params, x: {"x": x.sum()})
    expected = {"x": _batch(0).x.sum(1).mean()}
    np.testing.assert_allclose(infos[0].monitored["x"], expected["x"])


def _scales(values, weight, *, decay):
    """The scale that each batch of values sees."""

    def build(baseline, scale):
        def value(key, params, memory, batch):
            return batch.x, memory, {"baseline": baseline, "scale": scale}

        return Objective(lambda params: (), value)

    objective = running_baseline.running_baseline(build, decay=decay)
    memory, logged = objective.init(Params((), ())), []
    for x in values:
        batch = Batch(jnp.asarray(x), jnp.arange(len(x)), jnp.asarray(weight))
        _, memory, numbers = objective.value(
            jax.random.key(0), Params((), ()), memory, batch
        )
        logged.append((numbers["baseline"], numbers["scale"]))
    return np.array(logged)


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_the_scale_is_the_decayed_deviation_also_far_from_zero(decay):
    """Single precision has seven digits, of which squares about zero lose them all."""
    generator = np.random.default_rng(0)
    steps = 3.0 * np.arange(5)[:, None]
    values = -9000.0 + steps + 4.0 * generator.normal(size=(5, 6))
    values, weight = values.astype(np.float32), np.array([1, 2, 0.5, 1, 0, 1], "f")
    logged = _scales(values, weight, decay=decay)
    np.testing.assert_array_equal(logged[0], [0.0, 1.0])
    exact, share = values.astype(np.float64), weight / weight.sum()
    for t in range(1, 5):
        ages = decay ** np.arange(t)[::-1]
        weights = ages[:, None] * share / ages.sum()
        mean = (weights * exact[:t]).sum()
        deviation = np.sqrt((weights * (exact[:t] - mean) ** 2).sum())
        np.testing.assert_allclose(logged[t, 0], mean, rtol=1e-6)
        np.testing.assert_allclose(logged[t, 1], max(deviation, 1.0), rtol=2e-3)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        _objective(problems.binary_model(), decay=decay)
