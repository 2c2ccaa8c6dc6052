import functools
import re
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems
from vae_jax import compilation, types
from vae_jax.estimators import sgvb
from vae_jax.training import gradient, loop
from vae_jax.types import Algorithm, Batch, Params

pytestmark = pytest.mark.uses_optax

DATA = np.random.default_rng(0).integers(0, 255, size=(10, 2)).astype(np.uint8)
ORDER = np.random.default_rng(1).permutation(60).reshape(6, 10)[:, :4] % 10


def _take(key, data, index):
    """Rows with dithering, so that a batch draws noise of its own."""
    noise = jax.random.uniform(key, (index.shape[0], data.shape[1]))
    x = (data[index].astype(jnp.float32) + noise) / 256.0
    return Batch(x, index, jnp.ones(index.shape))


@functools.cache
def _vae():
    problem = problems.linear_gaussian()
    objective = types.per_example(sgvb.sgvb_b(problem.model, num_samples=1))
    return gradient.ascent(objective, optax.adam(1e-2)), problem.params


def _start(seed=5):
    algorithm, params = _vae()
    return algorithm, loop.start(jax.random.key(seed), algorithm, params)


def _arguments(order=ORDER):
    return jnp.asarray(DATA), jnp.asarray(order)


def _numbers(state):
    state = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def _assert_identical(a, b):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


def _recorder():
    """An algorithm that reports what it is given."""

    def step(key, state, batch):
        draws = jax.random.uniform(key, batch.x.shape[:1])
        return state + 1.0, {"draws": draws, "index": batch.index, "x": batch.x}

    return Algorithm(lambda key, start: start, step)


# Steps


def test_every_step_takes_its_own_rows_in_order():
    algorithm = _recorder()
    state = loop.start(jax.random.key(0), algorithm, jnp.zeros(()))
    state, info = loop.scan(algorithm, _take)(state, *_arguments())
    np.testing.assert_array_equal(info["index"], ORDER)
    np.testing.assert_array_equal(np.floor(info["x"] * 256.0), DATA[ORDER])
    assert state.step == 6
    assert state.inner == 6.0


def test_every_step_and_example_draws_fresh_noise():
    algorithm = _recorder()
    state = loop.start(jax.random.key(0), algorithm, jnp.zeros(()))
    _, info = loop.scan(algorithm, _take)(state, *_arguments())
    dither = np.asarray(info["x"]) * 256.0 - DATA[ORDER]
    assert np.unique(info["draws"]).size == ORDER.size
    assert np.unique(dither).size > 0.99 * dither.size  # of 2^-16: a few may agree


def test_a_step_draws_from_the_root_key_folded_with_its_number():
    algorithm = _recorder()
    state = loop.start(jax.random.key(0), algorithm, jnp.zeros(()))
    root = jax.random.wrap_key_data(jnp.copy(jax.random.key_data(state.key)))
    _, info = loop.scan(algorithm, _take)(state, *_arguments())
    key_batch, key_step = jax.random.split(jax.random.fold_in(root, 3))
    expected = _take(key_batch, *_arguments(ORDER[3]))
    np.testing.assert_array_equal(info["x"][3], expected.x)
    np.testing.assert_array_equal(info["draws"][3], jax.random.uniform(key_step, (4,)))


def test_start_gives_the_initialization_a_key_apart_from_the_root():
    algorithm = Algorithm(
        lambda key, start: jax.random.key_data(key),
        lambda key, state, batch: (state, ()),
    )
    state = loop.start(jax.random.key(0), algorithm, ())
    assert state.step == 0
    assert (np.asarray(state.inner) != np.asarray(jax.random.key_data(state.key))).any()


@pytest.mark.slow
def test_the_root_key_is_never_advanced():
    algorithm, state = _start()
    before = np.asarray(jax.random.key_data(state.key))
    state, _ = loop.scan(algorithm, _take)(state, *_arguments())
    np.testing.assert_array_equal(jax.random.key_data(state.key), before)


@pytest.mark.slow
def test_training_raises_the_bound():
    algorithm, params = _vae()
    state = loop.start(jax.random.key(0), algorithm, params)
    order = np.tile(ORDER, (60, 1))
    _, info = loop.scan(algorithm, _take)(state, *_arguments(order))
    assert info.bound.shape == (360,)
    assert info.bound[-60:].mean() > info.bound[:6].mean() + 0.1


# Resuming


