"""A workdir: what a run writes, under which names, and who may continue it."""

import dataclasses
import fcntl
import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from experiments.choices.config import Config
from experiments.command import cli, report
from vae_jax.training import checkpoints, parallel

FLAGS = "flags.txt"
RUN = "run.json"
CHECKPOINTS = "checkpoints"
LOCK = "lock"
ONE_PROCESS = {"coordinator_address": "", "num_processes": 1, "process_id": 0}


def claim(config: Config) -> pathlib.Path:
    """Creates the workdir, or takes up the run in it if the flags are the same.

    A larger --num_epochs under a constant rate, and display flags, extend or repaint a
    run; any other difference would make it a mixture of two.

    Raises:
        UsageError: for other flags, a path that is a file or cannot be written, a
            run found under --noresume.
    """
    workdir = report.claim(config.directory())
    with cli.user_errors():
        if (workdir / FLAGS).exists():
            _check_same_run(workdir, config)
        if parallel.is_writer():
            of_all = dataclasses.replace(config, **ONE_PROCESS)
            report.write_text(workdir / FLAGS, cli.write_flagfile(of_all))
    return workdir


def check_data(workdir: pathlib.Path, stamp: dict[str, Any]) -> None:
    """Refuses other data than those that the run in a workdir was made with.

    Says so where the run was written before data were recorded by a digest; nothing
    where there is no run yet.

    Args:
        workdir: the folder of a training run.
        stamp: the protocol of the data that are there now.

    Raises:
        UsageError: naming the data and both digests, or a damaged run.json.
    """
    path = workdir / RUN
    if not path.is_file() and not checkpoints.steps(workdir / CHECKPOINTS):
        return
    before = report.read_json(path).get("protocol", {}) if path.is_file() else {}
    known = "sha256" if "sha256" in before else "origin"
    there, now = (about.get(known, "") for about in (before, stamp))
    if there and there != now:
        if known == "sha256":
            there, now = f"sha256 {there[:12]}", f"{now[:12]}"
        raise cli.UsageError(
            f"{stamp['dataset']} does not hold the data that the run in {workdir} was "
            f"made with ({there} there, {now} now): restore them, or choose another "
            "--workdir"
        )
    if known != "sha256" and parallel.is_writer():
        print(
            f"note: {path} has no digest of the data: that {stamp['dataset']} still "
            "holds what the run was made with is taken on trust",
            flush=True,
        )


@contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in a workdir while this one does.

    The operating system lets go of the lock when the process ends, however it ends: a
    killed run is never in the way of the one that resumes it.

    Raises:
        UsageError: if another process trains there, naming it.
    """
    with (workdir / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise cli.UsageError(
                f"another process ({file.read().strip() or 'starting'}) is training in "
                f"{workdir}: wait for it, or choose another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"pid {os.getpid()}")
        file.flush()
        yield


@contextmanager
def storage_errors(workdir: pathlib.Path) -> Iterator[None]:
    """Turns a write that fails, as on a full disk, into a line that says what is kept.

    Raises:
        UsageError: for any OSError.
    """
    try:
        yield
    except BrokenPipeError:  # of what is printed, not of a file
        raise
    except OSError as error:
        steps = checkpoints.steps(workdir / CHECKPOINTS)
        saved = f"it is kept up to step {steps[-1]}" if steps else "no step was saved"
        raise cli.UsageError(
            f"the run in {workdir} stopped, as a file could not be written ({error}); "
            f"{saved}: once it can be, the same command continues"
        ) from error


def read_config(workdir: pathlib.Path) -> Config:
    """The flags of the run in a workdir.

    Raises:
        UsageError: if there is no run, or its flag file does not parse.
    """
    path = workdir / FLAGS
    if workdir.is_file():
        raise cli.UsageError(f"--workdir={workdir} is a file: name the folder of a run")
    if not path.is_file():
        raise cli.UsageError(
            f"{workdir} holds no run ({FLAGS} is missing): name the folder of one, or "
            f"give python -m experiments.train --workdir={workdir} and the data set "
            "to train on (--dataset, or a --flagfile)"
        )
    try:
        return cli.parse(Config, ["train", f"--flagfile={path}"])
    except cli.UsageError as error:
        said = str(error).removeprefix(f"{path}: ")
        raise cli.UsageError(f"{path}: {said}") from error


def _check_same_run(workdir: pathlib.Path, config: Config) -> None:
    if not config.resume:
        raise ValueError(
            f"--noresume, but {workdir} holds a run: choose another --workdir, or "
            "remove it"
        )
    before = read_config(workdir)
    ignored = cli.display_flags(Config) | {"workdir", "data_dir"}
    if before.schedule == config.schedule == "constant" and (
        config.num_epochs >= before.num_epochs
    ):
        ignored = ignored | {"num_epochs"}
    differing = [
        f"--{name}={there} there, {now} now"
        for name, (there, now) in cli.differing(before, config, ignored=ignored).items()
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run made with other flags ({'; '.join(differing)}): "
            "choose another --workdir, or give the flags in its flags.txt"
        )
