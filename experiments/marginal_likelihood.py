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
from typing import Any

import jax
import numpy as np

from experiments.choices import models
from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.measures import evidence as estimates
from experiments.measures import measure, validation
from experiments.runs import comparison, protocol, runs, trained_runs
from vae_jax import vae
from vae_jax.evaluation import examples, hmc_density
from vae_jax.inference import mcem
from vae_jax.plots import curves, files

SPLITS = ("train", "test")
CURVE = "marginal_likelihood.json"
ROWS_AT_ONCE = 100  # chains that run side by side
INFLATION = 1.2  # of the fitted normals' scale, whose tails must cover the posterior's
SETTINGS = (  # the flags that a point is a function of, next to those of its run
    *("num_images", "hmc_samples", "hmc_warmup", "hmc_leapfrog", "hmc_starts"),
    *("proposal", "importance_samples"),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/marginal_likelihood", "Where the runs are written.")
    run_flagfile: str = cli.flag("", "Flag file of experiments.train for every run.")
    run_flags: str = cli.flag(
        "", "More flags of experiments.train for every run, separated by spaces."
    )
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    num_latents: int = cli.flag(3, "Latent dimensions, N_z.")
    train_sizes: tuple[int, ...] = cli.flag(
        (1000,), "Training rows of each panel; 0 for all of them."
    )
    algorithms: str = cli.flag("aevb,wake_sleep,mcem", "Comma-separated names.")
    mcem_train_sizes: tuple[int, ...] = cli.flag(
        (1000,), "Those of the sizes that mcem is fitted to."
    )
    samples: int = cli.flag(10_000_000, "Training samples of each curve.")
    mcem_samples: int = cli.flag(1_000_000, "Training samples of mcem's curves.")
    points: int = cli.flag(2, "Points of a curve for each tenfold of the epochs.")
    num_images: int = cli.flag(1000, "Images of each split that are evaluated.")
    hmc_samples: int = cli.flag(50, "Draws that the normal is fitted to; as many more.")
    hmc_warmup: int = cli.flag(100, "Transitions before them.")
    hmc_leapfrog: int = cli.flag(4, "Leapfrog steps of a transition.")
    hmc_starts: int = cli.flag(
        1000, "Draws of the prior that each chain's start is chosen from."
    )
    proposal: str = cli.flag(
        "fitted",
        "What importance samples are drawn from: normals fitted to HMC draws, or the "
        "run's own q (fitted normals for mcem).",
        choices=("fitted", "own"),
    )
    importance_samples: int = cli.flag(5000, "Importance samples per image.")

    def __post_init__(self) -> None:
        """Refuses what no comparison can be made of.

        Raises:
            ValueError: naming the flag and its value.
            UsageError: for --run_flagfile and --run_flags, as `comparison.base`.
        """
        for name in ("samples", "mcem_samples", "points", "num_images", "hmc_samples"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be positive, got {value}")
        for name in ("hmc_warmup", "hmc_leapfrog", "hmc_starts", "importance_samples"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be positive, got {value}")
        if self.proposal not in ("fitted", "own"):
            raise ValueError(f"--proposal must be fitted or own, got {self.proposal}")
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
        UsageError: as `comparison.base`.
    """
    shared = comparison.base(config.run_flagfile, config.run_flags)
    if not config.train_sizes:
        raise ValueError("--train_sizes must hold at least one size")
    if shared.posterior == "bernoulli" or shared.top_latents:
        raise ValueError(
            "chains and fitted normals need real latents of one layer: not "
            "--posterior=bernoulli, not --top_latents"
        )
    folder, made = pathlib.Path(config.workdir), []
    for size in config.train_sizes:
        for algorithm in config.algorithms.split(","):
            if algorithm == "mcem" and size not in config.mcem_train_sizes:
                continue
            made.append(
                dataclasses.replace(
                    shared,
                    workdir=str(folder / f"{algorithm}_{size or 'all'}"),
                    data_dir=config.data_dir,
                    algorithm=algorithm,
                    num_latents=config.num_latents,
                    num_train=size,
                    progress=False,
                )
            )
    if not made:
        raise ValueError(
            f"--algorithms={config.algorithms} fits none of --train_sizes="
            f"{config.train_sizes}: mcem fits --mcem_train_sizes alone"
        )
    return made


def main(config: Config) -> int:
    """Trains, measures, prints, writes and draws."""
    folder = report.claim(config.workdir)
    rows, panels = [], {}
    measurement = comparison.Measurement(
        CURVE,
        {name: getattr(config, name) for name in SETTINGS},
        lambda run, saved: _measured(config, run, saved),
        shown=("train_hmc_density", "test_hmc_density", "test_importance"),
    )
    for run_config in train_configs(config):
        run_config, num_train = _with_epochs(config, run_config)
        points = comparison.curve(
            run_config, measurement, points=config.points, validation=validation.build
        )
        row = {"num_train": num_train, "algorithm": run_config.algorithm}
        rows.append(row | points[-1] | {"curve": points})
        drawn = panels.setdefault(f"N_train = {num_train:,}", {})
        drawn[run_config.algorithm] = tuple(
            [point[name] for point in points]
            for name in ("samples", "train_hmc_density", "test_hmc_density")
        )
    _print(rows)
    figure = curves.train_and_test(
        panels,
        x_label="training samples evaluated",
        y_label="log p(x) by appendix D, nats",
    )
    with cli.user_errors():
        files.save(figure, folder / "marginal_likelihood.png")
    report.write(folder / "marginal_likelihood.json", config, {"runs": rows})
    return 0


def _with_epochs(config: Config, run_config: TrainConfig) -> tuple[TrainConfig, int]:
    """The run with the epochs that its samples take, and its training rows.

    Raises:
        UsageError: for data that are not there, or too few rows of a split.
    """
    with cli.user_errors():
        data = protocol.load(run_config)
        protocol.check_likelihood(run_config, data)
        for split in SPLITS:
            rows = len(getattr(data.source, split))
            if rows < config.num_images:
                raise ValueError(
                    f"--num_images={config.num_images}, but the {split} split has "
                    f"{rows} rows"
                )
    is_mcem = run_config.algorithm == "mcem"
    samples = config.mcem_samples if is_mcem else config.samples
    num_train = len(data.source.train)
    batch_size = run_config.batch_size
    epochs = -(-samples // max(1, num_train // batch_size * batch_size))
    return dataclasses.replace(run_config, num_epochs=epochs), num_train


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
        key_hmc, key_importance = jax.random.split(
            jax.random.fold_in(run.keys.evaluation, i)
        )
        rows = trained_runs.rows(trained, split=split, num_images=config.num_images)
        found = evaluate(key_hmc, trained.params, rows)
        log_p = np.asarray(found.log_p, np.float64)
        sampled = estimates.importance_sampling(
            key_importance, proposing, rows, num_samples=config.importance_samples
        ).figures
        point |= {
            f"{split}_hmc_density": float(log_p.mean()),
            f"{split}_hmc_density_standard_error": measure.standard_error(log_p),
            f"{split}_acceptance": float(np.asarray(found.acceptance).mean()),
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


def _print(rows: list[dict[str, Any]]) -> None:
    print("log p(x) at the last point, nats per example:")
    print(
        f"{'N_train':>8}  {'algorithm':<11}{'samples':>11}{'train D':>10}"
        f"{'train IS':>10}{'test D':>10}{'test IS':>10}{'s.e.':>7}{'seconds':>9}"
    )
    for row in rows:
        print(
            f"{row['num_train']:>8}  {row['algorithm']:<11}{row['samples']:>11}"
            f"{row['train_hmc_density']:10.3f}{row['train_importance']:10.3f}"
            f"{row['test_hmc_density']:10.3f}{row['test_importance']:10.3f}"
            f"{row['test_hmc_density_standard_error']:7.2f}{row['seconds']:9.0f}"
        )


if __name__ == "__main__":
    cli.run(Config, main)
