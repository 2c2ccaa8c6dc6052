r"""Time of an example against batch size, latents, hidden units and samples K.

    python -m experiments.benchmark.scaling --data_dir=DIR

One number of the AEVB step (784-500-20, batch 100) moves at a time; K is that of
IWAE's bound. For each, microseconds an example in interleaved rounds, what the step's
matrix products alone are of it, and ours over each peer that is installed. Passes hold
about the same number of decoded rows whatever K is. What the peers have reached is
checked as in `train_step`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.benchmark import contenders, parts, races, rounds
from experiments.command import cli


@dataclasses.dataclass(frozen=True)
class Config(races.Flags):
    """One benchmark; every field is a flag."""

    batch_sizes: tuple[int, ...] = cli.flag((20, 50, 100, 200, 500, 1000), "Batches.")
    latents: tuple[int, ...] = cli.flag((2, 5, 10, 20, 50, 100, 200), "Latents.")
    units: tuple[int, ...] = cli.flag((100, 200, 500, 1000, 2000), "Hidden units.")
    samples: tuple[int, ...] = cli.flag((1, 5, 10, 50), "Importance samples, K.")
    num_rows: int = cli.flag(20_000, "Rows of a pass, over K.", least=1)
    num_rounds: int = cli.flag(5, "Interleaved rounds.", least=1)
    measure_memory: bool = cli.flag(False, "Peak memory of each.")
    contenders: str = cli.flag("ours,torch", "Comma-separated.")


def main(config: Config) -> int:
    """Measures, prints and writes."""
    points, summary = [], []
    for axis, value, flags in _points(config):
        problem = contenders.problem(flags)
        race = races.run(flags, problem, {"products": parts.all_products(problem)})
        print(f"\n{axis} {value}")
        ratios = race.ratios("ours", contenders.CONTENDERS)
        scale, unit = 1e6 / flags.batch_size, "us an example"
        figures = rounds.show(
            race,
            scale=scale,
            unit=unit,
            ratios=race.ratios("products", ["ours"]) | ratios,
            quantity=problem.quantity,
        )
        points.append({"axis": axis, "value": value} | figures)
        if "ours" in race.seconds:
            step = scale * np.median(race.seconds["ours"])
            summary.append(f"{axis:<14}{value:>6}{step:10.1f}")
    print("\nmicroseconds an example of ours, median")
    print("\n".join(summary))
    config.write({"points": points})
    return 0


def _points(config: Config) -> Iterator[tuple[str, int, Config]]:
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


if __name__ == "__main__":
    cli.run(Config, main)