@pytest.mark.parametrize("cuts", [(3,), (1, 2, 5)])
@pytest.mark.slow
def test_a_scan_cut_into_pieces_is_bitwise_one_scan(cuts):
    algorithm, state = _start()
    run = loop.scan(algorithm, _take)
    whole, info = run(state, *_arguments())
    _, state = _start()
    bounds = []
    for piece in np.split(ORDER, cuts):
        state, part = run(state, *_arguments(piece))
        bounds.append(np.asarray(part.bound))
    _assert_identical(_numbers(whole), _numbers(state))
    np.testing.assert_array_equal(np.concatenate(bounds), info.bound)


@pytest.mark.slow
def test_a_run_resumed_from_numbers_on_the_host_ends_bitwise_the_same():
    algorithm, state = _start()
    expected, _ = loop.scan(algorithm, _take)(state, *_arguments())
    _, state = _start()
    state, _ = loop.scan(algorithm, _take)(state, *_arguments(ORDER[:4]))
    saved, tree = _numbers(state), jax.tree.structure(state)
    key = jax.random.wrap_key_data(jnp.asarray(jax.random.key_data(state.key)))
    algorithm, _ = _vae.__wrapped__()  # as a new process would build it
    restored = jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in saved])
    restored = restored._replace(key=key)
    resumed, _ = loop.scan(algorithm, _take)(restored, *_arguments(ORDER[4:]))
    _assert_identical(_numbers(expected), _numbers(resumed))


def test_the_same_root_key_repeats_a_run_and_another_does_not():
    ends, run = [], loop.scan(_vae()[0], _take)
    for seed in (5, 5, 6):
        state, _ = run(_start(seed)[1], *_arguments())
        ends.append(_numbers(state._replace(key=jax.random.key(0))))
    _assert_identical(ends[0], ends[1])
    assert any((a != b).any() for a, b in zip(ends[0], ends[2], strict=True))


# Compilation and memory


def test_a_program_is_compiled_once_for_every_shape_of_the_order():
    algorithm, state = _start()
    chex.clear_trace_counter()
    take: Any = chex.assert_max_traces(_take, n=1)
    run = loop.scan(algorithm, take)
    for _ in range(3):
        state, _ = run(state, *_arguments())


@pytest.mark.slow
def test_the_scan_agrees_with_a_loop_of_steps():
    algorithm, state = _start()
    key = jax.random.wrap_key_data(jnp.copy(jax.random.key_data(state.key)))
    inner, step = jax.tree.map(jnp.copy, state.inner), jax.jit(algorithm.step)
    expected, _ = loop.scan(algorithm, _take)(state, *_arguments())
    for t, index in enumerate(ORDER):
        root = jax.random.fold_in(jax.random.clone(key), t)
        key_batch, key_step = jax.random.split(root)
        inner, _ = step(key_step, inner, _take(key_batch, *_arguments(index)))
    for a, b in zip(
        jax.tree.leaves(expected.inner), jax.tree.leaves(inner), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_state_is_donated_and_what_it_started_from_lives_on():
    algorithm, params = _vae()
    before = jax.tree.map(np.array, params)
    state = loop.start(jax.random.key(5), algorithm, params)
    loop.scan(algorithm, _take)(state, *_arguments())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.inner.params))
    chex.assert_trees_all_equal(params, before)
    again = loop.start(jax.random.key(5), algorithm, params)
    loop.scan(algorithm, _take)(again, *_arguments())


def test_a_state_that_holds_its_start_twice_can_be_scanned():
    # Such as an average of the parameters that begins as the parameters.
    algorithm = Algorithm(
        lambda key, start: {"now": start, "average": start},
        lambda key, state, batch: (state, batch.x.mean()),
    )
    state = loop.start(jax.random.key(0), algorithm, Params(jnp.ones(2), ()))
    state, _ = loop.scan(algorithm, _take)(state, *_arguments())
    np.testing.assert_array_equal(state.inner["average"].generative, np.ones(2))


