"""The same run on several devices, several processes, and fed from the host."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import evaluate, train
from experiments.choices.config import Config
from experiments.command import cli
from experiments.measures import validation
from experiments.runs import fit, rundir, runs
from tests.tiny import metrics, saved_arrays, tiny
from vae_jax.training import checkpoints, journal

pytestmark = pytest.mark.uses_optax
ONE = "--xla_force_host_platform_device_count=1"


def hundred_steps(path, **flags) -> Config:
    """A hundred steps of Adam at 1e-3, on batches that eight devices can share."""
    return tiny(
        path,
        num_epochs=9,
        num_train=960,
        batch_size=80,
        learning_rate=1e-3,
        **flags,
    )


def fitted(config):
    run = fit.claim(config)
    return fit.fit(
        run, fit.restore(run), [], started=0.0, validate=validation.build(run)
    )


def assert_same_run(config, other):
    """The asked-for closeness: parameters within 1e-5, bounds within 1e-4 nats."""
    for x, y in zip(saved_arrays(config), saved_arrays(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=0.0, atol=1e-5)
    for row, expected in zip(
        journal.read(config.workdir), journal.read(other.workdir), strict=True
    ):
        for name in ("bound", "valid_bound", "kl"):
            assert abs(row[name] - expected[name]) < 1e-4


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one device."""
    config = hundred_steps(tmp_path_factory.mktemp("alone"))
    with jax.numpy_dtype_promotion("standard"):
        assert fitted(config).step >= 100
    return config


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [2, 4, 8])
@pytest.mark.parametrize("shard_data", [False, True], ids=["whole", "sharded"])
def test_several_devices_give_the_run_of_one(tmp_path, alone, num_devices, shard_data):
    config = hundred_steps(tmp_path, num_devices=num_devices, shard_data=shard_data)
    saved = fitted(config)
    weights = jax.tree.leaves(saved.run.inner.params)
    assert {len(leaf.sharding.device_set) for leaf in weights} == {num_devices}
    assert_same_run(config, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8)])
def test_a_run_saved_on_some_devices_resumes_on_others(tmp_path, alone, before, after):
    config = hundred_steps(tmp_path, num_devices=before)
    fitted(dataclasses.replace(config, num_epochs=4))
    config = dataclasses.replace(config, num_devices=after)
    fitted(config)
    assert_same_run(config, alone)


@pytest.mark.slow
def test_a_run_on_two_devices_is_measured_there_to_its_end(tmp_path):
    one = tiny(tmp_path / "one", num_epochs=1)
    two = dataclasses.replace(one, workdir=str(tmp_path / "two"), num_devices=2)
    results = []
    for config in (one, two):
        assert train.main(config) == 0
        assert (pathlib.Path(config.workdir) / "samples.png").is_file()
        result = pathlib.Path(config.workdir) / "result.json"
        results.append(json.loads(result.read_text())["elbo"])
    assert results[1] == pytest.approx(results[0], abs=1e-4)


@pytest.mark.slow
def test_runs_together_share_the_devices_too(tmp_path):
    one = tiny(tmp_path / "one", num_seeds=2, num_epochs=1)
    four = dataclasses.replace(one, workdir=str(tmp_path / "four"), num_devices=4)
    fitted(one)
    fitted(four)
    assert_same_run(four, one)


@pytest.mark.slow
def test_evaluation_on_several_devices_is_that_on_one(alone):
    config = evaluate.Config(
        workdir=alone.workdir, num_images=21, eval_samples=2, importance_samples=20
    )
    expected = evaluate.evaluate(config)
    results = evaluate.evaluate(dataclasses.replace(config, num_devices=8))
    for name in ("elbo", "log_p", "active_units", "log_p_sampling_error"):
        assert results[name] == pytest.approx(expected[name], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("binarization", ["threshold", "dynamic"])
def test_rows_from_the_host_give_the_same_run_bit_for_bit(
    tmp_path, monkeypatch, binarization
):
    # The tests' machine code rounds by the length of a scan, so that both have one.
    monkeypatch.setattr(runs, "SCAN_STEPS", 4)
    flags = {"binarization": binarization, "num_epochs": 3}
    resident = tiny(tmp_path / "resident", **flags)
    fitted(resident)
    streamed = tiny(tmp_path / "streamed", stream_steps=4, **flags)
    fitted(dataclasses.replace(streamed, num_epochs=2))
    fitted(streamed)
    for x, y in zip(saved_arrays(resident), saved_arrays(streamed), strict=True):
        np.testing.assert_array_equal(x, y)
    steps = [row["step"] for row in journal.read(streamed.workdir)]
    assert steps == [4, 8, 10, 14, 18, 20, 24, 28, 30]


@pytest.mark.slow
def test_rows_from_the_host_are_shared_by_devices_too(tmp_path, alone):
    config = hundred_steps(tmp_path, stream_steps=12, num_devices=4)
    fitted(config)
    assert_same_run(config, alone)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"num_devices": 9}, "num_devices=9, and JAX has 8 cpu devices"),
        ({"num_devices": 8}, "--batch_size=100 does not divide among the 8 devices"),
    ],
)
def test_devices_that_do_not_fit_are_a_one_line_error(tmp_path, flags, said):
    with pytest.raises(cli.UsageError, match=said):
        runs.build(tiny(tmp_path, **flags))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"algorithm": "mcem"}, "keeps a state for each row"),
        ({"num_seeds": 2}, "an order of its own"),
        ({"shard_data": True}, "choose one"),
    ],
)
def test_what_cannot_be_streamed_is_refused(tmp_path, flags, said):
    with pytest.raises(ValueError, match=said):
        tiny(tmp_path, stream_steps=4, **flags)


