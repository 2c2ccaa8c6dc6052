from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems
from vae_jax.estimators import sgvb
from vae_jax.training import gradient
from vae_jax.types import Batch, Params, per_example

pytestmark = pytest.mark.uses_optax


def _batch(size=8):
    x = jax.random.normal(jax.random.key(2), (size, 2))
    return Batch(x, jnp.arange(size), jnp.ones(size))


def _objective(problem):
    return sgvb.sgvb_b(problem.model, num_samples=2)


def _assert_close(got, expected, *, rtol=1e-5, atol=1e-6):
    chex.assert_trees_all_close(got, expected, rtol=rtol, atol=atol)


def _exactly(problem):
    """The ELBO without noise."""
    return per_example(lambda key, params, x: problem.elbo(params, x))


@per_example
def _linear(key, params, x):
    """An objective whose gradient is x itself."""
    del key
    return (params.generative * x).sum()


# Without noise


def test_climb_reports_each_point_before_its_update(x64):
    start = {"a": jnp.array([3.0, 1.0]), "b": jnp.array(-2.0)}
    optimizer = optax.sgd(0.25)

    def height(point):  # the top at zero; a step of 0.25 halves the way there
        return jnp.asarray(5.0) - sum(jnp.sum(x**2) for x in jax.tree.leaves(point))

    point, _, values, norms = gradient.climb(
        height, optimizer, start, optimizer.init(start), num_updates=3
    )
    _assert_close(point, jax.tree.map(lambda leaf: leaf / 8.0, start), rtol=1e-12)
    shares = 0.25 ** np.arange(3)
    np.testing.assert_allclose(values, 5.0 - 14.0 * shares, rtol=1e-12)
    np.testing.assert_allclose(norms, 2.0 * np.sqrt(14.0 * shares), rtol=1e-12)


# One step


@pytest.mark.slow
def test_a_step_of_sgd_climbs_the_exact_gradient(x64):
    problem = problems.linear_gaussian()
    algorithm = gradient.ascent(_exactly(problem), optax.sgd(0.1))
    state, batch = algorithm.init(jax.random.key(0), problem.params), _batch()

    def bound(params):
        return jax.vmap(problem.elbo, in_axes=(None, 0))(params, batch.x).mean()

    after, info = jax.jit(algorithm.step)(jax.random.key(1), state, batch)
    value, grads = jax.jit(jax.value_and_grad(bound))(problem.params)
    expected = jax.tree.map(lambda p, g: p + 0.1 * g, problem.params, grads)
    _assert_close(after.params, expected, rtol=1e-9)
    assert isinstance(after.params, Params)
    assert bound(after.params) > value
    np.testing.assert_allclose(info.bound, value, rtol=1e-9)  # before the update
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(info.gradient_norm, norm, rtol=1e-9)


@pytest.mark.slow
def test_the_gradient_norm_is_reported_before_clipping():
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    algorithm = gradient.ascent(_linear, clipped)
    start = Params(jnp.zeros(2), ())
    batch = Batch(jnp.array([[3.0, 4.0]]), jnp.zeros(1, int), jnp.ones(1))
    state = algorithm.init(jax.random.key(0), start)
    after, info = algorithm.step(jax.random.key(1), state, batch)
    np.testing.assert_allclose(info.gradient_norm, 5.0, rtol=1e-6)
    np.testing.assert_allclose(after.params.generative, [6e-4, 8e-4], rtol=1e-5)


def test_the_optimizer_sees_the_parameters_and_keeps_its_memory():
    decayed = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0, momentum=0.9))
    algorithm = gradient.ascent(_linear, decayed)
    batch = Batch(jnp.array([[1.0]]), jnp.zeros(1, int), jnp.ones(1))
    state = algorithm.init(jax.random.key(0), Params(jnp.array([4.0]), ()))
    state, _ = algorithm.step(jax.random.key(1), state, batch)
    np.testing.assert_allclose(state.params.generative, [3.0])  # 4 + (1 - 0.5 * 4)
    state, _ = algorithm.step(jax.random.key(2), state, batch)
    # momentum: 0.9 * -1 + (1 - 0.5 * 3)
    np.testing.assert_allclose(state.params.generative, [1.6], rtol=1e-6)
    assert state.step == 2


@pytest.mark.slow
def test_the_monitor_sees_the_keys_of_the_objective_and_reports_means():
    def noisy(key, params, x):
        return (params.generative * x).sum() + jax.random.normal(key)

    algorithm = gradient.ascent(
        per_example(noisy),
        optax.sgd(1.0),
        monitor=lambda key, params, x: {"same": noisy(key, params, x), "x": x[0]},
    )
    state = algorithm.init(jax.random.key(0), Params(jnp.ones(2), ()))
    batch = _batch()
    _, info = algorithm.step(jax.random.key(1), state, batch)
    np.testing.assert_allclose(info.monitored["same"], info.bound, rtol=1e-6)
    np.testing.assert_allclose(info.monitored["x"], batch.x[:, 0].mean(), rtol=1e-5)


