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
from typing import Any

import jax
import numpy as np

from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.measures import evidence, measure, whole_run
from experiments.runs import trained_runs

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


def best_rate(
    config: Config, estimator: str, seed: int
) -> tuple[float, trained_runs.Trained]:
    """Trains at every rate; the best validation bound and the weights that have it."""
    found = []
    for rate in config.learning_rates.split(","):
        run, saved = whole_run.train(train_config(config, estimator, rate, seed))
        trained = trained_runs.of_run(run, saved, checkpoint="best")
        found.append((float(saved.best_bound), trained))
    return max(found, key=lambda pair: pair[0])


def measured(config: Config, trained: trained_runs.Trained) -> dict[str, Any]:
    """ELBO and log p(x) of the test split."""
    keys = jax.random.split(jax.random.key(0), 1 + len(evidence.METHODS))
    bound = measure.bound(keys[0], trained, split="test", num_samples=100)
    figures = evidence.importance_sampling(
        keys[1],
        trained,
        trained_runs.rows(trained, split="test"),
        num_samples=config.importance_samples,
    ).figures
    return {
        "log_p": figures["log_p"],
        "log_p_standard_error": figures["log_p_standard_error"],
        "elbo": bound["elbo"],
        "step": trained.step,
    }


def main(config: Config) -> int:
    """Trains, chooses, measures, prints and writes."""
    folder, result = report.claim(config.workdir), {}
    for estimator in config.estimators.split(","):
        rows = []
        for seed in range(config.num_seeds):
            with cli.user_errors():
                valid, best = best_rate(config, estimator, seed)
            chosen = {
                "learning_rate": best.config.learning_rate,
                "valid_bound": valid,
            }
            rows.append(measured(config, best) | chosen)
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
