r"""Importance-weighted training, k = 50: the step against its products and PyTorch's.

    python -m experiments.benchmark.iwae --data_dir=DIR

Burda et al. 2016 (arXiv:1509.00519) with one stochastic layer, 784-200-200-50, batches
of 20 images drawn afresh, Adam. As `train_step`, with the bound of k samples as the
objective of all. The default's steps are as many as bounds need to compare: early on
they rise so fast that two seeds of one contender differ by nats.
"""

import dataclasses

from experiments.benchmark import contenders, parts, rounds
from experiments.command import cli


@dataclasses.dataclass(frozen=True)
class Config(rounds.RaceFlags):
    """One benchmark; every field is a flag."""

    binarization: str = cli.flag("dynamic", "Pixels.", choices=("none", "dynamic"))
    batch_size: int = cli.flag(20, "Examples per step.", least=1)
    num_latents: int = cli.flag(50, "Latents.", least=1)
    hidden: tuple[int, ...] = cli.flag((200, 200), "Hidden units.", least=1)
    estimator: str = cli.flag("iwae", "Objective.", choices=("iwae",))
    num_samples: int = cli.flag(50, "Importance samples, k.", least=1)
    num_steps: int = cli.flag(1500, "Steps of one pass; 0: all rows.", least=0)
    contenders: tuple[str, ...] = contenders.flag("ours", "torch", "torch_compile")


def main(config: Config) -> int:
    """Measures, prints and writes."""
    problem = contenders.problem(config)
    race = rounds.race(config, problem, {"products": parts.all_products(problem)})
    ratios = race.ratios("ours", config.contenders) | race.ratios("products", ["ours"])
    config.write(race.show(ratios, scale=1e3, unit="ms"))
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