@pytest.mark.slow
def test_the_monitor_leaves_the_step_as_it_is():
    problem = problems.linear_gaussian()
    objective, batch = _objective(problem), _batch()
    monitored = gradient.ascent(
        per_example(objective),
        optax.adam(0.1),
        monitor=lambda *arguments: {"bound": objective(*arguments)},
    )
    plain = gradient.ascent(per_example(objective), optax.adam(0.1))
    states = []
    for algorithm in (plain, monitored):
        state = algorithm.init(jax.random.key(0), problem.params)
        states.append(jax.jit(algorithm.step)(jax.random.key(1), state, batch)[0])
    _assert_close(states[0], states[1])


# Settings


@pytest.mark.slow
def test_settings_see_the_number_of_steps_taken():
    objective = gradient.scheduled(
        lambda settings: per_example(
            lambda key, params, x: settings["scale"] * params.generative
        ),
        lambda step: {"scale": 1.0 + 10.0 * step.astype(jnp.float32)},
    )
    algorithm = gradient.ascent(objective, optax.sgd(1.0))
    state = algorithm.init(jax.random.key(0), Params(jnp.zeros(()), ()))
    assert state.step == 0
    path = []
    for i in range(3):
        state, _ = algorithm.step(jax.random.key(i), state, _batch())
        path.append(float(state.params.generative))
    np.testing.assert_allclose(path, [1.0, 12.0, 33.0])  # plus 1, 11, 21
    assert state.memory == 3


@pytest.mark.slow
def test_a_kl_warm_up_is_one_program_with_a_traced_beta():
    problem = problems.linear_gaussian()
    chex.clear_trace_counter()

    def build(settings):
        return per_example(
            sgvb.sgvb_b(problem.model, num_samples=1, beta=settings["beta"])
        )

    once: Any = chex.assert_max_traces(build, n=1)
    objective = gradient.scheduled(once, lambda step: {"beta": step / 10.0})
    algorithm = gradient.ascent(objective, optax.adam(1e-2))
    state, step = (
        algorithm.init(jax.random.key(0), problem.params),
        jax.jit(algorithm.step),
    )
    for i in range(3):
        state, info = step(jax.random.key(i), state, _batch())
        assert jnp.isfinite(info.bound)


# Whole fits and transformations


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(optax.sgd(0.1), marks=pytest.mark.slow),
        pytest.param(optax.adagrad(0.3), marks=pytest.mark.slow),
        optax.adam(0.05),
    ],
)
def test_every_optimizer_brings_the_bound_to_log_p(optimizer):
    # One latent: the diagonal q contains the posterior, so the gap can close.
    problem = problems.linear_gaussian()
    algorithm = gradient.ascent(_exactly(problem), optimizer)
    state, batch = algorithm.init(jax.random.key(0), problem.params), _batch()

    def body(state, key):
        return algorithm.step(key, state, batch)

    keys = jax.random.split(jax.random.key(1), 400)
    state, info = jax.jit(lambda s, k: jax.lax.scan(body, s, k))(state, keys)
    log_p = jax.vmap(problem.log_p, in_axes=(None, 0))(state.params, batch.x).mean()
    assert info.bound[-1] > info.bound[0] + 0.2
    assert 0.0 <= log_p - info.bound[-1] < 0.02


@pytest.mark.slow
def test_jit_agrees_with_eager():
    @per_example
    def objective(key, params, x):
        return (params.generative * x * jax.random.normal(key, (2,))).sum()

    algorithm, batch = gradient.ascent(objective, optax.sgd(0.1)), _batch()
    state = algorithm.init(jax.random.key(0), Params(jnp.ones(2), ()))
    expected = algorithm.step(jax.random.key(1), state, batch)
    got = jax.jit(algorithm.step)(jax.random.key(1), state, batch)
    _assert_close(got, expected)


