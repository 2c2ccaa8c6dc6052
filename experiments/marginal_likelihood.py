r"""The marginal likelihood while training, by three ways of fitting: Figure 3 of AEVB.

    python -m experiments.marginal_likelihood \
        --flagfile=experiments/flags/marginal_likelihood/quick.flags

Kingma & Welling 2013 (arXiv:1312.6114). For each size of the training set and each
algorithm one run of `experiments.train`, equal in all else. At points evenly spaced in
the logarithm, log p(x) of the first --num_images training and test rows is estimated
twice: by the paper's appendix D (HMC draws from the posterior, a normal fitted to some
of them, the reciprocal of the mean weight of the others: in expectation above
log p(x)), and by importance sampling (in expectation below it). The importance samples
are drawn from normals fitted to HMC draws: Monte Carlo EM has no q, and an encoder that
has overfitted 1,000 rows is no proposal for test images.

The paper trains with 50,000 rows and with 1,000, and applies Monte Carlo EM to the
1,000 alone: one step of it takes a gradient of every leapfrog step and update. An
interrupted comparison goes on where it stopped.
"""

import dataclasses
import pathlib

import jax
import numpy as np

from experiments.choices import models
from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.command.report import field
from experiments.measures import evidence, measure, validation
from experiments.runs import comparison, protocol, runs, trained_runs
from vae_jax import vae
from vae_jax.evaluation import examples, hmc_density
from vae_jax.inference import mcem
from vae_jax.plots import curves

SPLITS = ("train", "test")
CURVE = "marginal_likelihood.json"
ROWS_AT_ONCE = 100  # chains that run side by side
INFLATION = 1.2  # of the fitted normals' scale, whose tails must cover the posterior's
SETTINGS = (  # the flags that a point is a function of, next to those of its run
    *("num_images", "hmc_samples", "hmc_warmup", "hmc_leapfrog", "hmc_starts"),
    *("proposal", "importance_samples"),
)
COLUMNS = [
    field("N_train", "num_train", width=8),
    field("algorithm", "algorithm", width=11),
    field("samples", "samples"),
    field("train D", "train_hmc_density", ".3f", 9),
    field("train IS", "train_importance", ".3f", 9),
    field("test D", "test_hmc_density", ".3f", 9),
    field("test IS", "test_importance", ".3f", 9),
    field("s.e.", "test_hmc_density_standard_error", ".2f", 6),
    field("seconds", "seconds", ".0f", 8),
]


@dataclasses.dataclass(frozen=True)
class Config(comparison.ComparisonFlags):
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/marginal_likelihood", "Where the runs are written.")
    num_latents: int = cli.flag(3, "Latent dimensions, N_z.")
    train_sizes: tuple[int, ...] = cli.flag(
        (1000,), "Training rows of each panel; 0: all.", empty=False
    )
    algorithms: tuple[str, ...] = cli.flag(
        ("aevb", "wake_sleep", "mcem"), "Their names.", empty=False
    )
    mcem_train_sizes: tuple[int, ...] = cli.flag(
        (1000,), "Those that mcem is fitted to."
    )
    samples: int = cli.flag(10_000_000, "Training samples of each curve.", least=1)
    mcem_samples: int = cli.flag(1_000_000, "The same of mcem's curves.", least=1)
    points: int = cli.flag(2, "Points of a curve for each tenfold of epochs.", least=1)
    num_images: int = cli.flag(1000, "Images of each split evaluated.", least=1)
    hmc_samples: int = cli.flag(50, "Draws of the normal's fit; as many more.", least=1)
    hmc_warmup: int = cli.flag(100, "Transitions before them.", least=1)
    hmc_leapfrog: int = cli.flag(4, "Leapfrog steps of a transition.", least=1)
    hmc_starts: int = cli.flag(
        1000, "Draws of the prior for each chain's start.", least=1
    )
    proposal: str = cli.flag(
        "fitted",
        "What importance samples are drawn from: normals fitted to HMC draws, or the "
        "run's own q (fitted normals for mcem).",
        choices=("fitted", "own"),
    )
    importance_samples: int = cli.flag(5000, "Importance samples per image.", least=1)

    def refuse(self) -> None:
        """Refuses chains too short to fit a normal to, and runs that are none."""
        if self.hmc_samples <= self.num_latents:
            raise ValueError(
                f"--hmc_samples={self.hmc_samples} draws do not span --num_latents="
                f"{self.num_latents}"
            )
        measure.check_importance_samples(self.importance_samples)
        train_configs(self)


