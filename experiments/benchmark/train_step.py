r"""The AEVB training step: against its limit, by its parts, and against the peers.

    python -m experiments.benchmark.train_step --data_dir=DIR

The step of Kingma & Welling 2013 on 28x28 images (784-500 tanh-20-500-784, batch 100,
float32, Adam) as `experiments.train` runs it: one compiled scan over device-resident
bytes. In interleaved rounds beside it:

- the limit: the step's matrix products alone, each on its own shapes; and with them the
  optimizer's memory traffic (Adam's update alone),
- with `--parts` where the time goes: every part alone. What is left of the step is
  what they cost by being together; a negative rest is what fusion saves,
- PyTorch eager and compiled, NumPyro's SVI, Pythae's trainer, Flax's example with its
  step as published (not compiled) and compiled, as far as they are installed
  (`pip install -e '.[benchmark]'`): the same start, the same rows, fresh noise. A peer
  whose objective on the test rows ends more than a nat from ours is no contender,
- with `--estimators=iwae,dreg` the steps of other estimators with one sample.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from experiments.benchmark import comparison, contenders, ours, parts, rounds
from experiments.command import cli

PARTS = {  # in the order of the table
    "matrix products": parts.all_products,
    "element-wise": parts.elementwise,
    "optimizer": parts.adam,
    "batch": parts.batch,
    "random numbers": parts.random_numbers,
    "dispatch and loop": parts.loop_alone,
}
LIMIT = ("matrix products", "optimizer")
ONE = "ours, one step a dispatch"


@dataclasses.dataclass(frozen=True)
class Config(comparison.Flags):
    """One benchmark; every field is a flag."""

    estimators: str = cli.flag(
        "", "Comma-separated: their steps with one sample, against that of sgvb_b."
    )
    parts: bool = cli.flag(True, "Time every part of the step alone.")


def main(config: Config) -> int:
    """Measures, prints and writes."""
    given = contenders.problem(config)
    race = comparison.run(config, given, _extra(config, given))
    estimators = list(filter(None, config.estimators.split(",")))
    table = comparison.rows(race)
    if "ours" in race.seconds:
        table |= limits(race)
        table |= {f"{name} / sgvb_b": race.ratio(name, "ours") for name in estimators}
    said = comparison.notes(race, quantity=comparison.quantity(given))
    rounds.print_table(table, said)
    if "ours" in race.seconds:
        _print_rates(given, race)
    if config.parts and "ours" in race.seconds:
        print("\nwhere the time of our step goes: share of it")
        rounds.print_table(shares(race))
    work = sum(parts.flops(*shape) for shape in parts.products(given))
    comparison.write(config, race, {"flops": work})
    return 0


def limits(race: comparison.Race) -> dict[str, np.ndarray]:
    """The limit over our step: the products alone, and the optimizer with them."""
    alone, optimizer = (race.ratio(name, "ours") for name in LIMIT)
    return {
        "products / ours": alone,
        "(products + optimizer) / ours": alone + optimizer,
    }


def shares(race: comparison.Race) -> dict[str, np.ndarray]:
    """Each part of our step, and the rest; the last row is no part of it."""
    table = {name: race.ratio(name, "ours") for name in PARTS}
    table["rest"] = 1.0 - np.sum(list(table.values()), axis=0)
    return table | {"one step a dispatch, the excess": race.ratio(ONE, "ours") - 1.0}


def _extra(config: Config, given: contenders.Problem) -> dict[str, Callable[[], float]]:
    wanted = PARTS if config.parts else LIMIT
    extra = {name: PARTS[name](given) for name in wanted}
    if config.parts:
        extra[ONE] = parts.one_a_dispatch(given)
    for name in filter(None, config.estimators.split(",")):
        other = ours.contender("ours", given, estimator=name)
        extra[name] = other.epoch
    return extra


def _print_rates(given: contenders.Problem, race: comparison.Race) -> None:
    work = sum(parts.flops(*shape) for shape in parts.products(given))
    step = np.median(race.seconds["ours"])
    alone = np.median(race.seconds["matrix products"])
    print(
        f"{given.batch_size / step:.0f} examples/s; products alone "
        f"{work / alone / 1e9:.0f} GFLOP/s, in the step {work / step / 1e9:.0f} GFLOP/s"
    )


if __name__ == "__main__":
    cli.run(Config, main)