@pytest.mark.slow
def test_rows_sharded_over_four_devices_train_as_on_one():
    algorithm, state = _start()
    expected, info = loop.scan(algorithm, _take)(state, *_arguments())
    _, state = _start()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    whole = jax.sharding.NamedSharding(mesh, spec())
    columns = jax.sharding.NamedSharding(mesh, spec(None, "data"))
    data, order = _arguments()
    got, sharded = loop.scan(algorithm, _take)(
        jax.device_put(state, whole),
        jax.device_put(data, whole),
        jax.device_put(order, columns),
    )
    np.testing.assert_allclose(sharded.bound, info.bound, rtol=1e-5)
    for a, b in zip(_numbers(expected), _numbers(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def _average(rate):
    """An average of the rows, differentiable in the data and in its rate."""

    def step(key, state, batch):
        error = batch.x.mean(0) - state
        return state + rate * error, (error**2).sum()

    return Algorithm(lambda key, start: start, step)


def _plain(key, data, index):
    return Batch(data[index], index, jnp.ones(index.shape))


@pytest.mark.parametrize("outer", ["jit", "jit of constants", "vmap", "grad"])
def test_a_scan_is_a_part_of_an_outer_transformation(outer):
    data, order = jnp.asarray(DATA, jnp.float32), jnp.asarray(ORDER)
    run = loop.scan(_average(0.1), _plain)

    def state(seed=0):
        return loop.start(jax.random.key(seed), _average(0.1), jnp.zeros(2))

    expected, info = run(state(), data, order)
    if outer == "grad":

        def last(data):
            return run(state(), data, order)[0].inner.sum()

        # The average forgets at the rate: weights 0.1 * 0.9^t of each batch's mean.
        weight = np.zeros(len(DATA))
        np.add.at(weight, ORDER, (0.1 * 0.9 ** np.arange(5, -1, -1) / 4.0)[:, None])
        got = jax.grad(last)(data)
        np.testing.assert_allclose(got, np.stack([weight] * 2, 1), rtol=1e-5)
        return
    if outer == "vmap":
        ends, infos = jax.vmap(run, in_axes=(None, 0, None))(
            state(), jnp.stack([data, 2.0 * data]), order
        )
        np.testing.assert_allclose(ends.inner[1], 2.0 * expected.inner, rtol=1e-6)
        end, got = ends.inner[0], infos[0]
    elif outer == "jit":
        ends, got = jax.jit(run)(state(), data, order)
        end = ends.inner
    else:
        began = state()
        ends, got = jax.jit(lambda: run(began, data, order))()
        end = ends.inner
        assert not began.inner.is_deleted()
    np.testing.assert_allclose(end, expected.inner, rtol=1e-6)
    np.testing.assert_allclose(got, info, rtol=1e-5)


def test_runs_together_are_a_part_of_an_outer_jit_too():
    def build(settings):
        return _average(settings["rate"])

    states = jax.vmap(lambda key: loop.start(key, build({"rate": 0.1}), jnp.zeros(2)))
    settings = {"rate": jnp.array([0.1, 0.5])}
    data, orders = jnp.asarray(DATA, jnp.float32), jnp.asarray(np.stack([ORDER] * 2))
    run = loop.scan_together(build, _plain)
    keys = jax.random.split(jax.random.key(0), 2)
    expected, _ = run(settings, states(jax.random.clone(keys)), data, orders)
    got, _ = jax.jit(run)(settings, states(keys), data, orders)
    np.testing.assert_allclose(got.inner, expected.inner, rtol=1e-6)


def test_runs_in_turn_are_those_side_by_side_and_those_alone():
    def build(settings):
        return _average(settings["rate"])

    def member(tree, i):
        return jax.tree.map(lambda leaf: leaf[i], tree)

    def states():
        keys = jax.random.split(jax.random.key(0), 2)
        algorithm = build({"rate": 0.1})
        return jax.vmap(lambda key: loop.start(key, algorithm, jnp.ones(2)))(keys)

    def together(*, in_turn):
        run = loop.scan_together(build, _plain, in_turn=in_turn)
        return run({"rate": rates}, states(), data, orders)

    rates, data = jnp.array([0.1, 0.5]), jnp.asarray(DATA, jnp.float32)
    orders = jnp.asarray(np.stack([ORDER, ORDER[::-1]]))
    ends, infos = together(in_turn=True)
    beside, infos_beside = together(in_turn=False)
    chex.assert_trees_all_close(ends.inner, beside.inner, rtol=1e-6)
    chex.assert_trees_all_close(infos, infos_beside, rtol=1e-6)
    np.testing.assert_array_equal(ends.step, beside.step)
    for i in range(2):
        alone = loop.scan(build({"rate": rates[i]}), _plain)
        end, info = alone(member(states(), i), data, orders[i])
        chex.assert_trees_all_close(member(ends.inner, i), end.inner, rtol=1e-6)
        chex.assert_trees_all_close(member(infos, i), info, rtol=1e-6)
    assert not np.allclose(ends.inner[0], ends.inner[1])


def test_no_weight_is_copied_at_a_step():
    # What the backward pass reads is overwritten in place, on the compiler of users.
    if jax.default_backend() != "cpu":
        pytest.skip("what `scan` asks of the compiler, it asks of the CPU's")
    algorithm, state = _start()
    run = cast(Any, loop.scan(algorithm, _take)).__wrapped__
    program = compilation.whole(run, donate=0)
    compiled = program.lower(state, *_arguments()).compile()
    body = (compiled.as_text() or "").split("ENTRY")[0]
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(state.inner.params)}
    matrices = [f"f32[{','.join(map(str, s))}]" for s in shapes if len(s) == 2]
    assert matrices
    for shape in matrices:
        assert not re.search(rf"= {re.escape(shape)}\S* copy\(", body), shape


# Until a value comes to rest


def _halving():
    """A state that halves at every step, and reports what it was and a draw."""

    def step(key, state, batch):
        info = {"value": state, "draw": jax.random.uniform(key), "rows": batch.x}
        return 0.5 * state, info

    return Algorithm(lambda key, start: start, step)


def _until(tolerance=0.1, max_steps=50):
    return loop.until_converged(
        _halving(),
        value=lambda info: info["value"],
        tolerance=tolerance,
        max_steps=max_steps,
    )


BATCH = Batch(jnp.ones(2), jnp.arange(2), jnp.ones(2))


def test_a_run_ends_at_the_first_change_below_the_tolerance():
    # Values 1, 1/2, 1/4, 1/8, 1/16: the last change is the first below 0.1.
    got = jax.jit(_until())(jax.random.key(0), jnp.ones(()), BATCH)
    assert got.converged
    assert got.num_steps == 5
    assert got.info["value"] == 1 / 16
    assert got.state == 1 / 32
    key = jax.random.split(jax.random.key(0))[1]
    last = jax.random.uniform(jax.random.fold_in(key, 4))
    np.testing.assert_array_equal(got.info["draw"], last)


def test_a_trajectory_is_every_state_on_the_way_there():
    run = jax.jit(loop.trajectory(_halving(), num_steps=5))
    got = run(jax.random.key(0), jnp.ones(()), BATCH)
    np.testing.assert_array_equal(got.states, [1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16])
    np.testing.assert_array_equal(got.infos["value"], got.states)
    assert got.end == 1 / 32
    at_rest = jax.jit(_until())(jax.random.key(0), jnp.ones(()), BATCH)
    np.testing.assert_array_equal(got.infos["draw"][-1], at_rest.info["draw"])
    with pytest.raises(ValueError, match="num_steps must be positive, got 0"):
        loop.trajectory(_halving(), num_steps=0)


def test_rows_are_taken_as_they_are(x64):
    data = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))
    got = loop.take_rows(jax.random.key(0), data, jnp.array([2, 0]))
    np.testing.assert_array_equal(got.x, data[jnp.array([2, 0])])
    np.testing.assert_array_equal(got.index, [2, 0])
    np.testing.assert_array_equal(got.weight, [1.0, 1.0])
    assert got.x.dtype == got.weight.dtype == jnp.float64


def test_a_run_that_does_not_come_to_rest_says_so():
    run = jax.jit(_until(max_steps=3))
    for start in (1.0, np.nan):
        got = run(jax.random.key(0), jnp.asarray(start), BATCH)
        assert not got.converged
        assert got.num_steps == 3


def test_runs_side_by_side_end_as_each_alone_does():
    run, starts = _until(), jnp.array([1.0, 0.01, 64.0])
    keys = jax.random.split(jax.random.key(0), 3)
    batched = jax.jit(jax.vmap(run, in_axes=(0, 0, None)))
    got = batched(jax.random.clone(keys), starts, BATCH)
    np.testing.assert_array_equal(got.num_steps, [5, 2, 11])
    for i in range(3):
        alone = jax.jit(run)(keys[i], starts[i], BATCH)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b), got, alone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must be positive, got 0.0"),
        ({"tolerance": np.nan}, "tolerance must be positive, got nan"),
        ({"max_steps": 0}, "max_steps must be positive, got 0"),
    ],
)
def test_a_run_that_could_not_end_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _until(**changes)
