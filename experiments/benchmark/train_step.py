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
- with `--network=conv` or `resnet` the same of convolutions (space to depth, pixel
  shuffle, pre-activation bottlenecks), where PyTorch lays its maps channels last and
  `torch_bfloat16`, `torch_compile_bfloat16` compute them in bfloat16 by autocast,
- with `--estimators=iwae,dreg` the steps of other estimators with one sample.
"""

import dataclasses

import numpy as np

from experiments.benchmark import contenders, ours, parts, rounds
from experiments.choices.estimators import ESTIMATORS
from experiments.command import cli, report

LIMIT = ("products", "optimizer")
ONE = "ours, one step a dispatch"


@dataclasses.dataclass(frozen=True)
class Config(rounds.RaceFlags):
    """One benchmark; every field is a flag."""

    estimators: tuple[str, ...] = cli.flag(
        (), "Their steps with one sample, against that of sgvb_b.", choices=ESTIMATORS
    )
    parts: bool = cli.flag(True, "Time every part of the step alone.")


def main(config: Config) -> int:
    """Measures, prints and writes."""
    problem = contenders.problem(config)
    wanted = parts.of_network(config.network) if config.parts else LIMIT
    extra = {name: parts.PARTS[name](problem) for name in wanted}
    if config.parts:
        extra[ONE] = parts.one_a_dispatch(problem)
    for name in config.estimators:
        epoch = ours.contender("ours", problem, estimator=name).epoch
        extra[name] = rounds.timed(epoch, problem.num_steps)
    race, work = rounds.race(config, problem, extra), parts.flops(problem)
    is_ours, ratios = "ours" in race.seconds, race.ratios("ours", config.contenders)
    if is_ours:
        ratios |= limits(race)
    for name in config.estimators:
        of_one = race.ratios(name, ["ours"])
        ratios |= {f"{name} / sgvb_b": ratio for ratio in of_one.values()}
    config.write(race.show(ratios, scale=1e3, unit="ms") | {"flops": work})
    if is_ours:
        step, alone = (np.median(race.seconds[name]) for name in ("ours", "products"))
        print(
            f"{config.batch_size / step:.0f} examples/s; products alone "
            f"{work / alone / 1e9:.0f} GFLOP/s, in the step "
            f"{work / step / 1e9:.0f} GFLOP/s"
        )
        if config.parts:
            print("\nwhere the time of our step goes: share of it")
            rows = [(name, share, "") for name, share in shares(race).items()]
            print(report.table(rounds.COLUMNS, rows))
    return 0


def limits(race: rounds.Race) -> rounds.Table:
    """The limit over our step: the products alone, and the optimizer with them."""
    alone, optimizer = (np.divide(race.seconds[n], race.seconds["ours"]) for n in LIMIT)
    both = alone + optimizer
    return {"products / ours": alone, "(products + optimizer) / ours": both}


def shares(race: rounds.Race) -> rounds.Table:
    """Each part of our step, and the rest; the last row is no part of it."""
    step = np.array(race.seconds["ours"])
    table = {
        name: race.seconds[name] / step for name in parts.PARTS if name in race.seconds
    }
    table["rest"] = 1.0 - np.sum(list(table.values()), axis=0)
    return table | {"one step a dispatch, the excess": race.seconds[ONE] / step - 1.0}


if __name__ == "__main__":
    cli.run(Config, main)
