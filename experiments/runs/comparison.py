"""A training run that is measured on its course, and taken up where it stopped."""

import contextlib
import dataclasses
import math
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.experimental.compilation_cache import compilation_cache

from experiments import train
from experiments.choices.config import Config
from experiments.command import cli, report
from experiments.runs import interrupts, runs
from vae_jax.training import journal

Point: TypeAlias = dict[str, float]


class Measurement(NamedTuple):
    """What is measured at every point, and where that is kept."""

    file: str  # in the run's workdir
    settings: dict[str, Any]  # what a point is a function of, next to the run's flags
    measure: Callable[[runs.Run, runs.Saved], Point]
    shown: tuple[str, ...]  # names of what is printed of each point


def epochs_measured(num_epochs: int, *, points: int) -> list[int]:
    """Epochs from 1 on, evenly spaced in the logarithm, and the last.

    A longer run has the same ones, so that what was measured stays of use.
    """
    steps = range(math.ceil(points * math.log10(num_epochs)) + 1)
    spaced = {round(10.0 ** (i / points)) for i in steps}
    return sorted({epoch for epoch in spaced if epoch < num_epochs} | {num_epochs})


def curve(config: Config, measurement: Measurement, *, points: int) -> list[Point]:
    """Trains a run from point to point; measures at each, and keeps it in the workdir.

    A point holds its `epoch`, `step`, `samples` seen and `seconds` of training beside
    what is measured. Leaves the program on a signal, once the run is saved.

    Raises:
        UsageError: as `train.claim` and `train.fit`, or if the points there were
            measured with other settings.
    """
    with _compiled_once():
        return _curve(config, measurement, points=points)


def _curve(config: Config, measurement: Measurement, *, points: int) -> list[Point]:
    started = time.monotonic()
    run = train.claim(config)
    found = _read(run.workdir / measurement.file, measurement.settings)
    measured = {point["epoch"] for point in found}
    with interrupts.deferred() as received:
        saved = train.restore(run)
        for epoch in epochs_measured(config.num_epochs, points=points):
            if epoch in measured:
                continue
            if epoch * run.steps_per_epoch < int(saved.run.step):
                print(f"{run.workdir}: epoch {epoch} is past and not measured")
                continue
            part = dataclasses.replace(run.config, num_epochs=epoch)
            saved = train.fit(
                run._replace(config=part), saved, received, started=started
            )
            if received:
                break
            found.append(_point(run, saved, epoch) | measurement.measure(run, saved))
            content = measurement.settings | {"points": found}
            report.write_json(run.workdir / measurement.file, content)
            _say(run, found[-1], measurement.shown)
    if received:
        step = int(saved.run.step)
        print(f"{received[0].name}: saved at step {step}; the same command continues")
        sys.exit(128 + received[0])
    return found


def _point(run: runs.Run, saved: runs.Saved, epoch: int) -> Point:
    step = int(saved.run.step)
    return {
        "epoch": epoch,
        "step": step,
        "samples": step * run.config.batch_size,
        "seconds": sum(row["seconds"] for row in journal.read(run.workdir)),
    }


def _read(path: pathlib.Path, settings: dict[str, Any]) -> list[Point]:
    if not path.exists():
        return []
    content = report.read_json(path)
    for name, value in settings.items():
        if content.get(name) != value:
            raise cli.UsageError(
                f"{path} was measured with --{name}={content.get(name)}, {value} now: "
                "remove it, or choose another --workdir"
            )
    return report.measured(content["points"])


def _say(run: runs.Run, point: Point, shown: tuple[str, ...]) -> None:
    values = ", ".join(f"{name.replace('_', ' ')} {point[name]:.3f}" for name in shown)
    print(
        f"{run.workdir.name}, epoch {point['epoch']}: {values} "
        f"({point['seconds']:.0f} s)",
        flush=True,
    )


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
    """Keeps compiled programs on disk meanwhile, unless they are kept already.

    Each point builds its step and its evaluators anew. The programs are the same, and
    compiling them would take longer than the first epochs do.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="vae_jax_") as folder:
        _keep_compiled(folder)
        try:
            yield
        finally:
            _keep_compiled(None)


def _keep_compiled(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # a cache once looked for is not looked for again
