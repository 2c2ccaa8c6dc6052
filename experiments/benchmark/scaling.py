r"""Time of an example against batch size, latents, hidden units and samples K.

    python -m experiments.benchmark.scaling --data_dir=DIR

One number of the AEVB step (784-500-20, batch 100) moves at a time; K is that of
IWAE's bound. For each, microseconds an example in interleaved rounds, what the step's
matrix products alone are of it, and ours over each peer that is installed. Passes hold
about the same number of decoded rows whatever K is. What the peers have reached is
checked as in `train_step`.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.benchmark import comparison, contenders, parts, rounds
from experiments.command import cli, report


@dataclasses.dataclass(frozen=True)
class Config(comparison.Flags):
    """One benchmark; every field is a flag."""

    batch_sizes: tuple[int, ...] = cli.flag((20, 50, 100, 200, 500, 1000), "Batches.")
    latents: tuple[int, ...] = cli.flag((2, 5, 10, 20, 50, 100, 200), "Latents.")
    units: tuple[int, ...] = cli.flag((100, 200, 500, 1000, 2000), "Hidden units.")
    samples: tuple[int, ...] = cli.flag((1, 5, 10, 50), "Importance samples, K.")
    num_rows: int = cli.flag(20_000, "Rows of a pass, over K.")
    num_rounds: int = cli.flag(5, "Interleaved rounds.")
    measure_memory: bool = cli.flag(False, "Peak memory of each.")
    contenders: str = cli.flag("ours,torch", "Comma-separated.")


def main(config: Config) -> int:
    """Measures, prints and writes."""
    found = []
    for axis, value, flags in _points(config):
        given = contenders.problem(flags)
        extra = {"products": parts.all_products(given)}
        race = comparison.run(flags, given, extra)
        print(f"\n{axis} {value}")
        rounds.print_table(_rows(given, race), _notes(given, race))
        found.append(
            {"axis": axis, "value": value, "seconds": race.seconds}
            | {"objectives": race.objectives, "peak_mib": race.peaks}
        )
    print("\nmicroseconds an example of ours, median")
    for point in found:
        if "ours" in point["seconds"]:
            step = np.median(point["seconds"]["ours"])
            print(f"{point['axis']:<14}{point['value']:>6}{_each(config, point, step)}")
    if config.output:
        content = dataclasses.asdict(config) | {"points": found}
        report.write_json(pathlib.Path(config.output), content)
    return 0


def _points(config: Config) -> Iterator[tuple[str, int, comparison.Flags]]:
    """Every axis, value, and the flags there."""
    axes: dict[str, tuple[tuple[int, ...], Any]] = {
        "batch_size": (config.batch_sizes, lambda v: {"batch_size": v}),
        "num_latents": (config.latents, lambda v: {"num_latents": v}),
        "hidden": (config.units, lambda v: {"hidden": (v,)}),
        "num_samples": (
            config.samples,
            lambda v: {"num_samples": v, "estimator": "iwae"},
        ),
    }
    for axis, (values, change) in axes.items():
        for value in values:
            changed = dataclasses.replace(config, **change(value))
            rows = config.num_rows // changed.num_samples
            steps = max(1, rows // changed.batch_size)
            yield axis, value, dataclasses.replace(changed, num_steps=steps)


def _rows(given: contenders.Problem, race: comparison.Race) -> dict[str, np.ndarray]:
    table = {
        f"{name}, us an example": 1e6 * np.array(seconds) / given.batch_size
        for name, seconds in race.seconds.items()
    }
    if "ours" in race.seconds:
        table["products / ours"] = race.ratio("products", "ours")
        table |= {f"ours / {peer}": race.ratio("ours", peer) for peer in race.peers}
    return table


def _notes(given: contenders.Problem, race: comparison.Race) -> dict[str, str]:
    quantity = comparison.quantity(given)
    return comparison.notes(race, quantity=quantity, unit="us an example")


def _each(config: Config, point: dict[str, Any], step: float) -> str:
    """Microseconds of an example, for the summary."""
    on_batches = point["axis"] == "batch_size"
    size = point["value"] if on_batches else config.batch_size
    return f"{1e6 * step / size:10.1f}"


if __name__ == "__main__":
    cli.run(Config, main)