def started(config, process_id, port, **changes) -> subprocess.Popen:
    """One of two processes of a run."""
    flags = dataclasses.replace(
        config,
        coordinator_address=f"127.0.0.1:{port}",
        num_processes=2,
        process_id=process_id,
        **changes,
    )
    command = [sys.executable, "-m", "experiments.train"]
    command += cli.write_flagfile(flags).splitlines()
    devices = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {ONE}"}
    return subprocess.Popen(
        command,
        env=devices,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as results:
        results.bind(("127.0.0.1", 0))
        return results.getsockname()[1]


@pytest.mark.slow
def test_two_processes_give_the_run_of_one_and_survive_a_kill(tmp_path, alone):
    config = hundred_steps(tmp_path / "run", checkpoint_seconds=0.0)
    port = free_port()
    both = [started(config, i, port, num_epochs=100_000) for i in range(2)]
    try:
        wait_for_checkpoint(config, both)
        both[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        said = both[0].communicate(timeout=60)[0]
        waited = time.monotonic() - killed
    finally:
        for process in both:
            process.kill()
    assert waited < 30.0
    assert both[0].returncode == 1, said
    assert "error: another process of this run is gone" in said
    assert "Traceback" not in said

    fresh = dataclasses.replace(config, workdir=str(tmp_path / "fresh"))
    for two in (config, fresh):  # the one that was killed goes on, the other is whole
        port, last = free_port(), config.num_epochs
        if two is config:
            last = 100_000
            change = rundir.read_config(tmp_path / "run")
            assert change.coordinator_address == ""
        both = [started(two, i, port, num_epochs=last) for i in range(2)]
        try:
            if two is config:
                wait_for_checkpoint(two, both, more=True)
                both[1].send_signal(signal.SIGTERM)  # all save, and stop together
            outputs = [process.communicate(timeout=120)[0] for process in both]
        finally:
            for process in both:
                process.kill()
        expected = 143 if two is config else 0
        assert [process.returncode for process in both] == [expected] * 2, outputs
        assert outputs[1].count("nats") == 0  # one of them talks
    assert "continuing" in journal_of(config)
    assert_same_run(fresh, alone)


@pytest.mark.slow
def test_two_processes_start_from_a_trained_run_as_one_does(tmp_path, alone):
    one = hundred_steps(tmp_path / "one", start_from=alone.workdir)
    one = dataclasses.replace(one, num_epochs=2)
    fitted(one)
    two, port = dataclasses.replace(one, workdir=str(tmp_path / "two")), free_port()
    both = [started(two, i, port) for i in range(2)]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], outputs
    assert [output.count("starting from") for output in outputs] == [1, 0]
    assert_same_run(two, one)


def journal_of(config):
    """Every step once, as one process after the other wrote them."""
    steps = [row["step"] for row in metrics(config.workdir)]
    assert steps == sorted(set(steps))
    return "continuing"


def wait_for_checkpoint(config, processes, *, more=False):
    """Until there is a (or one more) checkpoint; fails if a process ends before."""
    folder = rundir.CHECKPOINTS
    path = os.path.join(config.workdir, folder)
    first = checkpoints.steps(path) if more else []
    deadline = time.monotonic() + 120
    while checkpoints.steps(path) == first or not checkpoints.steps(path):
        assert time.monotonic() < deadline
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
