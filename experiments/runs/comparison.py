"""Runs that are compared: equal in all flags but some, and measured as they train."""

import dataclasses
import math
import pathlib
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from experiments.choices.config import Config
from experiments.command import cli, report
from experiments.runs import fit, programs
from experiments.runs.runs import Run, Saved
from vae_jax.training import interrupts, journal

Point: TypeAlias = dict[str, float]
TAKEN = ("workdir", "data_dir", "num_latents", "algorithm", "num_epochs")


@dataclasses.dataclass(frozen=True)
class ComparisonFlags(cli.Flags):
    """Where the runs of a comparison are, and what they have in common."""

    workdir: str = cli.flag("", "Where the runs are written.")
    run_flagfile: str = cli.flag("", "Flag file of experiments.train for every run.")
    run_flags: str = cli.flag(
        "", "More flags of experiments.train for every run, separated by spaces."
    )
    data_dir: str = cli.flag("", "Folder that holds the original data files.")

    def base(self, more: str = "", *, taken: Sequence[str] = TAKEN) -> Config:
        """What all runs share: a flag file of train, --run_flags, and more flags.

        Args:
            more: flags of `experiments.train`, separated by spaces.
            taken: names of the flags that the comparison sets itself.

        Raises:
            UsageError: for what `experiments.train` would refuse, for a flag that is
                taken, for runs that are several, of a --model or of x given a context.
        """
        text = f"{self.run_flags} {more}".strip()
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise cli.UsageError(f"--run_flags={text}: {error}") from error
        named = {word.lstrip("-").partition("=")[0] for word in words}
        if refused := [name for name in taken if name in named]:
            raise cli.UsageError(
                f"--run_flags={text}: --{refused[0]} is set by the comparison's own "
                "flags"
            )
        files = [f"--flagfile={self.run_flagfile}"] if self.run_flagfile else []
        config = cli.parse(Config, ["train", *files, *words])
        if config.model:
            raise cli.UsageError(
                "the runs of a comparison differ in flags that the function of "
                f"--model={config.model} need not read: train each with "
                "experiments.train"
            )
        if config.condition:
            raise cli.UsageError(
                f"the runs of a comparison are of x alone, not of --condition="
                f"{config.condition}: train them with experiments.train"
            )
        if config.trains_many:
            raise cli.UsageError(
                "the runs of a comparison train one by one: --num_seeds and --sweep "
                "are for experiments.train"
            )
        return config


def runs(
    shared: Config,
    *,
    workdir: str,
    data_dir: str,
    algorithms: Sequence[str],
    latents: Sequence[int],
    num_epochs: int,
) -> list[Config]:
    """Every algorithm for every number of latents, in workdir/ALGORITHM_NUM_LATENTS.

    The same run of two scripts has the same folder and flags, so that the second takes
    up what the first has trained. num_epochs 0 keeps the shared number.

    Raises:
        ValueError: for an algorithm or a number that no run can have, or none at all.
    """
    if not latents:
        raise ValueError("--latents must hold at least one size")
    folder = pathlib.Path(workdir)
    return [
        dataclasses.replace(
            shared,
            workdir=str(folder / f"{algorithm}_{num_latents}"),
            data_dir=data_dir,
            algorithm=algorithm,
            num_latents=num_latents,
            num_epochs=num_epochs or shared.num_epochs,
            progress=False,
        )
        for num_latents in latents
        for algorithm in algorithms
    ]


class Measurement(NamedTuple):
    """What is measured at every point, and where that is kept."""

    file: str  # in the run's workdir
    settings: dict[str, Any]  # what a point is a function of, next to the run's flags
    measure: Callable[[Run, Saved], Point]
    shown: tuple[str, ...]  # names of what is printed of each point


def epochs_measured(num_epochs: int, *, points: int) -> list[int]:
    """Epochs from 1 on, evenly spaced in the logarithm, and the last.

    A longer run has the same ones, so that what was measured stays of use.
    """
    steps = range(math.ceil(points * math.log10(num_epochs)) + 1)
    spaced = {round(10.0 ** (i / points)) for i in steps}
    return sorted({epoch for epoch in spaced if epoch < num_epochs} | {num_epochs})


@programs.compiled_once()
def curve(
    config: Config,
    measurement: Measurement,
    *,
    points: int,
    validation: Callable[[Run], fit.Validate | None],
) -> list[Point]:
    """Trains a run from point to point; measures at each, and keeps it in the workdir.

    A point holds its `epoch`, `step`, `samples` seen and `seconds` of training beside
    what is measured. Leaves the program on a signal, once the run is saved.

    Args:
        config: the run.
        measurement: what is measured, and where it is kept.
        points: of each tenfold of the epochs, and the last epoch.
        validation: makes what measures the validation split, as in `fit.to_end`.

    Raises:
        UsageError: as `fit.claim` and `fit.fit`, or if the points there were measured
            with other settings.
    """
    started = time.monotonic()
    run = fit.claim(config)
    curve = _read(run.workdir / measurement.file, measurement.settings)
    measured = {point["epoch"] for point in curve}
    with interrupts.deferred() as received:
        saved = fit.restore(run)
        for epoch in epochs_measured(config.num_epochs, points=points):
            if epoch in measured:
                continue
            if epoch * run.steps_per_epoch < saved.step:
                print(f"{run.workdir}: epoch {epoch} is past and not measured")
                continue
            part = run._replace(
                config=dataclasses.replace(run.config, num_epochs=epoch)
            )
            saved = fit.fit(
                part, saved, received, started=started, validate=validation(part)
            )
            if received:
                break
            curve.append(_point(run, saved, epoch) | measurement.measure(run, saved))
            content = measurement.settings | {"points": curve}
            report.write_json(run.workdir / measurement.file, content)
            _say(run, curve[-1], measurement.shown)
    fit.leave_if(received, saved)
    return curve


def _point(run: Run, saved: Saved, epoch: int) -> Point:
    return {
        "epoch": epoch,
        "step": saved.step,
        "samples": saved.step * run.config.batch_size,
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


def _say(run: Run, point: Point, shown: tuple[str, ...]) -> None:
    values = ", ".join(f"{name.replace('_', ' ')} {point[name]:.3f}" for name in shown)
    print(
        f"{run.workdir.name}, epoch {point['epoch']}: {values} "
        f"({point['seconds']:.0f} s)",
        flush=True,
    )
