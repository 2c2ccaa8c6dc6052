"""Disks that fill or refuse, files that change, clocks that jump: nothing is lost."""

import contextlib
import itertools
import os
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import train
from experiments.command import cli
from experiments.runs import rundir, runs
from tests.tiny import ROOT, command, metrics, saved_arrays, tiny
from vae_jax.training import checkpoints, journal

pytestmark = pytest.mark.uses_optax


@contextlib.contextmanager
def mounted(folder: pathlib.Path, options: str):
    """A small file system of its own in a folder; a skip where that is not allowed."""
    folder.mkdir(exist_ok=True)
    line = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def only_room_for(disk: pathlib.Path, kib: int):
    """Fills a disk but for so many KiB."""
    ballast, free = disk / "ballast", os.statvfs(disk)
    with ballast.open("wb") as file:
        size = free.f_bavail * free.f_frsize - (kib << 10)
        os.posix_fallocate(file.fileno(), 0, size)
    try:
        yield
    finally:
        ballast.unlink()


@pytest.mark.parametrize(
    "rooms",  # KiB, from not even room for the flags to all but the last pictures
    [
        pytest.param((4, 64, 300), marks=pytest.mark.slow),
        pytest.param((0, 4, 8, 16, 32, *range(64, 544, 32)), marks=pytest.mark.long),
    ],
    ids=["3 disks", "20 disks"],
)
def test_a_full_disk_stops_the_run_with_a_line_and_loses_nothing(
    tmp_path, capfd, rooms
):
    changes = {"num_epochs": 6, "checkpoint_seconds": 0.0}
    whole = tiny(tmp_path / "whole", **changes)
    train.main(whole)
    said, saves = [], tmp_path / "disk" / "run" / rundir.CHECKPOINTS
    with mounted(tmp_path / "disk", "size=2m") as disk:
        config, newest = tiny(disk / "run", **changes), 0
        capfd.readouterr()
        for room in rooms:
            with only_room_for(disk, room):
                try:
                    train.main(config)
                except cli.UsageError as error:
                    said.append(str(error))
            assert max(checkpoints.steps(saves), default=0) >= newest
            newest = max(checkpoints.steps(saves), default=0)
        assert capfd.readouterr().err == ""
        assert train.main(config) == 0
        for a, b in zip(saved_arrays(whole), saved_arrays(config), strict=True):
            np.testing.assert_array_equal(a, b)
        assert metrics(config.workdir) == metrics(whole.workdir)
        results = [tmp_path / "whole" / "result.json", disk / "run" / "result.json"]
        assert results[0].read_text() == results[1].read_text()
        assert not list(disk.rglob("*partial*"))
    print(f"{len(said)} of {len(rooms)} runs stopped:", *said, sep="\n  ")
    assert len(said) >= len(rooms) / 2
    assert all("[Errno 28] No space left on device" in line for line in said)
    assert not any("\n" in line for line in said)


@pytest.mark.slow
def test_the_command_line_says_one_line_of_a_full_disk(tmp_path):
    with mounted(tmp_path / "disk", "size=2m") as disk, only_room_for(disk, 300):
        config = tiny(disk / "run", num_epochs=6, checkpoint_seconds=0.0)
        done = subprocess.run(
            command(config), cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the run in ")
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
    assert "is kept up to step 10: once it can be, the same command" in done.stderr


@pytest.mark.slow
def test_a_disk_that_turns_read_only_is_refused_and_the_run_on_it_kept(tmp_path):
    with mounted(tmp_path / "disk", "size=2m") as disk:
        (disk / "run").mkdir()
        (disk / "run" / "mine").write_text("kept")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in ("run", "new"):
            with pytest.raises(cli.UsageError, match=r"no permission|Read-only") as got:
                train.main(tiny(disk / name))
            assert "\n" not in str(got.value)
        assert [path.name for path in disk.rglob("*")] == ["run", "mine"]


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_is_reported_and_the_checkpoint_before_used(
    tmp_path, capsys
):
    config = tiny(tmp_path / "run", num_epochs=2, checkpoint_seconds=0.0)
    train.main(config)
    run, chance = runs.build(config), random.Random(0)
    saves = tmp_path / "run" / rundir.CHECKPOINTS
    assert checkpoints.steps(saves) == [10, 20]
    files = sorted(path for path in (saves / "0000000020").rglob("*") if path.is_file())
    assert len(files) > 4
    for path in files:
        content = path.read_bytes()
        for _ in range(3):
            changed = bytearray(content)
            changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            capsys.readouterr()
            saved = runs.restore(run)
            said = capsys.readouterr().out
            assert saved is not None
            assert int(saved.run.step) == 10
            assert said.startswith("warning: ")
            assert f"{saves / '0000000020'} is damaged" in said
            assert said.count("\n") == 1
        path.write_bytes(content)
    saved = runs.restore(run)
    assert saved is not None
    assert int(saved.run.step) == 20
    print(f"a bit flipped 3 times in each of {len(files)} files")


FONTS = "home/.cache/matplotlib/"  # the one cache of a run without downloads
CLOCKS = {
    "back an hour at every look": lambda looks: -3600.0 * looks,
    "anywhere within a year": lambda looks: random.Random(looks).uniform(-3e7, 3e7),
    "standing still": lambda looks: 0.0,
}


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    straight = tiny(tmp_path / "straight", num_epochs=4)
    train.main(straight)
    arrays, save = saved_arrays(straight), checkpoints.save
    for number, (name, clock) in enumerate(CLOCKS.items()):
        looks, saved = itertools.count(), []

        def now(clock=clock, looks=looks) -> float:
            return 1.7e9 + clock(next(looks))

        def noted(directory, step, tree, saved=saved):
            saved.append(step)
            save(directory, step, tree)

        monkeypatch.setattr(time, "time", now)
        monkeypatch.setattr(time, "time_ns", lambda now=now: int(1e9 * now()))
        monkeypatch.setattr(checkpoints, "save", noted)
        config = tiny(tmp_path / str(number), num_epochs=4, checkpoint_seconds=3600.0)
        begun = time.monotonic()
        train.main(config)
        took = time.monotonic() - begun
        assert next(looks) > 10, name
        assert saved == [40], name  # an hour has not gone by, whatever the clock says
        rows = journal.read(config.workdir)
        elapsed = [row["elapsed"] for row in rows]
        assert sorted(elapsed) == elapsed
        assert 0.0 < elapsed[0] < elapsed[-1] < took
        assert all(0.0 < row["seconds"] < took for row in rows)
        assert metrics(config.workdir) == metrics(straight.workdir)
        for a, b in zip(arrays, saved_arrays(config), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_run_writes_into_its_workdir_and_named_caches_alone(tmp_path):
    places = {name: tmp_path / name for name in ("home", "here", "tmp", "compiled")}
    for folder in places.values():
        folder.mkdir()
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "MPL", "JAX_COMPILATION_CACHE"))
    } | {
        "HOME": str(places["home"]),
        "TMPDIR": str(places["tmp"]),
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(places["compiled"]),
    }
    config = tiny(pathlib.Path("run"), num_epochs=1)
    done = subprocess.run(
        [sys.executable, *command(config)[1:]],
        cwd=places["here"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = sorted(
        path.relative_to(tmp_path).as_posix()
        for path in tmp_path.rglob("*")
        if path.is_file() and not path.is_relative_to(places["compiled"])
    )
    assert "here/run/result.json" in written
    outside = [name for name in written if not name.startswith("here/run/")]
    assert [name for name in outside if not name.startswith(FONTS)] == []
