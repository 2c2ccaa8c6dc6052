"""A race of contenders on one problem, beside whatever else is to be timed."""

import dataclasses
from collections.abc import Callable, Mapping

from experiments.benchmark import contenders, ours, process, rounds
from experiments.command import cli


@dataclasses.dataclass(frozen=True)
class Flags(contenders.Flags, rounds.Flags):
    """The flags of a race; every field is a flag."""

    num_rounds: int = cli.flag(7, "Interleaved rounds.", least=1)
    measure_memory: bool = cli.flag(
        True, "Peak memory of each contender, one pass in a process of its own."
    )


def run(
    flags: Flags,
    problem: contenders.Problem,
    extra: Mapping[str, Callable[[], float]],
) -> rounds.Race:
    """Races the contenders that are installed; seconds are of one step."""
    names = contenders.fitting(flags.contenders, problem.flags)
    built = {name: contenders.module(name).contender(name, problem) for name in names}
    epochs = {n: rounds.timed(c.epoch, problem.num_steps) for n, c in built.items()}
    timed = epochs | dict(extra)
    seconds = rounds.interleaved(timed, num_rounds=flags.num_rounds)
    reached = {n: ours.objective(problem, c.weights()) for n, c in built.items()}
    peaks = {}
    if flags.measure_memory:
        peaks = {name: process.trained(name, flags).peak_mib for name in names}
    return rounds.Race(seconds, reached, peaks)
