"""Layouts over the eight devices of the tests; whole runs are tested elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.training import parallel


def test_a_single_device_needs_no_mesh():
    assert parallel.data_mesh(1) is None
    assert parallel.whole(None) is None
    assert parallel.split(None, axis=0) is None
    tree = {"a": jnp.ones(2)}
    assert parallel.replicate(None, tree) is tree


@pytest.mark.parametrize(("asked", "expected"), [(0, 8), (2, 2), (8, 8)])
def test_a_mesh_has_the_devices_asked_for(asked, expected):
    mesh = parallel.data_mesh(asked)
    assert mesh is not None
    assert (mesh.size, mesh.axis_names) == (expected, (parallel.AXIS,))


def test_more_devices_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="num_devices=9, and JAX has 8 cpu devices"):
        parallel.data_mesh(9)


def test_a_tree_lies_whole_on_every_device_keys_too():
    mesh = parallel.data_mesh(4)
    tree = {"key": jax.random.key(1), "weights": jnp.arange(6.0).reshape(2, 3)}
    placed = parallel.replicate(mesh, tree)
    for leaf in jax.tree.leaves(placed):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == 4
    separate = parallel.local(placed)
    np.testing.assert_array_equal(separate["weights"], tree["weights"])
    assert len(separate["weights"].sharding.device_set) == 1
    same = jax.random.key_data(separate["key"]) == jax.random.key_data(
        jax.random.key(1)
    )
    assert same.all()


@pytest.mark.parametrize("sharded", [False, True])
def test_rows_can_be_gathered_wherever_they_lie(sharded):
    rows = np.arange(33, dtype=np.uint8).reshape(11, 3)
    mesh = parallel.data_mesh(4)
    placed = parallel.place_rows(mesh, rows, sharded=sharded)
    assert placed.addressable_data(0).shape == ((3, 3) if sharded else (11, 3))
    assert placed.sharding.is_fully_replicated != sharded
    index = jnp.array([10, 0, 7, 5])
    columns = jax.device_put(index, parallel.split(mesh, axis=0))
    taken = jax.jit(lambda data, index: data[index])(placed, columns)
    np.testing.assert_array_equal(taken, rows[np.asarray(index)])


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: closed by peer"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: Gloo all-reduce failed"), True),
        (ValueError("num_rows=3 is less than batch_size=5"), False),
        (RuntimeError("UNKNOWN: Gloo AllGather failed"), False),
    ],
)
def test_the_loss_of_another_process_is_told_from_other_errors(
    monkeypatch, error, lost
):
    assert not parallel.is_lost_process(error)  # alone, there is none to lose
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert parallel.is_lost_process(error) == lost


def test_an_axis_is_cut_and_the_others_are_whole():
    layout = parallel.split(parallel.data_mesh(2), axis=1)
    order = jax.device_put(jnp.zeros((3, 4), jnp.int32), layout)
    assert order.addressable_data(0).shape == (3, 2)


@pytest.mark.parametrize("process_id", [-1, 2])
def test_a_process_beyond_the_last_is_refused_before_anything_waits(process_id):
    with pytest.raises(ValueError, match="is not below num_processes=2"):
        parallel.initialize("127.0.0.1:1", num_processes=2, process_id=process_id)


def test_one_process_joins_nothing_writes_and_agrees_with_itself():
    parallel.initialize("", num_processes=1, process_id=0)
    assert parallel.is_writer()
    assert parallel.any_process(True)
    assert not parallel.any_process(False)


def test_leaving_says_one_line_and_ends_the_process(monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(parallel.os, "_exit", ended.append)
    parallel.leave("the other\n  is gone")
    assert ended == [1]
    assert capsys.readouterr().err == "error: the other is gone\n"


def test_rows_that_fill_the_devices_are_not_filled_up():
    placed = parallel.place_rows(parallel.data_mesh(4), np.ones((8, 3)), sharded=True)
    assert placed.shape == (8, 3)
