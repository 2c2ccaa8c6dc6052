r"""The lower bound while training, by AEVB and by wake-sleep: Figure 2 of AEVB.

    python -m experiments.bound_curves \
        --flagfile=experiments/flags/bound_curves/quick.flags

Kingma & Welling 2013 (arXiv:1312.6114). For each number of latents and each algorithm
one run of `experiments.train`, equal in all else: --run_flagfile names a flag file of
it, --run_flags adds to that. At points evenly spaced in the logarithm the ELBO is
measured on --num_train_images training rows and on the test rows, by the same
noise at each point. An interrupted comparison goes on where it stopped, and a larger
--num_epochs extends it. Each run keeps its points in bound_curve.json in its workdir;
bound_curves.json and bound_curves.png hold them all.

The flag files: quick (digits), mnist, mnist_200 and mnist_no_weight_decay (the paper's
protocol on the fixed binarization) and frey_face. A density is as high as its noise is
low: the decoder's log std of Frey Face is at least log(--min_std), in the JSON as
min_log_std.

On MNIST wake-sleep starts from Glorot's weights (--wake_sleep_flags), AEVB from the
paper's N(0, 0.1^2). From those, wake-sleep's first dreams are noise, and the q that is
fitted to them is far too wide on the digits. The paper's N(0, 0.01) may name a variance
or a standard deviation, and at N_z = 200 that decides: mnist_200 starts both algorithms
from N(0, 0.01^2).
"""

import dataclasses
import math
from typing import Any

import jax

from experiments.choices import rows
from experiments.choices.config import Config as TrainConfig
from experiments.choices.densities import LIKELIHOODS
from experiments.command import cli, report
from experiments.measures import measure, validation
from experiments.runs import comparison, protocol, runs, trained_runs
from vae_jax.plots import curves, files

CURVE = "bound_curve.json"


