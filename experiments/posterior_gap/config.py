"""The flags of `experiments.posterior_gap`."""

import dataclasses

from experiments.command import cli

PARTS = ("frozen", "joint", "lagging", "family")
STRETCH = 10  # steps of one compiled scan


@dataclasses.dataclass(frozen=True)
class Config(cli.Flags):
    """One experiment; every field is a flag."""

    workdir: str = cli.flag("runs/posterior_gap", "Where the results are written.")
    parts: tuple[str, ...] = cli.flag(
        PARTS, "What is measured.", choices=PARTS, empty=False
    )
    seed: int = cli.flag(0, "The first seed, of truth, data, start and noise.", least=0)
    num_seeds: int = cli.flag(3, "Seeds of joint and lagging.", least=1)
    num_rows: int = cli.flag(500, "Training rows; a step sees them all.", least=1)
    num_test: int = cli.flag(
        200, "Test rows, and training rows whose KL is measured.", least=1
    )
    hidden: int = cli.flag(20, "Tanh units: truth, decoder and encoder.", least=1)
    num_steps: int = cli.flag(
        2000,
        "Steps of theta, or of phi alone (frozen).",
        least=STRETCH,
        multiple=STRETCH,
    )
    num_points: int = cli.flag(14, "Points of each curve.", least=2)
    learning_rate: float = cli.flag(1e-2, "Of every Adam.", above=0)
    num_samples: int = cli.flag(1, "L, of every draw of the bound.", least=1)
    inner_steps: tuple[int, ...] = cli.flag(
        (1, 5, 50), "k, updates of phi per theta's.", least=1, empty=False
    )
    search_steps: int = cli.flag(50, "Of a row's own search (converged).", least=1)
    num_nodes: int = cli.flag(200, "A side of the grid of log p(x).", least=30)

    @property
    def seeds(self) -> range:
        """Of joint and lagging."""
        return range(self.seed, self.seed + self.num_seeds)
