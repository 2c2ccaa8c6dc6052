"""Interrupts, kills, damage and bad input: one clear line, and nothing lost."""

import collections
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import train
from experiments.choices.config import Config
from experiments.command import cli
from experiments.measures import validation
from experiments.runs import fit, rundir, runs
from tests.tiny import ROOT, TINY, command, metrics, saved_arrays, tiny
from vae_jax.training import checkpoints, journal

pytestmark = pytest.mark.uses_optax

LONG = {"num_epochs": 60, "checkpoint_seconds": 0.0}


def interrupted(config, number: signal.Signals, *, after: int) -> subprocess.Popen:
    """Starts a run, sends it a signal once it has `after` more rows, and waits."""
    before = len(journal.read(config.workdir))
    # With as many devices as here: a lone one's programs round otherwise.
    process = subprocess.Popen(
        command(config),
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(jax.local_device_count())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120.0
    while len(journal.read(config.workdir)) < before + after:
        assert process.poll() is None, process.stderr.read().decode()  # pyright: ignore
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    process.wait(timeout=120.0)
    return process


@pytest.mark.slow
def test_an_interrupted_run_ends_bit_for_bit_as_an_unbroken_one(tmp_path):
    whole, broken = tiny(tmp_path / "whole", **LONG), tiny(tmp_path / "broken", **LONG)
    train.main(whole)
    for number, status in (
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGKILL, -signal.SIGKILL),
    ):
        stopped = interrupted(broken, number, after=5)
        assert stopped.returncode == status
        assert b"Traceback" not in stopped.stderr.read()  # pyright: ignore
    assert len(journal.read(broken.workdir)) < 60
    train.main(broken)
    for a, b in zip(saved_arrays(whole), saved_arrays(broken), strict=True):
        np.testing.assert_array_equal(a, b)
    assert metrics(whole.workdir) == metrics(broken.workdir)
    assert [row["step"] for row in metrics(broken.workdir)] == list(range(10, 601, 10))


def unfinished(config) -> dict[str, int]:
    """What was being written or removed among a run's checkpoints, and since when."""
    folder = pathlib.Path(config.workdir) / rundir.CHECKPOINTS
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(".partial-*")}


def where_it_fell(config, rows: int, leftovers: dict[str, int]) -> str:
    """What a run did as it was killed, told from what lies in its workdir."""
    new = [name for name, at in unfinished(config).items() if leftovers.get(name) != at]
    if not new:
        started = len(journal.read(config.workdir)) > rows
        return "between saves" if started else "before its first row"
    steps = checkpoints.steps(pathlib.Path(config.workdir) / rundir.CHECKPOINTS)
    written = [name for name in new if int(name[9:19]) > max(steps, default=0)]
    return "writing a checkpoint" if written else "removing an old one"


