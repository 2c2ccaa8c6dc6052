"""A race of contenders on one problem: interleaved rounds, what each has reached."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.benchmark import contenders, ours, process, rounds
from experiments.command import cli, report


@dataclasses.dataclass(frozen=True)
class Flags(contenders.Flags):
    """The flags of a race; every field is a flag."""

    num_rounds: int = cli.flag(7, "Interleaved rounds.")
    measure_memory: bool = cli.flag(
        True, "Peak memory of each contender, one pass in a process of its own."
    )
    output: str = cli.flag("", "JSON file to write; none if empty.")

    def __post_init__(self) -> None:
        """Refuses what makes no race.

        Raises:
            ValueError: naming the flag and its value.
        """
        super().__post_init__()
        if self.num_rounds < 1:
            raise ValueError(f"--num_rounds must be positive, got {self.num_rounds}")


@dataclasses.dataclass(frozen=True)
class Race:
    """Seconds of one step in each round, and what the steps have led to."""

    seconds: dict[str, list[float]]
    objectives: dict[str, float]  # nats per test example
    peaks: dict[str, float]  # MiB; of the contenders that were asked

    def ratio(self, name: str, to: str) -> np.ndarray:
        """Seconds over seconds, round by round."""
        return np.divide(self.seconds[name], self.seconds[to])

    @property
    def peers(self) -> list[str]:
        """The contenders but ours."""
        return [name for name in self.objectives if name != "ours"]


def run(
    flags: Flags,
    given: contenders.Problem,
    extra: Mapping[str, Callable[[], float]] | None = None,
) -> Race:
    """Races the contenders that are installed, and whatever else is to be timed."""
    names = contenders.fitting(flags.contenders.split(","), given)
    built = {name: contenders.module(name).contender(name, given) for name in names}
    epochs = {name: contender.epoch for name, contender in built.items()}
    seconds = rounds.interleaved(
        epochs | dict(extra or {}), num_rounds=flags.num_rounds
    )
    objectives = {
        name: ours.objective(given, contender.weights())
        for name, contender in built.items()
    }
    peaks = {}
    if flags.measure_memory:
        peaks = {name: _peak(flags, name) for name in built}
    return Race(seconds, objectives, peaks)


def rows(race: Race) -> dict[str, np.ndarray]:
    """The table of a race: milliseconds of everything, and ours against the peers."""
    table = {f"{n}, ms": 1e3 * np.array(s) for n, s in race.seconds.items()}
    if "ours" in race.seconds:
        table |= {f"ours / {peer}": race.ratio("ours", peer) for peer in race.peers}
    return table


def notes(race: Race, *, quantity: str, unit: str = "ms") -> dict[str, str]:
    """What each contender has reached, its memory, and whether it is one."""
    said = {}
    for name, nats in race.objectives.items():
        parts = [f"{quantity} {nats:.2f}"]
        if name in race.peaks:
            parts.append(f"{race.peaks[name]:.0f} MiB")
        parts.append(contenders.verdict(race.objectives.get("ours", nats), nats))
        said[f"{name}, {unit}"] = ", ".join(filter(None, parts))
    return said


def quantity(given: contenders.Problem) -> str:
    """What the objective of the test rows is: a real-valued pixel has no likelihood."""
    return "bound" if given.dynamic else "minus cross-entropy and KL"


def write(flags: Any, race: Race, more: Mapping[str, Any] | None = None) -> None:
    """Writes flags and figures as JSON, if a file was asked for."""
    if not flags.output:
        return
    ratios = {}
    if "ours" in race.seconds:
        ratios = {n: float(np.median(race.ratio("ours", n))) for n in race.peers}
    content = dataclasses.asdict(flags) | {
        "seconds": race.seconds,
        "objectives": race.objectives,
        "peak_mib": race.peaks,
        "ratios": ratios,
    }
    report.write_json(pathlib.Path(flags.output), content | dict(more or {}))


def of_process(flags: contenders.Flags, **changes: Any) -> process.Config:
    """The flags of a child that solves the same problem."""
    shared = {
        f.name: getattr(flags, f.name) for f in dataclasses.fields(contenders.Flags)
    }
    return process.Config(**shared | changes)


def _peak(flags: Flags, name: str) -> float:
    return process.finished(of_process(flags, contenders=name), {}).peak_mib