def train_configs(config: Config) -> list[TrainConfig]:
    """Every run of the comparison, but for its number of epochs.

    Raises:
        ValueError: for an algorithm or a number that no run can have.
        UsageError: as `ComparisonFlags.base`.
    """
    shared, folder = config.base(), pathlib.Path(config.workdir)
    if shared.posterior == "bernoulli" or shared.ladder:
        raise ValueError(
            "chains and fitted normals need real latents of one layer: not "
            "--posterior=bernoulli, not --ladder"
        )
    configs = [
        dataclasses.replace(
            shared,
            workdir=str(folder / f"{algorithm}_{size or 'all'}"),
            data_dir=config.data_dir,
            algorithm=algorithm,
            num_latents=config.num_latents,
            num_train=size,
            progress=False,
        )
        for size in config.train_sizes
        for algorithm in config.algorithms
        if algorithm != "mcem" or size in config.mcem_train_sizes
    ]
    if not configs:
        raise ValueError(
            f"--algorithms={','.join(config.algorithms)} fits none of --train_sizes="
            f"{config.train_sizes}: mcem fits --mcem_train_sizes alone"
        )
    return configs


def main(config: Config) -> int:
    """Trains, measures, prints, writes and draws."""
    folder = report.claim(config.workdir)
    measurement = comparison.Measurement(
        CURVE,
        config.some(SETTINGS),
        lambda run, saved: _measured(config, run, saved),
        shown=("train_hmc_density", "test_hmc_density", "test_importance"),
    )
    results, panels = [], {}
    for train_config in train_configs(config):
        run, num_train = _with_epochs(config, train_config)
        points = comparison.curve(
            run, measurement, points=config.points, validation=validation.build
        )
        names = {"num_train": num_train, "algorithm": run.algorithm}
        results.append(names | points[-1] | {"curve": points})
        panels.setdefault(f"N_train = {num_train:,}", {})[run.algorithm] = tuple(
            [point[name] for point in points]
            for name in ("samples", "train_hmc_density", "test_hmc_density")
        )
    print("log p(x) at the last point, nats per example:")
    print(report.table(COLUMNS, results))
    figure = curves.train_and_test(
        panels,
        x_label="training samples evaluated",
        y_label="log p(x) by appendix D, nats",
    )
    pictures = {"marginal_likelihood": figure}
    report.write(
        folder / "marginal_likelihood.json", config, {"runs": results}, pictures
    )
    return 0


def _with_epochs(config: Config, run: TrainConfig) -> tuple[TrainConfig, int]:
    """The run with the epochs that its samples take, and its training rows.

    Raises:
        UsageError: for data that are not there, or too few rows of a split.
    """
    with cli.user_errors():
        data = protocol.load(run)
        protocol.check_likelihood(run, data)
        protocol.check_rows(data, config.num_images)
    samples = config.mcem_samples if run.algorithm == "mcem" else config.samples
    num_train = len(data.source.train)
    epochs = -(-samples // max(1, num_train // run.batch_size * run.batch_size))
    return dataclasses.replace(run, num_epochs=epochs), num_train


def _measured(config: Config, run: runs.Run, saved: runs.Saved) -> comparison.Point:
    """Both estimates of both splits, by the same noise at each point."""
    trained = trained_runs.of_run(run, saved, checkpoint="last")
    evaluate = examples.over_examples(
        hmc_density.hmc_density(
            run.model.generative,
            num_latents=config.num_latents,
            num_samples=config.hmc_samples,
            num_warmup=config.hmc_warmup,
            num_leapfrog=config.hmc_leapfrog,
            num_starts=config.hmc_starts,
        ),
        batch_size=ROWS_AT_ONCE,
        value=run.data.prepared.value,
    )
    point, proposing = {}, _with_proposal(config, trained)
    for i, split in enumerate(SPLITS):
        key_hmc, key_is = jax.random.split(jax.random.fold_in(run.keys.evaluation, i))
        rows = trained_runs.rows(trained, split=split, num_images=config.num_images)
        density = evaluate(key_hmc, trained.params, rows)
        log_p = np.asarray(density.log_p, np.float64)
        sampled = evidence.importance_sampling(
            key_is, proposing, rows, num_samples=config.importance_samples
        ).figures
        point |= {
            f"{split}_hmc_density": float(log_p.mean()),
            f"{split}_hmc_density_standard_error": measure.standard_error(log_p),
            f"{split}_acceptance": float(np.asarray(density.acceptance).mean()),
            f"{split}_importance": sampled["log_p"],
            f"{split}_effective_sample_size": sampled["effective_sample_size"],
        }
    return point


def _with_proposal(
    config: Config, trained: trained_runs.Trained
) -> trained_runs.Trained:
    """The model with the q that its importance samples are drawn from."""
    if config.proposal == "own":
        return trained
    fitted = mcem.fitted_normal(
        jax.random.key(trained.config.seed),
        trained.model.generative,
        num_latents=config.num_latents,
        num_starts=config.hmc_starts,
        inflation=INFLATION,
        **models.CHAIN_OF_FITTED_NORMAL,
    )
    return trained._replace(model=vae.model(trained.model.generative, fitted))


if __name__ == "__main__":
    cli.run(Config, main)
