r"""Importance-weighted training, k = 50: the step against its products and PyTorch's.

    python -m experiments.benchmark.iwae --data_dir=DIR

Burda et al. 2016 (arXiv:1509.00519) with one stochastic layer, 784-200-200-50, batches
of 20 images drawn afresh, Adam. As `train_step`, with the bound of k samples as the
objective of all. The default's steps are as many as bounds need to compare: early on
they rise so fast that two seeds of one contender differ by nats.
"""

import dataclasses

from experiments.benchmark import contenders, parts, races, rounds
from experiments.command import cli


@dataclasses.dataclass(frozen=True)
class Config(races.Flags):
    """One benchmark; every field is a flag."""

    binarization: str = cli.flag(
        "dynamic", "Training pixels.", choices=("none", "dynamic")
    )
    batch_size: int = cli.flag(20, "Examples per step.", least=1)
    num_latents: int = cli.flag(50, "Latents.", least=1)
    hidden: tuple[int, ...] = cli.flag((200, 200), "Hidden units.", least=1)
    estimator: str = cli.flag("iwae", "Objective.", choices=("iwae",))
    num_samples: int = cli.flag(50, "Importance samples, k.", least=1)
    num_steps: int = cli.flag(
        1500, "Steps of one pass; 0 for the whole data set.", least=0
    )
    contenders: str = cli.flag("ours,torch,torch_compile", "Comma-separated.")


def main(config: Config) -> int:
    """Measures, prints and writes."""
    problem = contenders.problem(config)
    race = races.run(config, problem, {"products": parts.all_products(problem)})
    ratios = race.ratios("ours", contenders.CONTENDERS)
    ratios |= race.ratios("products", ["ours"])
    config.write(
        rounds.show(
            race, scale=1e3, unit="ms", ratios=ratios, quantity=problem.quantity
        )
    )
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
