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

import numpy as np

from experiments.benchmark import contenders, ours, parts, races, rounds
from experiments.command import cli

LIMIT = ("products", "optimizer")
ONE = "ours, one step a dispatch"


@dataclasses.dataclass(frozen=True)
class Config(races.Flags):
    """One benchmark; every field is a flag."""

    estimators: str = cli.flag(
        "", "Comma-separated: their steps with one sample, against that of sgvb_b."
    )
    parts: bool = cli.flag(True, "Time every part of the step alone.")


def main(config: Config) -> int:
    """Measures, prints and writes."""
    problem = contenders.problem(config)
    wanted = parts.PARTS if config.parts else LIMIT
    extra = {name: parts.PARTS[name](problem) for name in wanted}
    if config.parts:
        extra[ONE] = parts.one_a_dispatch(problem)
    estimators = [*filter(None, config.estimators.split(","))]
    for name in estimators:
        epoch = ours.contender("ours", problem, estimator=name).epoch
        extra[name] = rounds.timed(epoch, problem.num_steps)
    race = races.run(config, problem, extra)
    ratios = race.ratios("ours", contenders.CONTENDERS)
    if "ours" in race.seconds:
        ratios |= limits(race)
        for name in estimators:
            (ratios[f"{name} / sgvb_b"],) = race.ratios(name, ["ours"]).values()
    figures = rounds.show(
        race, scale=1e3, unit="ms", ratios=ratios, quantity=problem.quantity
    )
    work = parts.flops(problem)
    if "ours" in race.seconds:
        step = np.median(race.seconds["ours"])
        alone = np.median(race.seconds["products"])
        print(
            f"{config.batch_size / step:.0f} examples/s; products alone "
            f"{work / alone / 1e9:.0f} GFLOP/s, in the step "
            f"{work / step / 1e9:.0f} GFLOP/s"
        )
        if config.parts:
            print("\nwhere the time of our step goes: share of it")
            rounds.print_table(shares(race))
    config.write(figures | {"flops": work})
    return 0


def limits(race: rounds.Race) -> rounds.Table:
    """The limit over our step: the products alone, and the optimizer with them."""
    alone, optimizer = (np.divide(race.seconds[n], race.seconds["ours"]) for n in LIMIT)
    both = alone + optimizer
    return {"products / ours": alone, "(products + optimizer) / ours": both}


def shares(race: rounds.Race) -> rounds.Table:
    """Each part of our step, and the rest; the last row is no part of it."""
    step = np.array(race.seconds["ours"])
    table = {name: race.seconds[name] / step for name in parts.PARTS}
    table["rest"] = 1.0 - np.sum(list(table.values()), axis=0)
    return table | {"one step a dispatch, the excess": race.seconds[ONE] / step - 1.0}


if __name__ == "__main__":
    cli.run(Config, main)
