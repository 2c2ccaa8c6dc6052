"""Timings side by side: interleaved rounds, and how they are printed."""

import os
from collections.abc import Callable, Mapping

import numpy as np

WIDTH = 32  # of the names in a table


def interleaved(
    runs: Mapping[str, Callable[[], float]], *, num_rounds: int
) -> dict[str, list[float]]:
    """What every run gives in each round; each has run once before, to be warm.

    Says so first if other work is using the cores.
    """
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"warning: load average {busy:.1f} before the start; figures are suspect")
    for run in runs.values():
        run()
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(num_rounds):
        for name, run in runs.items():
            rounds[name].append(run())
    return rounds


def print_table(rows: Mapping[str, np.ndarray]) -> None:
    """Median, least and greatest of each row."""
    print(f"{'':<{WIDTH}}{'median':>10}{'min':>10}{'max':>10}")
    for name, values in rows.items():
        spread = [np.median(values), np.min(values), np.max(values)]
        print(f"{name:<{WIDTH}}" + "".join(f"{value:10.3f}" for value in spread))
