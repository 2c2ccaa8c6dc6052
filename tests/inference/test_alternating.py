import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems
from vae_jax.estimators import sgvb
from vae_jax.inference import alternating
from vae_jax.training import checkpoints, gradient, loop
from vae_jax.types import Batch, Objective, Params, per_example

pytestmark = pytest.mark.uses_optax
ROWS = np.array([[0.4, -1.0], [1.2, 0.3], [-0.5, 0.8], [0.1, 0.1]])


def _batch():
    x = jnp.asarray(ROWS, jnp.result_type(float))
    return Batch(x, jnp.arange(4), jnp.array([1.0, 2.0, 0.0, 1.0], x.dtype))


def _objective(problem):
    return per_example(sgvb.sgvb_a(problem.model, num_samples=2))


def _assert_close(got, expected):
    chex.assert_trees_all_close(got, expected, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("num_inner", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_step_is_that_many_updates_of_phi_and_then_one_of_theta(x64, num_inner):
    """Each half has an optimizer of its own, whose weight decay it alone feels."""
    problem, batch, key = problems.linear_gaussian(), _batch(), jax.random.key(3)
    objective, optimizer = _objective(problem), optax.adamw(0.1, weight_decay=0.5)
    fit = alternating.alternating(objective, optimizer, num_inner=num_inner)
    state = fit.init(jax.random.key(0), problem.params)
    after, info = jax.jit(fit.step)(jax.random.clone(key), state, batch)

    def bound(theta, phi, key):
        nats, _, _ = objective.value(key, Params(theta, phi), (), batch)
        return gradient.weighted_moments(nats, batch.weight)[0]

    theta, phi = problem.params
    key_phi, key_theta = jax.random.split(key)
    memory = optimizer.init(phi)
    for t in range(num_inner):
        slope = jax.jit(jax.grad(bound, argnums=1))(
            theta, phi, jax.random.fold_in(key_phi, t)
        )
        descent = jax.tree.map(jnp.negative, slope)
        updates, memory = optimizer.update(descent, memory, phi)
        phi = optax.apply_updates(phi, updates)
    value, slope = jax.jit(jax.value_and_grad(bound))(theta, phi, key_theta)
    descent = jax.tree.map(jnp.negative, slope)
    updates, _ = optimizer.update(descent, optimizer.init(theta), theta)
    _assert_close(after.params, Params(optax.apply_updates(theta, updates), phi))
    np.testing.assert_allclose(info.bound, value, rtol=1e-9)
    np.testing.assert_allclose(info.gradient_norm, optax.tree.norm(slope), rtol=1e-9)
    assert int(after.step) == 1


@pytest.mark.slow
def test_phi_follows_theta_the_closer_the_more_often_it_is_updated(x64):
    problem, batch = problems.linear_gaussian(), _batch()
    objective = per_example(lambda key, params, x: problem.elbo(params, x))

    def gap(num_inner):
        fit = alternating.alternating(objective, optax.adam(0.03), num_inner=num_inner)

        def step(state, t):
            return fit.step(jax.random.key(t), state, batch)

        state = fit.init(jax.random.key(0), problem.params)
        params = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(20)))(state)[
            0
        ].params
        log_p = jax.vmap(problem.log_p, in_axes=(None, 0))(params, batch.x)
        elbo = jax.vmap(problem.elbo, in_axes=(None, 0))(params, batch.x)
        return float((log_p - elbo).mean())

    lagging, closer, closest = (gap(num_inner) for num_inner in (1, 5, 50))
    assert 0.0 <= closest < 1e-3 < closer < lagging


def test_the_objectives_memory_goes_through_every_update():
    def value(key, params, memory, batch):
        del key, params
        return jnp.zeros(batch.index.shape), memory + 1, {"before": memory}

    counting = Objective(lambda params: jnp.zeros((), jnp.int32), value)
    fit = alternating.alternating(counting, optax.sgd(0.1), num_inner=4)
    problem, batch = problems.linear_gaussian(), _batch()
    state = fit.init(jax.random.key(0), problem.params)
    state, _ = jax.jit(fit.step)(jax.random.key(1), state, batch)
    state, info = jax.jit(fit.step)(jax.random.key(2), state, batch)
    assert int(state.memory) == 10
    assert int(info.monitored["before"]) == 9
    _assert_close(state.params, problem.params)


@pytest.mark.slow
def test_a_resumed_alternation_ends_bit_for_bit_as_an_unbroken_one(tmp_path):
    problem, batch = problems.linear_gaussian(), _batch()
    fit = alternating.alternating(_objective(problem), optax.adam(0.05), num_inner=2)
    scan = loop.scan(fit, lambda key, data, index: batch._replace(x=data[index]))
    order = jnp.broadcast_to(jnp.arange(4), (3, 4))

    def first():
        return loop.start(jax.random.key(1), fit, problem.params)

    whole = scan(scan(first(), batch.x, order)[0], batch.x, order)[0]
    checkpoints.save(tmp_path / "saved", 3, scan(first(), batch.x, order)[0])
    restored = checkpoints.restore(tmp_path / "saved", first())
    assert restored is not None
    resumed, _ = scan(restored.tree, batch.x, order)
    chex.assert_trees_all_equal(resumed.inner, whole.inner)


def test_numbers_that_make_no_alternation_are_refused():
    objective = _objective(problems.linear_gaussian())
    with pytest.raises(ValueError, match="num_inner must be positive, got 0"):
        alternating.alternating(objective, optax.sgd(0.1), num_inner=0)
    with pytest.raises(ValueError, match="norm_every must be positive, got 0"):
        alternating.alternating(objective, optax.sgd(0.1), num_inner=1, norm_every=0)
