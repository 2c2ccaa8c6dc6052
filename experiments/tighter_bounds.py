r"""Does a tighter training bound give a better model: ELBO, IWAE and DReG at equal K.

    python -m experiments.tighter_bounds

Trains every estimator with K samples per row from several seeds at each of the same
learning rates, keeps the weights and the rate with the best validation bound of 100
importance samples, and reports log p(x) of the test split by 5,000. What is compared is
the gradient: the data, the network, the decoder evaluations and the selection are
equal. Writes tighter_bounds.json and .png; each run has a workdir of its own below, and
an interrupted comparison goes on where it stopped.
"""

import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np

from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.command.report import Column
from experiments.measures import evidence, measure, whole_run
from experiments.runs import trained_runs
from vae_jax.plots import curves

EVAL_EVERY = 5  # epochs between validation bounds
OF_TRAIN = (  # flags that train has too
    *("dataset", "data_dir", "num_latents", "hidden", "num_samples"),
    *("num_epochs", "early_stopping", "valid_samples"),
)


@dataclasses.dataclass(frozen=True)
class Config(cli.Flags):
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/tighter_bounds", "Where the runs are written.")
    dataset: str = cli.flag("digits", "Data set, as in experiments.train.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    estimators: tuple[str, ...] = cli.flag(
        ("sgvb_b", "iwae", "dreg"), "Their names.", empty=False
    )
    learning_rates: tuple[str, ...] = cli.flag(
        ("3e-4", "1e-3", "3e-3"), "Rates of Adam.", empty=False
    )
    num_seeds: int = cli.flag(3, "Seeds 0, 1, ... of weights, order, noise.", least=1)
    num_samples: int = cli.flag(8, "Samples of z per row, K.")
    num_latents: int = cli.flag(16, "Latent dimensions.")
    hidden: tuple[int, ...] = cli.flag((200, 200), "Units of the hidden layers.")
    num_epochs: int = cli.flag(1000, "At most.")
    early_stopping: int = cli.flag(
        50, "Epochs without a better validation bound.", least=EVAL_EVERY
    )
    valid_samples: int = cli.flag(100, "Samples of the validation bound.")
    importance_samples: int = cli.flag(5000, "Samples of the test log p(x).", least=1)

    def refuse(self) -> None:
        """Refuses what train would refuse of any run."""
        measure.check_importance_samples(self.importance_samples)
        for estimator in self.estimators:
            train_configs(self, estimator, 0)


def train_configs(config: Config, estimator: str, seed: int) -> list[TrainConfig]:
    """The runs of one estimator and seed, one for each rate."""
    return [
        TrainConfig(
            workdir=str(pathlib.Path(config.workdir) / f"{estimator}_{rate}_{seed}"),
            estimator=estimator,
            learning_rate=_number(rate),
            eval_every=EVAL_EVERY,
            watch="importance",
            seed=seed,
            progress=False,
            **config.some(OF_TRAIN),
        )
        for rate in config.learning_rates
    ]


def _number(rate: str) -> float:
    try:
        return float(rate)
    except ValueError:
        raise ValueError(f"--learning_rates: {rate} is no number") from None


class Best(NamedTuple):
    """One seed of an estimator: the rate and the weights chosen, on the test split."""

    log_p: float
    log_p_standard_error: float
    elbo: float
    step: int
    learning_rate: float
    valid_bound: float


def best(config: Config, estimator: str, seed: int) -> Best:
    """Trains at every rate, and measures what has the best validation bound."""
    candidates = []
    for train_config in train_configs(config, estimator, seed):
        with cli.user_errors():
            run, saved = whole_run.train(train_config)
        trained = trained_runs.of_run(run, saved, checkpoint="best")
        candidates.append((float(saved.best_bound), trained))
    valid_bound, trained = max(candidates, key=lambda pair: pair[0])
    figures = evidence.on_test(
        trained, num_samples=100, importance_samples=config.importance_samples
    )
    return Best(
        figures["log_p"],
        figures["log_p_standard_error"],
        figures["elbo"],
        trained.step,
        trained.config.learning_rate,
        valid_bound,
    )


def main(config: Config) -> int:
    """Trains, chooses, measures, prints, writes and draws."""
    folder, seeds = report.claim(config.workdir), range(config.num_seeds)
    results = {
        estimator: [best(config, estimator, seed) for seed in seeds]
        for estimator in config.estimators
    }
    print(report.table(COLUMNS, results.items()))
    by_seed = {n: (seeds, [row.log_p for row in r]) for n, r in results.items()}
    figure = curves.series(
        {f"K = {config.num_samples}, rate and weights by validation": by_seed},
        x_label="seed",
        y_label=f"test log p(x), {config.importance_samples} samples, nats",
    )
    result = {"estimators": results}
    pictures = {"tighter_bounds": figure}
    report.write(folder / "tighter_bounds.json", config, result, pictures)
    return 0


def _log_p(item: tuple[str, list[Best]]) -> list[float]:
    return [row.log_p for row in item[1]]


def _seeds(item: tuple[str, list[Best]]) -> str:
    rows = (f"{row.log_p:.2f} ({row.learning_rate:g})" for row in item[1])
    return "  " + ", ".join(rows)


COLUMNS = [  # of an estimator and what its seeds give
    Column("test log p(x), nats", lambda item: item[0], width=22),
    Column("mean", lambda item: np.mean(_log_p(item)), ".3f", 8),
    Column("spread", lambda item: np.ptp(_log_p(item)), ".3f", 8),
    Column("  seeds (rate)", _seeds, width=0),
]


if __name__ == "__main__":
    cli.run(Config, main)