@pytest.mark.long
def test_fifty_kills_at_random_times_lose_nothing(tmp_path):
    many = {"num_epochs": 400, "checkpoint_seconds": 0.0}
    whole, broken = tiny(tmp_path / "whole", **many), tiny(tmp_path / "broken", **many)
    train.main(whole)
    epoch = journal.read(whole.workdir)[-1]["elapsed"] / 400  # its save included
    chance, fell, start = random.Random(0), collections.Counter(), 5.0
    for number in range(50):
        rows, leftovers = len(journal.read(broken.workdir)), unfinished(broken)
        begun = time.monotonic()
        process = subprocess.Popen(
            command(broken), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        if number % 5 == 4:  # one in five anywhere on the way to its first row
            time.sleep(chance.uniform(0.0, start))
        else:
            while len(journal.read(broken.workdir)) <= rows:
                assert process.poll() is None, process.stderr.read().decode()  # pyright: ignore
                assert time.monotonic() < begun + 120.0
                time.sleep(0.005)
            start = time.monotonic() - begun
            time.sleep(chance.uniform(0.0, 4.0 * epoch))
        process.kill()
        assert process.wait(timeout=60.0) == -signal.SIGKILL, "it was still training"
        fell[where_it_fell(broken, rows, leftovers)] += 1
    print(f"50 kills: {dict(fell)}; {len(journal.read(broken.workdir))} of 400 rows")
    assert len(journal.read(broken.workdir)) < 400
    train.main(broken)
    for a, b in zip(saved_arrays(whole), saved_arrays(broken), strict=True):
        np.testing.assert_array_equal(a, b)
    assert metrics(whole.workdir) == metrics(broken.workdir)
    assert fell["writing a checkpoint"] >= 5


@pytest.mark.slow
def test_a_second_process_is_refused_and_a_killed_one_is_not_in_the_way(tmp_path):
    config = tiny(tmp_path / "run", num_epochs=2)
    held = (
        "import pathlib, sys, time\nfrom experiments.runs import rundir\n"
        "with rundir.locked(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n    time.sleep(300)"
    )
    pathlib.Path(config.workdir).mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", held, config.workdir], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(cli.UsageError, match=rf"pid {holder.pid}\) is training in"):
        train.main(config)
    holder.kill()
    holder.wait()
    assert train.main(config) == 0
    assert [row["step"] for row in metrics(config.workdir)] == [10, 20]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(tmp_path, capsys):
    config = tiny(tmp_path / "run", num_epochs=1)
    train.main(config)
    config = tiny(tmp_path / "run", num_epochs=2)
    train.main(config)
    arrays = saved_arrays(config)
    newest = sorted((tmp_path / "run" / rundir.CHECKPOINTS).iterdir())[-1]
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    capsys.readouterr()
    train.main(config)
    said = capsys.readouterr().out
    assert "damaged" in said
    assert "continuing" in said
    assert "from step 10" in said
    for a, b in zip(arrays, saved_arrays(config), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [row["step"] for row in metrics(config.workdir)] == [10, 20]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {
            "optimizer": "sgd",
            "learning_rate": 1e30,
            "likelihood": "normal",
            "binarization": "none",
        },
        pytest.param({"learning_rate": 1e4}, marks=pytest.mark.slow),
        pytest.param(
            {"learning_rate": 1e3, "algorithm": "wake_sleep"}, marks=pytest.mark.slow
        ),
    ],
    ids=["sgd", "adam", "wake_sleep"],
)
def test_a_learning_rate_far_too_large_stops_the_run_and_names_the_step(
    tmp_path, changes
):
    config = tiny(tmp_path / "run", **changes)
    with pytest.raises(
        cli.UsageError, match=r"bound is (nan|-?inf) at step \d+; last.*learning_rate"
    ) as error:
        train.main(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (cli.UsageError("a\n b"), 1, "error: a b\n"),
        (OSError(28, "No space left", "file"), 1, "error: [Errno 28] No space left: "),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
    ids=["usage", "disk", "ctrl-c"],
)
def test_what_is_no_bug_is_said_in_one_line(monkeypatch, capsys, error, status, said):
    def fail(config):
        raise error

    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as exited:
        cli.run(Config, fail)
    assert exited.value.code == status
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(ValueError, match="broadcast"):
        cli.run(Config, lambda config: np.zeros(2) + np.zeros(3))  # pyright: ignore


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_saves_what_there_is(tmp_path, number):
    config = tiny(tmp_path / "run", num_epochs=2)
    process = subprocess.Popen(
        command(config), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120.0
    while not (tmp_path / "run" / journal.METRICS).exists():  # compilation is ahead
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(number)
    out, err = process.communicate(timeout=120.0)
    assert process.returncode == 128 + number
    assert b"Traceback" not in out + err
    assert err.count(b"\n") <= 1
    assert train.main(config) == 0
    assert [row["step"] for row in metrics(config.workdir)] == [10, 20]


@pytest.mark.slow
def test_the_command_line_says_one_line_and_exits_with_a_status(tmp_path):
    for flags, status in ((["--batch_size=0"], 2), (["--dataset=nosuch"], 1)):
        done = subprocess.run(
            [sys.executable, "-m", "experiments.train", *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(cli.UsageError, match="is a file"):
        train.main(tiny(path))
    assert path.read_text() == "mine"


def test_a_workdir_without_write_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir.os, "access", lambda path, mode: False)  # root may all
    with pytest.raises(cli.UsageError, match="no permission to write"):
        train.main(tiny(tmp_path))


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(cli.UsageError, match="--batch_size=1001 is larger"):
        train.main(tiny(tmp_path / "run", batch_size=1001))
    assert not (tmp_path / "run").exists()


def test_early_stopping_without_validation_is_refused(tmp_path):
    data = tmp_path / "a.npz"
    np.savez(data, train=np.zeros((20, 3, 3), np.uint8))
    config = tiny(
        tmp_path / "run", dataset=f"npz:{data}", early_stopping=2, batch_size=10
    )
    with pytest.raises(cli.UsageError, match="needs a validation split"):
        train.main(config)


def test_nan_in_the_data_is_refused_and_named(tmp_path):
    rows = np.zeros((20, 4), np.float32)
    rows[7, 1] = np.nan
    np.savez(tmp_path / "a.npz", train=rows)
    config = tiny(tmp_path / "run", dataset=f"npz:{tmp_path / 'a.npz'}")
    with pytest.raises(cli.UsageError, match="train row 7 holds NaN"):
        train.main(config)


@pytest.mark.slow
def test_vectors_train_without_pictures(tmp_path, capsys):
    data = tmp_path / "a.npz"
    np.savez(data, train=np.random.default_rng(0).random((30, 5), np.float32))
    config = tiny(
        tmp_path / "run",
        dataset=f"npz:{data}",
        batch_size=10,
        likelihood="normal",
        binarization="none",
    )
    assert train.main(config) == 0
    assert "no images" in capsys.readouterr().out
    assert not (tmp_path / "run" / "samples.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [1, 2])
def test_a_run_in_double_precision_is_taken_up_and_a_single_one_named(
    tmp_path, x64, num_seeds
):
    config = tiny(tmp_path / "run", num_epochs=1, num_seeds=num_seeds)
    run = fit.claim(config)
    start = runs.initial(run)
    saved = fit.fit(run, start, [], started=0.0, validate=validation.build(run))
    assert (saved.best_step > 0).all()  # a validation bound was taken
    results = runs.restore(run)
    assert results is not None
    for tree in (saved, results):
        assert jax.tree.map(lambda leaf: leaf.dtype, tree) == jax.tree.map(
            lambda leaf: leaf.dtype, start
        )
    with (
        jax.enable_x64(False),
        pytest.raises(cli.UsageError, match=r"another precision .*JAX_ENABLE_X64=1"),
    ):
        runs.restore(runs.build(config))


def test_missing_data_is_one_quick_clear_error(tmp_path):
    config = tiny(tmp_path / "run", dataset="npz:" + str(tmp_path / "none.npz"))
    started = time.monotonic()
    with pytest.raises(cli.UsageError, match=r"none\.npz"):
        train.main(config)
    assert time.monotonic() - started < 5.0
    assert TINY.workdir == ""
