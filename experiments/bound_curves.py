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
from typing import Any, NamedTuple

import jax

from experiments.choices import rows
from experiments.choices.config import Config as TrainConfig
from experiments.choices.densities import LIKELIHOODS
from experiments.command import cli, report
from experiments.command.report import field
from experiments.measures import measure, validation
from experiments.runs import comparison, protocol, runs, trained_runs
from vae_jax.plots import curves

CURVE = "bound_curve.json"
COLUMNS = [
    field("N_z", "num_latents", width=5),
    field("algorithm", "algorithm", width=12),
    field("train", "train_bound", ".3f"),
    field("test", "test_bound", ".3f"),
    field("s.e.", "test_standard_error", ".3f", 7),
    field("difference", "train_minus_test", ".3f", 11),
    field("seconds", "seconds", ".0f", 8),
]


@dataclasses.dataclass(frozen=True)
class Config(comparison.ComparisonFlags):
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/bound_curves", "Where the runs are written.")
    wake_sleep_flags: str = cli.flag(
        "", "More flags of experiments.train for the runs of wake-sleep alone."
    )
    latents: tuple[int, ...] = cli.flag(
        (2, 5, 10, 20), "Latent dimensions, N_z.", empty=False
    )
    algorithms: tuple[str, ...] = cli.flag(
        ("aevb", "wake_sleep"), "Their names.", empty=False
    )
    num_epochs: int = cli.flag(0, "Passes over the data; 0: the flag file's.", least=0)
    points: int = cli.flag(4, "Points of a curve for each tenfold of epochs.", least=1)
    eval_samples: int = cli.flag(10, "Samples of z per row of each bound.", least=1)
    num_train_images: int = cli.flag(
        0, "Training rows of the bound, from the start; 0 for all.", least=0
    )

    def refuse(self) -> None:
        """Refuses runs that are none, or stop early."""
        for run in train_configs(self):
            if run.early_stopping:
                raise ValueError(
                    "a curve goes on to its last epoch: its runs cannot have "
                    f"--early_stopping={run.early_stopping}"
                )


class Bounds(NamedTuple):
    """What is measured at a point, nats per example."""

    train_bound: float
    test_bound: float
    test_standard_error: float
    train_minus_test: float
    test_kl: float


def train_configs(config: Config) -> list[TrainConfig]:
    """Every run of the comparison, the algorithms of one N_z side by side.

    Raises:
        ValueError: as `comparison.runs`.
        UsageError: as `ComparisonFlags.base`.
    """
    by_algorithm = [
        comparison.runs(
            config.base(config.wake_sleep_flags if algorithm == "wake_sleep" else ""),
            workdir=config.workdir,
            data_dir=config.data_dir,
            algorithms=(algorithm,),
            latents=config.latents,
            num_epochs=config.num_epochs,
        )
        for algorithm in config.algorithms
    ]
    return [run for same_size in zip(*by_algorithm, strict=True) for run in same_size]


def main(config: Config) -> int:
    """Trains, measures, prints, writes and draws."""
    folder, configs = report.claim(config.workdir), train_configs(config)
    stated = about(config, configs[0])
    measurement = comparison.Measurement(
        CURVE,
        config.some(("eval_samples", "num_train_images")),
        lambda run, saved: _measured(config, run, saved),
        shown=("train_bound", "test_bound"),
    )
    results, panels = [], {}
    for run in configs:
        points = comparison.curve(
            run, measurement, points=config.points, validation=validation.build
        )
        names = {"num_latents": run.num_latents, "algorithm": run.algorithm}
        results.append(names | points[-1] | {"curve": points})
        panels.setdefault(f"N_z = {run.num_latents}", {})[run.algorithm] = tuple(
            [point[name] for point in points]
            for name in ("samples", "train_bound", "test_bound")
        )
    print("ELBO at the last epoch, nats per example:")
    print(report.table(COLUMNS, results))
    figure = curves.train_and_test(
        panels,
        x_label="training samples evaluated",
        y_label=f"bound on the {stated['protocol']['quantity']}, nats",
    )
    result, pictures = stated | {"runs": results}, {"bound_curves": figure}
    report.write(folder / "bound_curves.json", config, result, pictures)
    return 0


def about(config: Config, run_config: TrainConfig) -> dict[str, Any]:
    """The protocol of all runs, and what bounds a density.

    Raises:
        UsageError: for data that give no train and test bound.
    """
    with cli.user_errors():
        data = protocol.load(run_config)
        protocol.check_rows(data)
        protocol.check_rows(
            data, config.num_train_images, flag="num_train_images", splits=("train",)
        )
        protocol.check_likelihood(run_config, data)
    has_floor = "min_std" in rows.read_by(LIKELIHOODS[run_config.observed])
    return {
        "protocol": protocol.stamp(run_config, data),
        "min_log_std": math.log(run_config.min_std) if has_floor else None,
        "first_run": dataclasses.asdict(run_config),
    }


def _measured(config: Config, run: runs.Run, saved: runs.Saved) -> comparison.Point:
    """Both bounds, by one key for all points."""
    trained = trained_runs.of_run(run, saved, checkpoint="last")
    keys = jax.random.split(jax.random.fold_in(run.keys.evaluation, 0))
    train, test = (
        measure.bound(
            key,
            trained,
            split=split,
            num_samples=config.eval_samples,
            num_images=num_images,
        )
        for key, split, num_images in zip(
            keys, ("train", "test"), (config.num_train_images, 0), strict=True
        )
    )
    return Bounds(
        train["elbo"],
        test["elbo"],
        test["elbo_standard_error"],
        train["elbo"] - test["elbo"],
        test["kl"],
    )._asdict()


if __name__ == "__main__":
    cli.run(Config, main)