@pytest.mark.slow
def test_a_batch_sharded_over_four_devices_takes_the_step_of_one_device():
    problem, batch = problems.linear_gaussian(), _batch()
    algorithm = gradient.ascent(per_example(_objective(problem)), optax.sgd(0.1))
    state, step = (
        algorithm.init(jax.random.key(0), problem.params),
        jax.jit(algorithm.step),
    )
    expected = step(jax.random.key(1), state, batch)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    whole = jax.sharding.NamedSharding(mesh, spec())
    rows = jax.sharding.NamedSharding(mesh, spec("data"))
    got = step(
        jax.device_put(jax.random.key(1), whole),
        jax.device_put(state, whole),
        jax.device_put(batch, rows),
    )
    assert len(jax.device_put(batch, rows).x.sharding.device_set) == 4
    _assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_spread_is_the_standard_deviation_of_the_values_over_the_batch():
    batch = _batch()
    objective = per_example(lambda key, params, x: x.sum())
    algorithm = gradient.ascent(objective, optax.sgd(0.1))
    state = algorithm.init(jax.random.key(0), problems.linear_gaussian().params)
    _, info = jax.jit(algorithm.step)(jax.random.key(1), state, batch)
    np.testing.assert_allclose(info.bound, batch.x.sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(info.spread, batch.x.sum(1).std(), rtol=1e-5)


# norm_every


@pytest.mark.slow
def test_steps_that_skip_the_norm_report_minus_one_and_take_the_same_step():
    problem, batch = problems.linear_gaussian(), _batch()
    states, infos = [], []
    for every in (1, 3):
        algorithm = gradient.ascent(
            per_example(_objective(problem)), optax.sgd(0.1), norm_every=every
        )
        state = algorithm.init(jax.random.key(1), problem.params)
        step, rows = jax.jit(algorithm.step), []
        for i in range(5):
            state, info = step(jax.random.fold_in(jax.random.key(0), i), state, batch)
            rows.append((info.gradient_norm, info.bound))
        states.append(state)
        infos.append(np.asarray(rows))
    _assert_close(*states)
    np.testing.assert_allclose(infos[0][::3], infos[1][::3], rtol=1e-5)
    np.testing.assert_array_equal(infos[1][:, 0] == -1.0, [0, 1, 1, 0, 1])
    np.testing.assert_allclose(infos[0][:, 1], infos[1][:, 1], rtol=1e-5)


def test_norm_every_below_one_is_refused():
    with pytest.raises(ValueError, match="norm_every must be positive, got 0"):
        gradient.ascent(_linear, optax.sgd(0.1), norm_every=0)


# adam


@pytest.mark.parametrize("settings", [{}, {"b1": 0.5, "b2": 0.9, "eps": 1e-2}])
@pytest.mark.slow
def test_adam_is_that_of_optax(x64, settings):
    params = {"a": jnp.linspace(-1.0, 1.0, 5), "b": jnp.ones((2, 3))}
    rate = optax.cosine_decay_schedule(0.1, 30)
    ours, theirs = gradient.adam(rate, **settings), optax.adam(rate, **settings)
    states = [ours.init(params), theirs.init(params)]
    noise = np.random.default_rng(0)
    for _ in range(30):
        grads = jax.tree.map(
            lambda leaf: jnp.asarray(noise.normal(size=leaf.shape)), params
        )
        updates = []
        for j, optimizer in enumerate((ours, theirs)):
            update, states[j] = optimizer.update(grads, states[j], params)
            updates.append(update)
        _assert_close(*updates, rtol=1e-9, atol=1e-12)


def test_the_first_step_of_adam_has_the_learning_rate_as_its_length():
    optimizer = gradient.adam(0.25)
    params = jnp.zeros(3)
    grads = jnp.array([1e-3, -1.0, 1e3])
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    _assert_close(updates, jnp.array([-0.25, 0.25, -0.25]), rtol=1e-4)


# The moving average


@per_example
def _linear_in_w(key, params, x):
    del key
    return (params.generative["w"] * x).sum()


def test_the_average_is_the_recursion_over_the_parameters_from_the_start_on():
    fit = gradient.ascent(_linear_in_w, optax.sgd(0.1), average_decay=0.9)
    start = Params({"w": jnp.array([1.0, -2.0])}, {"v": jnp.array(3.0)})
    state = fit.init(jax.random.key(0), start)
    expected = np.array([1.0, -2.0])
    for i in range(3):
        x = jnp.array([[1.0, 2.0], [0.5, -1.0]]) * (i + 1)
        batch = Batch(x, jnp.arange(2), jnp.ones(2))
        state, _ = fit.step(jax.random.key(i), state, batch)
        expected = 0.9 * expected + 0.1 * np.asarray(state.params.generative["w"])
        np.testing.assert_allclose(state.average.generative["w"], expected, rtol=1e-6)
    # What does not move is its own average.
    np.testing.assert_array_equal(
        state.average.recognition["v"], start.recognition["v"]
    )


@pytest.mark.parametrize("decay", [0.1, 0.999, 0.9999])
def test_the_average_of_a_constant_tree_is_itself_bit_for_bit(decay):
    fit = gradient.ascent(_linear_in_w, optax.sgd(0.0), average_decay=decay)
    w = jax.random.normal(jax.random.key(3), (2,))
    start = Params({"w": w}, {"v": jax.random.normal(jax.random.key(4), (50,)) * 1e3})
    state = fit.init(jax.random.key(0), start)
    for i in range(3):
        state, _ = jax.jit(fit.step)(jax.random.key(i), state, _batch())
    chex.assert_trees_all_equal(state.average, start)


@pytest.mark.slow
def test_an_average_changes_no_parameter_and_none_is_kept_by_default():
    problem, batch = problems.linear_gaussian(), _batch()
    ends = []
    for decay in (0.0, 0.99):
        fit = gradient.ascent(
            per_example(_objective(problem)), optax.adam(0.1), average_decay=decay
        )
        state = fit.init(jax.random.key(0), problem.params)
        for i in range(2):
            state, _ = jax.jit(fit.step)(jax.random.key(i), state, batch)
        ends.append(state)
    assert ends[0].average == ()
    jax.tree.map(np.testing.assert_array_equal, ends[0].params, ends[1].params)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_of_no_average_is_refused(decay):
    with pytest.raises(ValueError, match="average_decay must lie in"):
        gradient.ascent(_linear, optax.sgd(0.1), average_decay=decay)
