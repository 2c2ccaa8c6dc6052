"""Races: interleaved rounds of what is timed side by side, and how they are shown."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from experiments.benchmark import contenders, ours, process
from experiments.command import cli, report

BUSY = 0.05  # share of the cores that others may use unnoticed
TOLERANCE = 1.0  # nats from our objective, beyond which a peer fits something else
COLUMNS = (  # of a name, its number in each round, and what is to be said of it
    report.Column("", lambda row: row[0], width=39),
    report.Column("median", lambda row: np.median(row[1]), ".3f"),
    report.Column("min", lambda row: np.min(row[1]), ".3f"),
    report.Column("max", lambda row: np.max(row[1]), ".3f"),
    report.Column("", lambda row: f" {row[2]}", width=0),
)

Table: TypeAlias = dict[str, np.ndarray]
"""Name of a row -> its number in each round."""

Timed: TypeAlias = Callable[[], float]
"""Works, and returns the seconds of one of what it has done."""


@dataclasses.dataclass(frozen=True)
class Flags(cli.Flags):
    """The flags of every benchmark; every field is a flag."""

    num_rounds: int = cli.flag(5, "Interleaved rounds.", least=1)
    output: str = cli.flag("", "JSON file to write; none if empty.")

    def write(self, figures: Mapping[str, Any]) -> None:
        """Writes flags and figures as JSON, if a file was asked for."""
        if self.output:
            content = dataclasses.asdict(self) | dict(figures)
            report.write_json(pathlib.Path(self.output), content)


@dataclasses.dataclass(frozen=True)
class RaceFlags(contenders.Flags, Flags):
    """The flags of a race of contenders in one process; every field is a flag."""

    num_rounds: int = cli.flag(7, "Interleaved rounds.", least=1)
    measure_memory: bool = cli.flag(
        True, "Peak memory of each contender, one pass in a process of its own."
    )


class Race(NamedTuple):
    """Seconds of each run in each round, and what the contenders have reached.

    Attributes:
        seconds: name of a run -> its seconds in each round.
        quantity: what the objectives are.
        objectives: name of a contender -> nats of a test example.
        peak_mib: name of a run -> its peak memory, where it was measured.
    """

    seconds: dict[str, list[float]]
    quantity: str = ""
    objectives: Mapping[str, float] = {}
    peak_mib: Mapping[str, float] = {}

    def ratios(self, name: str, others: Iterable[str]) -> Table:
        """Seconds of a run over those of others, round by round."""
        return {
            f"{name} / {other}": np.divide(self.seconds[name], self.seconds[other])
            for other in others
            if other != name and {name, other} <= set(self.seconds)
        }

    def note(self, name: str) -> str:
        """What a contender has reached, its memory, and whether it is one."""
        nats = self.objectives.get(name, float("nan"))
        excess = nats - self.objectives.get("ours", nats)
        parts = [f"{self.quantity} {nats:.2f}"] if name in self.objectives else []
        if name in self.peak_mib:
            parts.append(f"{self.peak_mib[name]:.0f} MiB")
        if abs(excess) > TOLERANCE:
            parts.append(f"no contender: {excess:+.1f} nats")
        return ", ".join(parts)

    def show(self, ratios: Table, *, scale: float, unit: str) -> dict[str, Any]:
        """Prints times in a unit, what was reached, and ratios; returns all figures."""
        rows = [
            (f"{name}, {unit}", scale * np.array(seconds), self.note(name))
            for name, seconds in self.seconds.items()
        ]
        print(report.table(COLUMNS, [*rows, *((n, r, "") for n, r in ratios.items())]))
        medians = {name: float(np.median(ratio)) for name, ratio in ratios.items()}
        return self._asdict() | {"ratios": medians}


def race(
    flags: RaceFlags, problem: contenders.Problem, extra: Mapping[str, Timed]
) -> Race:
    """Times the contenders that are installed, and more; seconds are of one step.

    Prints what each contender has reached as soon as that is known.
    """
    names = contenders.fitting(flags.contenders, flags)
    built = {name: contenders.module(name).contender(name, problem) for name in names}
    epochs = {n: timed(c.epoch, problem.num_steps) for n, c in built.items()}
    seconds = interleaved(epochs | dict(extra), num_rounds=flags.num_rounds)
    reached, peaks = {}, {}
    result = Race(seconds, problem.quantity, reached, peaks)
    for name, contender in built.items():
        reached[name] = ours.objective(problem, contender.weights())
        if flags.measure_memory:
            peaks[name] = process.trained(name, flags).peak_mib
        print(f"{name}: {result.note(name)}", flush=True)
    return result


def timed(work: Callable[[], Any], number: int) -> Timed:
    """A function that does the work, and returns the seconds of one of `number`."""

    def run() -> float:
        started = time.perf_counter()
        work()
        return (time.perf_counter() - started) / number

    return run


def interleaved(
    runs: Mapping[str, Timed], *, num_rounds: int
) -> dict[str, list[float]]:
    """What every run gives in each round; each has run once before, to be warm.

    Prints each number as soon as it is known, and says so afterwards if other work used
    the cores meanwhile.
    """

    def one(title: str) -> dict[str, float]:
        print(f"{title}, s:", end="", flush=True)
        seconds = {}
        for name, run in runs.items():
            seconds[name] = run()
            print(f" {name} {seconds[name]:.3g};", end="", flush=True)
        print()
        return seconds

    one("to be warm")
    started, others = time.monotonic(), _others_seconds()
    seconds = [one(f"round {i + 1} of {num_rounds}") for i in range(num_rounds)]
    cores = (time.monotonic() - started) * (os.cpu_count() or 1)
    share = (_others_seconds() - others) / max(cores, 1e-9)
    if share > BUSY:
        print(
            f"warning: other processes used {share:.0%} of the cores meanwhile; "
            "figures are suspect"
        )
    return {name: [of_round[name] for of_round in seconds] for name in runs}


def _others_seconds() -> float:
    """Processor time of all processes but this one and its children; 0 if unknown."""
    path = pathlib.Path("/proc/stat")
    if not path.is_file():
        return 0.0
    fields = [int(field) for field in path.read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, _ = fields
    busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])
