r"""Does a tighter training bound give a better model: ELBO, IWAE and DReG at equal K.

    python -m experiments.tighter_bounds

Trains every estimator with K samples per image from several seeds at each of the same
learning rates, keeps the weights and the rate with the best validation bound of 100
importance samples, and reports log p(x) of the test split by 5,000. What is compared is
the gradient: the data, the network, the decoder evaluations and the selection are
equal. Writes tighter_bounds.json; each run has a workdir of its own below, and an
interrupted comparison goes on where it stopped.
"""

import dataclasses
import pathlib
import sys

import numpy as np

from experiments import evaluate, train
from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.measures import measure, validation
from vae_jax.training import journal

EVAL_EVERY = 5  # epochs between validation bounds


@dataclasses.dataclass(frozen=True)
class Config:
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/tighter_bounds", "Where the runs are written.")
    dataset: str = cli.flag("digits", "Data set, as in experiments.train.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    estimators: str = cli.flag("sgvb_b,iwae,dreg", "Comma-separated names.")
    learning_rates: str = cli.flag("3e-4,1e-3,3e-3", "Comma-separated rates of Adam.")
    num_seeds: int = cli.flag(3, "Seeds 0, 1, ... of weights, order and noise.")
    num_samples: int = cli.flag(8, "Samples of z per image, K.")
    num_latents: int = cli.flag(16, "Latent dimensions.")
    hidden: tuple[int, ...] = cli.flag((200, 200), "Units of the hidden layers.")
    num_epochs: int = cli.flag(1000, "At most.")
    early_stopping: int = cli.flag(50, "Epochs without a better validation bound.")
    valid_samples: int = cli.flag(100, "Samples of the validation bound.")
    importance_samples: int = cli.flag(5000, "Samples of the test log p(x).")

    def __post_init__(self) -> None:
        """Refuses what no comparison can be made of.

        Raises:
            ValueError: naming the flag and its value.
        """
        if self.num_seeds < 1:
            raise ValueError(f"--num_seeds must be positive, got {self.num_seeds}")
        if self.importance_samples < 1:
            raise ValueError(
                f"--importance_samples must be positive, got {self.importance_samples}"
            )
        measure.check_importance_samples(self.importance_samples)
        if self.early_stopping < EVAL_EVERY:
            raise ValueError(
                f"--early_stopping must be {EVAL_EVERY} or more, got "
                f"{self.early_stopping}"
            )
        for estimator in self.estimators.split(","):
            for rate in self.learning_rates.split(","):
                train_config(self, estimator, rate, 0)


def train_config(config: Config, estimator: str, rate: str, seed: int) -> TrainConfig:
    """One run of the comparison."""
    folder = pathlib.Path(config.workdir) / f"{estimator}_{rate}_{seed}"
    return TrainConfig(
        workdir=str(folder),
        dataset=config.dataset,
        data_dir=config.data_dir,
        num_latents=config.num_latents,
        hidden=config.hidden,
        estimator=estimator,
        num_samples=config.num_samples,
        learning_rate=_rate(rate),
        num_epochs=config.num_epochs,
        early_stopping=config.early_stopping,
        eval_every=EVAL_EVERY,
        valid_samples=config.valid_samples,
        watch="importance",
        seed=seed,
        progress=False,
    )


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"--learning_rates: {text} is no number; give some, separated by commas"
        ) from None


def best_rate(config: Config, estimator: str, seed: int) -> tuple[float, TrainConfig]:
    """Trains at every rate; the best validation bound and its run."""
    found = []
    for rate in config.learning_rates.split(","):
        run = train_config(config, estimator, rate, seed)
        if status := train.main(run):
            sys.exit(status)  # interrupted: the same command goes on from here
        bounds = [
            row[validation.WATCHED["importance"]]
            for row in journal.read(run.directory())
            if validation.WATCHED["importance"] in row
        ]
        found.append((max(bounds), run))
    return max(found, key=lambda pair: pair[0])


def main(config: Config) -> int:
    """Trains, chooses, measures, prints and writes."""
    folder, result = report.claim(config.workdir), {}
    for estimator in config.estimators.split(","):
        rows = []
        for seed in range(config.num_seeds):
            with cli.user_errors():
                valid, run = best_rate(config, estimator, seed)
            measured = evaluate.evaluate(
                evaluate.Config(
                    workdir=run.workdir,
                    checkpoint="best",
                    importance_samples=config.importance_samples,
                )
            )
            kept = ("log_p", "log_p_standard_error", "elbo", "step")
            rows.append(
                {name: measured[name] for name in kept}
                | {"learning_rate": run.learning_rate, "valid_bound": valid}
            )
        result[estimator] = rows
    print(f"{'test log p(x), nats':<22}{'mean':>9}{'spread':>9}   seeds (rate)")
    for estimator, rows in result.items():
        log_p = np.array([row["log_p"] for row in rows])
        seeds = ", ".join(f"{r['log_p']:.2f} ({r['learning_rate']:g})" for r in rows)
        print(f"{estimator:<22}{log_p.mean():9.3f}{np.ptp(log_p):9.3f}   {seeds}")
    report.write(folder / "tighter_bounds.json", config, {"estimators": result})
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