@dataclasses.dataclass(frozen=True)
class Config:
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/bound_curves", "Where the runs are written.")
    run_flagfile: str = cli.flag("", "Flag file of experiments.train for every run.")
    run_flags: str = cli.flag(
        "", "More flags of experiments.train for every run, separated by spaces."
    )
    wake_sleep_flags: str = cli.flag(
        "", "More flags of experiments.train for the runs of wake-sleep alone."
    )
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    latents: tuple[int, ...] = cli.flag((2, 5, 10, 20), "Latent dimensions, N_z.")
    algorithms: str = cli.flag("aevb,wake_sleep", "Comma-separated names.")
    num_epochs: int = cli.flag(0, "Passes over the training split; 0: the flag file's.")
    points: int = cli.flag(4, "Points of a curve for each tenfold of the epochs.")
    eval_samples: int = cli.flag(10, "Samples of z per image of each bound.")
    num_train_images: int = cli.flag(
        0, "Training rows that the bound is measured on, from the start; 0 for all."
    )

    def __post_init__(self) -> None:
        """Refuses what no comparison can be made of.

        Raises:
            ValueError: naming the flag and its value.
            UsageError: for --run_flagfile and --run_flags, as `comparison.base`.
        """
        for name in ("points", "eval_samples"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be positive, got {value}")
        for name in ("num_epochs", "num_train_images"):
            if getattr(self, name) < 0:
                value = getattr(self, name)
                raise ValueError(f"--{name} must not be negative, got {value}")
        for run in train_configs(self):
            if run.early_stopping:
                raise ValueError(
                    "a curve goes on to its last epoch: its runs cannot have "
                    f"--early_stopping={run.early_stopping}"
                )


def train_configs(config: Config) -> list[TrainConfig]:
    """Every run of the comparison.

    Raises:
        ValueError: as `comparison.runs`.
        UsageError: as `comparison.base`.
    """
    found = []
    for algorithm in config.algorithms.split(","):
        flags = config.run_flags
        if algorithm == "wake_sleep" and config.wake_sleep_flags:
            flags = f"{flags} {config.wake_sleep_flags}"
        same_algorithm = comparison.runs(
            comparison.base(config.run_flagfile, flags),
            workdir=config.workdir,
            data_dir=config.data_dir,
            algorithms=(algorithm,),
            latents=config.latents,
            num_epochs=config.num_epochs,
        )
        found.append(same_algorithm)
    return [run for same_latents in zip(*found, strict=True) for run in same_latents]


def main(config: Config) -> int:
    """Trains, measures, prints, writes and draws."""
    folder = report.claim(config.workdir)
    configs = train_configs(config)
    stated = about(config, configs[0])
    rows, panels = [], {}
    measurement = comparison.Measurement(
        CURVE,
        {name: getattr(config, name) for name in ("eval_samples", "num_train_images")},
        lambda run, saved: _measured(config, run, saved),
        shown=("train_bound", "test_bound"),
    )
    for run_config in configs:
        points = comparison.curve(
            run_config, measurement, points=config.points, validation=validation.build
        )
        row = {
            "num_latents": run_config.num_latents,
            "algorithm": run_config.algorithm,
            **points[-1],
        }
        rows.append(row | {"curve": points})
        drawn = panels.setdefault(f"N_z = {run_config.num_latents}", {})
        drawn[run_config.algorithm] = tuple(
            [point[name] for point in points]
            for name in ("samples", "train_bound", "test_bound")
        )
    _print(rows)
    figure = curves.train_and_test(
        panels,
        x_label="training samples evaluated",
        y_label=f"bound on the {stated['protocol']['quantity']}, nats",
    )
    with cli.user_errors():
        files.save(figure, folder / "bound_curves.png")
    report.write(folder / "bound_curves.json", config, stated | {"runs": rows})
    return 0


def about(config: Config, run_config: TrainConfig) -> dict[str, Any]:
    """The protocol of all runs, and what bounds a density.

    Raises:
        UsageError: for data that give no train and test bound.
    """
    with cli.user_errors():
        data = protocol.load(run_config)
        if not len(data.source.test):
            raise ValueError(f"{run_config.dataset} has no test split")
        num_rows = len(data.source.train)
        if config.num_train_images > num_rows:
            raise ValueError(
                f"--num_train_images={config.num_train_images} is more than the "
                f"{num_rows} training rows of {run_config.dataset}"
            )
        protocol.check_likelihood(run_config, data)
    has_floor = "min_std" in rows.read_by(LIKELIHOODS[run_config.likelihood])
    return {
        "protocol": protocol.stamp(run_config, data),
        "min_log_std": math.log(run_config.min_std) if has_floor else None,
        "first_run": dataclasses.asdict(run_config),
    }


def _measured(config: Config, run: runs.Run, saved: runs.Saved) -> comparison.Point:
    """Both bounds, by one key for all points."""
    trained = trained_runs.of_run(run, saved, checkpoint="last")
    key_train, key_test = jax.random.split(jax.random.fold_in(run.keys.evaluation, 0))
    on_train, on_test = (
        measure.bound(
            key,
            trained,
            split=split,
            num_samples=config.eval_samples,
            num_images=num_images,
        )
        for key, split, num_images in (
            (key_train, "train", config.num_train_images),
            (key_test, "test", 0),
        )
    )
    return {
        "train_bound": on_train["elbo"],
        "test_bound": on_test["elbo"],
        "test_standard_error": on_test["elbo_standard_error"],
        "train_minus_test": on_train["elbo"] - on_test["elbo"],
        "test_kl": on_test["kl"],
    }


def _print(rows: list[dict[str, Any]]) -> None:
    print("ELBO at the last epoch, nats per example:")
    print(
        f"{'N_z':>5}  {'algorithm':<12}{'train':>10}{'test':>10}{'s.e.':>8}"
        f"{'difference':>12}{'seconds':>9}"
    )
    for row in rows:
        print(
            f"{row['num_latents']:>5}  {row['algorithm']:<12}"
            f"{row['train_bound']:10.3f}{row['test_bound']:10.3f}"
            f"{row['test_standard_error']:8.3f}{row['train_minus_test']:12.3f}"
            f"{row['seconds']:9.0f}"
        )


if __name__ == "__main__":
    cli.run(Config, main)
