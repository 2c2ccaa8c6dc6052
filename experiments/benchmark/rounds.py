"""Timings side by side: interleaved rounds, and how they are shown."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.command import cli, report

BUSY = 0.05  # share of the cores that others may use unnoticed
TOLERANCE = 1.0  # nats from our objective, beyond which a peer fits something else
COLUMNS = (
    report.field("", "name", width=39),
    report.field("median", "median", ".3f"),
    report.field("min", "min", ".3f"),
    report.field("max", "max", ".3f"),
    report.Column("", lambda row: f" {row['note']}", width=0),
)

Table = dict[str, np.ndarray]
"""Name of a row -> its number in each round."""


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


class Race(NamedTuple):
    """Seconds of each run in each round, and what the contenders have reached."""

    seconds: dict[str, list[float]]
    objectives: dict[str, float] = {}  # noqa: RUF012  # nats per test example
    peak_mib: dict[str, float] = {}  # noqa: RUF012  # of the contenders that were asked

    def ratios(self, name: str, others: Iterable[str]) -> Table:
        """Seconds of a run over those of others, round by round."""
        seconds, others = self.seconds, [other for other in others if other != name]
        if name not in seconds:
            return {}
        return {
            f"{name} / {other}": np.divide(seconds[name], seconds[other])
            for other in others
            if other in seconds
        }


def timed(work: Callable[[], Any], number: int) -> Callable[[], float]:
    """A function that does the work, and returns the seconds of one of `number`."""

    def run() -> float:
        started = time.perf_counter()
        work()
        return (time.perf_counter() - started) / number

    return run


def interleaved(
    runs: Mapping[str, Callable[[], float]], *, num_rounds: int
) -> dict[str, list[float]]:
    """What every run gives in each round; each has run once before, to be warm.

    Says so afterwards if other work used the cores meanwhile.
    """
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    started, others = time.monotonic(), _others_seconds()
    for i in range(num_rounds):
        for name, run in runs.items():
            seconds[name].append(run())
        said = ", ".join(f"{name} {times[-1]:.3g}" for name, times in seconds.items())
        print(f"round {i + 1} of {num_rounds}, s: {said}", flush=True)
    cores = (time.monotonic() - started) * (os.cpu_count() or 1)
    share = (_others_seconds() - others) / max(cores, 1e-9)
    if share > BUSY:
        print(
            f"warning: other processes used {share:.0%} of the cores meanwhile; "
            "figures are suspect"
        )
    return seconds


def show(
    race: Race, *, scale: float, unit: str, ratios: Table, quantity: str = ""
) -> dict[str, Any]:
    """Prints the times of a race in a unit, what was reached, and ratios; figures."""
    times = {f"{n}, {unit}": scale * np.array(s) for n, s in race.seconds.items()}
    notes = {f"{n}, {unit}": note(race, n, quantity) for n in race.seconds}
    print_table(times | ratios, notes)
    medians = {name: float(np.median(ratio)) for name, ratio in ratios.items()}
    return race._asdict() | {"ratios": medians}


def note(race: Race, name: str, quantity: str) -> str:
    """What a contender has reached, its memory, and whether it is one."""
    nats = race.objectives.get(name, float("nan"))
    excess = nats - race.objectives.get("ours", nats)
    parts = [f"{quantity} {nats:.2f}"] if name in race.objectives else []
    if name in race.peak_mib:
        parts.append(f"{race.peak_mib[name]:.0f} MiB")
    if abs(excess) > TOLERANCE:
        parts.append(f"no contender: {excess:+.1f} nats")
    return ", ".join(parts)


def print_table(table: Table, notes: Mapping[str, str] | None = None) -> None:
    """Median, least and greatest of each row, and what is to be said of it."""
    rows = [
        {"name": name, "note": (notes or {}).get(name, "")}
        | {"median": np.median(row), "min": np.min(row), "max": np.max(row)}
        for name, row in table.items()
    ]
    print(report.table(COLUMNS, rows))


def _others_seconds() -> float:
    """Processor time of all processes but this one and its children; 0 if unknown."""
    path = pathlib.Path("/proc/stat")
    if not path.is_file():
        return 0.0
    fields = [int(field) for field in path.read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, _ = fields
    busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])
