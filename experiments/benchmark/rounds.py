"""Timings side by side: interleaved rounds, and how they are printed."""

import os
import pathlib
import time
from collections.abc import Callable, Mapping

import numpy as np

WIDTH = 36  # of the names in a table
BUSY = 0.05  # share of the cores that others may use unnoticed


def interleaved(
    runs: Mapping[str, Callable[[], float]], *, num_rounds: int
) -> dict[str, list[float]]:
    """What every run gives in each round; each has run once before, to be warm.

    Says so afterwards if other work used the cores meanwhile.
    """
    for run in runs.values():
        run()
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    started, others = time.monotonic(), _others_seconds()
    for _ in range(num_rounds):
        for name, run in runs.items():
            rounds[name].append(run())
    cores = (time.monotonic() - started) * (os.cpu_count() or 1)
    share = (_others_seconds() - others) / max(cores, 1e-9)
    if share > BUSY:
        print(
            f"warning: other processes used {share:.0%} of the cores meanwhile; "
            "figures are suspect"
        )
    return rounds


def print_table(
    rows: Mapping[str, np.ndarray], notes: Mapping[str, str] | None = None
) -> None:
    """Median, least and greatest of each row, and what is to be said of it."""
    print(f"{'':<{WIDTH}}{'median':>10}{'min':>10}{'max':>10}")
    for name, values in rows.items():
        spread = [np.median(values), np.min(values), np.max(values)]
        numbers = "".join(f"{value:10.3f}" for value in spread)
        note = (notes or {}).get(name, "")
        print(f"{name:<{WIDTH}}{numbers}{'  ' if note else ''}{note}")


def _others_seconds() -> float:
    """Processor time of all processes but this one and its children; 0 if unknown."""
    path = pathlib.Path("/proc/stat")
    if not path.is_file():
        return 0.0
    fields = [int(field) for field in path.read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, _ = fields
    busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])
