import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vae_jax.training import checkpoints
from vae_jax.types import Params, PyTree

pytestmark = pytest.mark.uses_optax


class State(NamedTuple):
    step: jax.Array
    key: jax.Array
    params: Params
    opt_state: PyTree
    notes: dict


def make_state(seed, *, width=6):
    """A state as a run has it, with Adam's memory, filled with random numbers."""
    generator = np.random.default_rng(seed)

    def random_leaf(leaf):
        values = generator.normal(size=leaf.shape, scale=100.0)
        return jnp.asarray(values.astype(leaf.dtype))

    shapes = Params(
        {"w": jnp.zeros((width, 4)), "b": jnp.zeros(4)},
        {"w": jnp.zeros((4, width), jnp.bfloat16)},
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    notes = {
        "best": jnp.float32(jnp.nan),
        "flags": jnp.array([True, False]),
        "none": None,
        "empty": jnp.zeros((0, 3)),
        "keys": jax.random.split(jax.random.key(seed), 3),
    }
    return State(
        step=jnp.asarray(2, jnp.int32),
        key=jax.random.key(seed + 10),
        params=jax.tree.map(random_leaf, shapes),
        opt_state=jax.tree.map(random_leaf, jax.eval_shape(optimizer.init, shapes)),
        notes=notes,
    )


def bits(tree):
    """Every leaf's dtype, shape and bytes."""

    def of(leaf):
        dtype = str(leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(jax.random.clone(leaf))
        return dtype, leaf.shape, np.asarray(leaf).tobytes()

    return jax.tree.structure(tree), [of(leaf) for leaf in jax.tree.leaves(tree)]


def files_of(directory, step):
    return sorted(p for p in (directory / f"{step:010d}").rglob("*") if p.is_file())


def restored(directory, template):
    results = checkpoints.restore(directory, template)
    assert results is not None
    return results


def test_a_state_comes_back_bit_for_bit_in_its_own_structure(tmp_path):
    state = make_state(0)
    checkpoints.save(tmp_path, 2, state)
    results = restored(tmp_path, make_state(1))
    assert (results.step, results.damaged) == (2, ())
    assert bits(results.tree) == bits(state)


def test_a_template_of_shapes_alone_is_enough(tmp_path):
    state = make_state(0)
    checkpoints.save(tmp_path, 2, state)
    template = jax.eval_shape(lambda: make_state(1))
    assert bits(restored(tmp_path, template).tree) == bits(state)


def test_a_restored_key_draws_what_the_saved_one_would(tmp_path):
    key = jax.random.key(3, impl="rbg")
    checkpoints.save(tmp_path, 0, {"key": key})
    results = restored(tmp_path, {"key": jax.random.key(0, impl="rbg")})
    assert jax.random.normal(results.tree["key"]) == jax.random.normal(key)


def test_restored_arrays_may_be_donated(tmp_path):
    state = {"w": jnp.arange(4096.0), "key": jax.random.key(0)}
    checkpoints.save(tmp_path, 0, state)
    results = restored(tmp_path, state)
    double = jax.jit(lambda s: {**s, "w": 2.0 * s["w"]}, donate_argnums=0)
    doubled = double(results.tree)
    assert results.tree["w"].is_deleted()
    np.testing.assert_array_equal(doubled["w"], 2.0 * np.arange(4096.0))
    assert bits(restored(tmp_path, state).tree) == bits(state)


def test_a_sharded_leaf_goes_back_to_its_devices(tmp_path):
    mesh = jax.make_mesh((4,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("b"))
    state = {"x": jax.device_put(jnp.arange(8.0), sharding)}
    checkpoints.save(tmp_path, 0, state)
    results = restored(tmp_path, state)
    assert results.tree["x"].sharding == sharding
    assert bits(results.tree) == bits(state)


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert checkpoints.restore(tmp_path / "not there", {}) is None
    assert checkpoints.restore(tmp_path, {}) is None
    assert checkpoints.steps(tmp_path / "not there") == []


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 20, 300):
        checkpoints.save(tmp_path, step, {"a": jnp.full(2, step)})
    assert checkpoints.steps(tmp_path) == [20, 300]
    assert sorted(os.listdir(tmp_path)) == ["0000000020", "0000000300"]
    checkpoints.save(tmp_path, 301, {"a": jnp.zeros(2, int)}, keep=4)
    assert checkpoints.steps(tmp_path) == [20, 300, 301]
    checkpoints.save(tmp_path, 302, {"a": jnp.zeros(2, int)}, keep=1)
    assert checkpoints.steps(tmp_path) == [302]


def test_a_step_saved_again_replaces_the_old_one(tmp_path):
    for value in (1.0, 2.0, 3.0):
        checkpoints.save(tmp_path, 5, {"a": jnp.full(3, value)})
    assert checkpoints.steps(tmp_path) == [5]
    assert len(os.listdir(tmp_path)) == 1
    assert restored(tmp_path, {"a": jnp.zeros(3)}).tree["a"][0] == 3.0


def test_going_back_behind_damaged_steps_keeps_the_whole_ones(tmp_path):
    for step in (10, 20, 30):
        checkpoints.save(tmp_path, step, {"a": jnp.full(2, step)}, keep=3)
    for step in (20, 30):
        next(p for p in files_of(tmp_path, step) if p.name == "_METADATA").unlink()
    checkpoints.save(tmp_path, 15, {"a": jnp.full(2, 15)}, keep=2)
    assert checkpoints.steps(tmp_path) == [10, 15]


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_is_never_read_as_something_else(tmp_path):
    first, second = make_state(0), make_state(1)
    checkpoints.save(tmp_path, 1, first)
    checkpoints.save(tmp_path, 2, second)
    want, fallback = bits(second), bits(first)
    num_detected, generator = 0, np.random.default_rng(0)
    for path in files_of(tmp_path, 2):
        whole = path.read_bytes()
        for place in generator.integers(0, 8 * len(whole), 3):
            flipped = bytearray(whole)
            flipped[place // 8] ^= 1 << (place % 8)
            path.write_bytes(flipped)
            results = restored(tmp_path, first)
            if results.step == 1:
                num_detected += 1
                assert bits(results.tree) == fallback
                assert len(results.damaged) == 1
                assert "0000000002 is damaged" in results.damaged[0]
                assert "\n" not in results.damaged[0]
            else:
                assert bits(results.tree) == want
        path.write_bytes(whole)
    assert num_detected == 3 * len(files_of(tmp_path, 2))
    assert restored(tmp_path, first).step == 2


@pytest.mark.parametrize("damage", ["cut", "removed", "emptied", "other text"])
def test_a_cut_or_missing_file_is_passed_over(tmp_path, damage, capfd):
    state = {"a": jnp.arange(5.0), "key": jax.random.key(0)}
    checkpoints.save(tmp_path, 1, state)
    checkpoints.save(tmp_path, 2, state)
    for path in files_of(tmp_path, 2):
        whole = path.read_bytes()
        if damage == "removed":
            path.unlink()
        else:
            remaining = {"cut": whole[:-2], "emptied": b"", "other text": b'{"a": 1}'}
            path.write_bytes(remaining[damage])
        results = restored(tmp_path, state)
        assert results.step == 1, path
        assert len(results.damaged) == 1
        path.write_bytes(whole)
    assert restored(tmp_path, state).step == 2
    assert capfd.readouterr() == ("", "")


def test_arrays_that_are_not_the_saved_ones_are_detected_by_their_contents(
    tmp_path, monkeypatch
):
    state = {"a": jnp.arange(5.0)}
    monkeypatch.setattr(checkpoints, "_file_digests", lambda directory: {})
    for step in (1, 2):
        checkpoints.save(tmp_path, step, {"a": step + jnp.arange(5.0)})
    arrays = [tmp_path / f"{step:010d}" / "arrays" for step in (1, 2)]
    shutil.rmtree(arrays[1])
    shutil.copytree(*arrays)
    results = restored(tmp_path, state)
    assert results.step == 1
    assert "not those that were saved" in results.damaged[0]


def test_all_damaged_is_an_error_that_names_each(tmp_path):
    state = {"a": jnp.arange(5.0)}
    for step in (1, 2):
        checkpoints.save(tmp_path, step, state)
    for step in (1, 2):
        (tmp_path / f"{step:010d}" / "card.json").unlink()
    assert checkpoints.steps(tmp_path) == []
    with pytest.raises(checkpoints.DamagedError, match=r"0000000002 .*0000000001 "):
        checkpoints.restore(tmp_path, state)


def test_another_models_checkpoint_is_named_as_such(tmp_path):
    checkpoints.save(tmp_path, 1, make_state(0, width=6))
    expected = r"generative\['w'\] float32\[6,4\] .*generative\['w'\] float32\[7,4\]"
    with pytest.raises(checkpoints.TemplateError, match=expected):
        checkpoints.restore(tmp_path, make_state(0, width=7))


@pytest.mark.parametrize("here", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("there", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_another_prng_are_named_as_such(tmp_path, there, here):
    saved, template = (
        {"a": jnp.zeros(3), "key": jax.random.key(0, impl=impl)}
        for impl in (there, here)
    )
    checkpoints.save(tmp_path, 1, saved)
    if there == here:
        assert restored(tmp_path, template).step == 1
        return
    said = rf"of another PRNG \(set JAX_DEFAULT_PRNG_IMPL={there}, .*it holds \['key'\]"
    with pytest.raises(checkpoints.TemplateError, match=said):
        checkpoints.restore(tmp_path, template)


@pytest.mark.parametrize(("there", "here"), [(True, False), (False, True)])
def test_another_precision_is_named_as_such(tmp_path, there, here):
    with jax.enable_x64(there):
        checkpoints.save(tmp_path, 1, {"a": jnp.zeros(3), "b": jnp.arange(3)})
    with jax.enable_x64(here):
        template = {"a": jnp.zeros(3), "b": jnp.arange(3)}
        said = (
            rf"of another precision \(set JAX_ENABLE_X64={int(there)}, .*\['a'\] float"
        )
        with pytest.raises(checkpoints.TemplateError, match=said):
            checkpoints.restore(tmp_path, template)


@pytest.mark.parametrize(
    "template",
    [
        {"a": jnp.zeros(3)},
        {"a": jnp.zeros(3), "b": jnp.zeros(()), "c": jnp.zeros(())},
        {"a": jnp.zeros(3), "d": jnp.zeros(())},
        {"a": jnp.zeros(3), "b": jnp.zeros((), jnp.int32)},
        [jnp.zeros(3), jnp.zeros(())],
    ],
    ids=["fewer", "more", "another name", "another dtype", "another container"],
)
def test_a_template_of_another_structure_is_refused(tmp_path, template):
    checkpoints.save(tmp_path, 1, {"a": jnp.zeros(3), "b": jnp.zeros(())})
    with pytest.raises(checkpoints.TemplateError, match="of another model"):
        checkpoints.restore(tmp_path, template)


def test_a_write_that_fails_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    state = {"a": jnp.arange(5.0)}
    checkpoints.save(tmp_path, 1, state)

    def fail(self, directory, args):
        directory.mkdir()
        (directory / "half").write_text("a")
        raise ValueError("RESOURCE_EXHAUSTED: Error writing:\n no space left")

    monkeypatch.setattr(orbax.checkpoint.Checkpointer, "save", fail)
    with pytest.raises(
        OSError, match=r"0000000002 cannot be written .*no space"
    ) as got:
        checkpoints.save(tmp_path, 2, state)
    assert "\n" not in str(got.value)
    assert os.listdir(tmp_path) == ["0000000001"]
    assert restored(tmp_path, state).step == 1


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="step"):
        checkpoints.save(tmp_path, -1, {"a": jnp.zeros(3)})
    with pytest.raises(ValueError, match="keep"):
        checkpoints.save(tmp_path, 1, {"a": jnp.zeros(3)}, keep=0)
    with pytest.raises(ValueError, match=r"\['a'\] is not an array: 3"):
        checkpoints.save(tmp_path, 1, {"a": 3})
    assert os.listdir(tmp_path) == []


def test_saving_and_restoring_say_nothing(tmp_path, capfd):
    state = make_state(0)
    checkpoints.save(tmp_path, 1, state)
    chex.assert_trees_all_equal_shapes(restored(tmp_path, state).tree, state)
    assert capfd.readouterr() == ("", "")


SAVE_FOREVER = """
import sys
import jax.numpy as jnp
from vae_jax.training import checkpoints
step = int(sys.argv[2])
while True:
    step += 1
    tree = {f"w{i}": jnp.full((300, 100), float(step)) for i in range(10)}
    checkpoints.save(sys.argv[1], step, tree)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_save_leaves_the_last_complete_one(tmp_path):
    template = {f"w{i}": jnp.zeros((300, 100)) for i in range(10)}
    last = 0
    for delay in (0.01, 0.03, 0.06):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(tmp_path), str(last)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(checkpoints.__file__).parents[2],
        )
        assert process.stdout is not None
        process.stdout.readline()
        reported = int(process.stdout.readline())
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        for line in process.stdout:
            reported = int(line)
        process.wait()
        process.stdout.close()
        results = restored(tmp_path, template)
        assert results.step in (reported, reported + 1)
        assert results.damaged == ()
        assert all((leaf == results.step).all() for leaf in results.tree.values())
        last = results.step
    checkpoints.save(tmp_path, last + 1, template)
    assert len(os.listdir(tmp_path)) == 2
