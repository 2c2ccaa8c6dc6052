r"""Which prior: the same nets with N(0, I), learned priors, and one fitted afterwards.

    python -m experiments.compare_priors

Trains a model with each prior from the same seeds, which train together, by the same
estimator (sgvb_a, as learned priors have no closed-form KL) and KL warm-up; takes the
weights with the best validation ELBO; and fits --fitted to the codes of the N(0, I)
models after training. Prints and writes (compare_priors.json) test ELBO, its two parts,
log p(x) by importance sampling, means over the seeds with their standard deviation, and
training images a second of all seeds together; for the fitted prior those of its fit.
Each prior has a workdir of its own below, and an interrupted comparison goes on where
it stopped.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from experiments.choices import rows
from experiments.choices.config import Config as TrainConfig
from experiments.choices.densities import PRIORS
from experiments.command import cli, report
from experiments.command.report import Column
from experiments.measures import evidence, fitted_prior, measure, validation
from experiments.runs import fit, protocol, trained_runs
from experiments.runs.trained_runs import Trained
from vae_jax.training import journal

FITTED = "fitted"  # stands among the priors for the one that is fitted afterwards
OF_TRAIN = (  # flags that train has too
    *("dataset", "data_dir", "binarization", "num_latents", "hidden", "batch_size"),
    *("learning_rate", "kl_warmup", "num_epochs", "num_seeds", "valid_samples"),
)
OF_PRIOR = ("num_components", "num_exemplars", "prior_layers", "prior_units")


@dataclasses.dataclass(frozen=True)
class Config(cli.Flags):
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/compare_priors", "Where the runs are written.")
    dataset: str = cli.flag("digits", "Data set, as in experiments.train.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    binarization: str = cli.flag("auto", "As in experiments.train.")
    priors: tuple[str, ...] = cli.flag(
        (*PRIORS, FITTED), "What is compared.", choices=(*PRIORS, FITTED), empty=False
    )
    fitted: str = cli.flag(
        "flow", "What is fitted after training.", choices=fitted_prior.FITTED
    )
    num_components: int = cli.flag(50, "Of normal_mixture and vamp.", least=1)
    num_exemplars: int = cli.flag(500, "Of exemplar.", least=2)
    prior_layers: int = cli.flag(8, "Of flow and autoregressive.", least=1)
    prior_units: int = cli.flag(128, "Of both hidden layers of each of them.", least=1)
    num_seeds: int = cli.flag(
        3, "Seeds 0, 1, ... of weights, order, noise, which train together.", least=2
    )
    num_latents: int = cli.flag(16, "Latent dimensions.")
    hidden: tuple[int, ...] = cli.flag((200,), "Units of the hidden layers.")
    batch_size: int = cli.flag(100, "Examples per step.")
    learning_rate: float = cli.flag(1e-3, "Of Adam, to train and to fit.")
    kl_warmup: int = cli.flag(50, "Epochs over which the KL's weight rises to 1.")
    num_epochs: int = cli.flag(300, "Passes over the training split.")
    fit_epochs: int = cli.flag(300, "Passes of the fit after training.", least=1)
    valid_samples: int = cli.flag(10, "Samples of the validation bound.")
    eval_samples: int = cli.flag(100, "Samples of the test ELBO.", least=1)
    importance_samples: int = cli.flag(5000, "Samples of the test log p(x).", least=1)

    def refuse(self) -> None:
        """Refuses what train would refuse of any run."""
        measure.check_importance_samples(self.importance_samples)
        for prior in self.priors:
            train_config(self, prior)


def train_config(config: Config, prior: str) -> TrainConfig:
    """The runs of one prior; of the fitted one, those that it is fitted to."""
    prior = "standard_normal" if prior == FITTED else prior
    return TrainConfig(
        workdir=str(pathlib.Path(config.workdir) / prior),
        estimator="sgvb_a",
        progress=False,
        **_of_prior(config, prior),
        **config.some(OF_TRAIN),
    )


def _of_prior(config: Config, prior: str) -> dict[str, Any]:
    read = rows.read_by(PRIORS[prior])
    return {"prior": prior} | config.some(n for n in OF_PRIOR if n in read)


def measured(config: Config, prior: str) -> dict[str, Any]:
    """Trains with a prior, or fits one, and measures every seed on the test split.

    Raises:
        UsageError: as `fit.to_end`; for data without a likelihood or test rows.
    """
    with cli.user_errors():
        run, saved = fit.to_end(train_config(config, prior), validation.build)
        protocol.check_likelihood(run.config, run.data)
        protocol.check_rows(run.data)
    trained = trained_runs.of_runs(run, saved, checkpoint="best")
    rates = [row["examples_per_second"] for row in journal.read(run.workdir)]
    if prior == FITTED:
        fits = [_fitted(config, one) for one in trained]
        trained = [fitted.trained for fitted in fits]
        rates = [fitted.images_per_second for fitted in fits]
    return {
        "steps": [one.step for one in trained],
        "images_per_second": float(np.median(rates)),
        **report.by_name(
            evidence.on_test(
                one,
                num_samples=config.eval_samples,
                importance_samples=config.importance_samples,
            )
            for one in trained
        ),
    }


def _fitted(config: Config, trained: Trained) -> fitted_prior.Fit:
    flags = fitted_prior.new_config(
        trained.config,
        str(pathlib.Path(config.workdir) / FITTED),
        **_of_prior(config, config.fitted),
    )
    with cli.user_errors():
        return fitted_prior.fit(
            trained,
            flags,
            learning_rate=config.learning_rate,
            num_epochs=config.fit_epochs,
            seed=trained.config.seed,
        )


def main(config: Config) -> int:
    """Trains, fits, measures, prints and writes."""
    folder = report.claim(config.workdir)
    flags = config.but("workdir", "data_dir", "priors")
    results = {
        prior: report.cached(
            folder / f"{prior}.json",
            flags,
            lambda prior=prior: measured(config, prior),
        )
        for prior in config.priors
    }
    print(f"test split, nats per example, {config.num_seeds} seeds")
    print(report.table(COLUMNS, results.items()))
    report.write(folder / "compare_priors.json", config, {"priors": results})
    return 0


def _mean(name: str, title: str, width: int = 10) -> Column:
    return Column(title, lambda item: float(np.mean(item[1][name])), ".3f", width)


def _std(name: str) -> Column:
    return Column("std", lambda item: float(np.std(item[1][name], ddof=1)), ".3f", 6)


COLUMNS = [  # of a prior and what its seeds give
    Column("prior", lambda item: item[0], width=16),
    *(_mean("log_p", "log p(x)"), _std("log_p"), _mean("elbo", "ELBO"), _std("elbo")),
    *(_mean("kl", "KL", 8), _mean("reconstruction", "reconstruction", 15)),
    Column("images/s", lambda item: item[1]["images_per_second"], ".0f", 9),
]


if __name__ == "__main__":
    cli.run(Config, main)
