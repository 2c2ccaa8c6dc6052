r"""Time of an example against batch size, latents, hidden units and samples K.

    python -m experiments.benchmark.scaling --data_dir=DIR

One number of the AEVB step (784-500-20, batch 100) moves at a time; K is that of
IWAE's bound. For each, microseconds an example in interleaved rounds, what the step's
matrix products alone are of it, and ours over each peer that is installed. Passes hold
about the same number of decoded rows whatever K is. What the peers have reached is
checked as in `train_step`.
"""

import dataclasses

import numpy as np

from experiments.benchmark import contenders, parts, rounds
from experiments.command import cli


@dataclasses.dataclass(frozen=True)
class Config(rounds.RaceFlags):
    """One benchmark; every field is a flag."""

    batch_sizes: tuple[int, ...] = cli.flag((20, 50, 100, 200, 500, 1000), "Batches.")
    latents: tuple[int, ...] = cli.flag((2, 5, 10, 20, 50, 100, 200), "Latents.")
    units: tuple[int, ...] = cli.flag((100, 200, 500, 1000, 2000), "Hidden units.")
    samples: tuple[int, ...] = cli.flag((1, 5, 10, 50), "Importance samples, K.")
    num_rows: int = cli.flag(20_000, "Rows of a pass, over K.", least=1)
    num_rounds: int = cli.flag(5, "Interleaved rounds.", least=1)
    measure_memory: bool = cli.flag(False, "Peak memory of each.")
    contenders: tuple[str, ...] = contenders.flag("ours", "torch")


def main(config: Config) -> int:
    """Measures, prints and writes."""
    figures, summary = [], []
    for axis, value, flags in points(config):
        print(f"\n{axis} {value}")
        problem, scale = contenders.problem(flags), 1e6 / flags.batch_size
        race = rounds.race(flags, problem, {"products": parts.all_products(problem)})
        ratios = race.ratios("products", ["ours"])
        ratios |= race.ratios("ours", config.contenders)
        shown = race.show(ratios, scale=scale, unit="us an example")
        figures.append({"axis": axis, "value": value} | shown)
        if "ours" in race.seconds:
            step = scale * np.median(race.seconds["ours"])
            summary.append(f"{axis:<14}{value:>6}{step:10.1f}")
    print("\nmicroseconds an example of ours, median", *summary, sep="\n")
    config.write({"points": figures})
    return 0


def points(config: Config) -> list[tuple[str, int, Config]]:
    """Every axis, value, and the flags there."""
    changes = [("batch_size", n, {"batch_size": n}) for n in config.batch_sizes]
    changes += [("num_latents", n, {"num_latents": n}) for n in config.latents]
    changes += [("hidden", n, {"hidden": (n,)}) for n in config.units]
    for k in config.samples:
        changes.append(("num_samples", k, {"num_samples": k, "estimator": "iwae"}))
    listed = []
    for axis, value, change in changes:
        flags = dataclasses.replace(config, **change)
        num_steps = config.num_rows // flags.num_samples // flags.batch_size
        flags = dataclasses.replace(flags, num_steps=max(1, num_steps))
        listed.append((axis, value, flags))
    return listed


if __name__ == "__main__":
    cli.run(Config, main)
