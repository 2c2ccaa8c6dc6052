r"""The plane of a model with two latents, and samples by N_z: Figures 4 and 5 of AEVB.

    python -m experiments.manifold --flagfile=experiments/flags/manifold/quick.flags

Kingma & Welling 2013 (arXiv:1312.6114). Trains, or takes up, one run of
`experiments.train` for each number of latents, equal in all else: --run_flagfile names
a flag file of it, --run_flags adds to that. Draws the means of p(x | z) of the model
with N_z = 2 over a grid of the unit square, taken through the inverse CDF of the prior
(manifold.png, .npz), and the means of p(x | z) at z from the prior for each N_z side by
side (samples.png, .npz); manifold.json has the test bound of each.

The runs of AEVB that `experiments.bound_curves` has trained in the same --workdir with
the same flags are taken up.
"""

import dataclasses
from typing import Any

import jax

from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.measures import pictures, whole_run
from experiments.runs import comparison, trained_runs
from vae_jax.plots import files, images

ROWS = COLUMNS = 10  # samples of each model
PLANE = 2  # the number of latents that has a manifold to draw


@dataclasses.dataclass(frozen=True)
class Config(comparison.ComparisonFlags):
    """One pair of figures; every field is a flag."""

    workdir: str = cli.flag("runs/manifold", "Where the runs are written.")
    latents: tuple[int, ...] = cli.flag(
        (2, 5, 10, 20), "Latent dimensions, N_z; 2 among them.", least=1
    )
    num_epochs: int = cli.flag(
        0, "Passes over the training split; 0: the flag file's.", least=0
    )
    manifold_size: int = cli.flag(20, "Tiles a side of the manifold.", least=1)
    seed: int = cli.flag(0, "Seed of the samples.", least=0)

    def refuse(self) -> None:
        """Refuses what no figure can be made of.

        Raises:
            ValueError: naming the flag and its value.
            UsageError: for --run_flagfile and --run_flags, as `ComparisonFlags.base`.
        """
        if PLANE not in self.latents:
            raise ValueError(
                f"--latents must hold {PLANE}, the manifold's, got {self.latents}"
            )
        run = train_configs(self)[0]
        if run.posterior == "bernoulli":
            raise ValueError("--posterior=bernoulli has no plane to draw")
        if not run.has_standard_prior:
            raise ValueError(
                "the manifold lies on quantiles of a standard normal: not --prior="
                f"{run.prior}, not --ladder"
            )


def train_configs(config: Config) -> list[TrainConfig]:
    """One run for each number of latents.

    Raises:
        ValueError: as `comparison.runs`.
        UsageError: as `ComparisonFlags.base`.
    """
    return comparison.runs(
        config.base(),
        workdir=config.workdir,
        data_dir=config.data_dir,
        algorithms=["aevb"],
        latents=config.latents,
        num_epochs=config.num_epochs,
    )


def trained(run_config: TrainConfig) -> tuple[trained_runs.Trained, dict[str, Any]]:
    """A model, trained or taken up, and what `train` says of it.

    Raises:
        UsageError: as `whole_run.train`, or if observations are no images.
    """
    run, saved = whole_run.train(run_config)
    model = trained_runs.of_run(run, saved, checkpoint="auto")
    if not model.is_image:
        raise cli.UsageError(
            f"observations of shape {model.data.x_shape} are no images to draw"
        )
    return model, report.read_json(run.workdir / "result.json")


def main(config: Config) -> int:
    """Trains, samples, draws and writes."""
    folder = report.claim(config.workdir)
    sheets, results, limits = {}, {}, (0.0, 1.0)
    for run_config in train_configs(config):
        num_latents = run_config.num_latents
        model, results[num_latents] = trained(run_config)
        limits = pictures.limits(model)
        key = jax.random.fold_in(jax.random.key(config.seed), num_latents)
        samples = pictures.samples(key, model, num=ROWS * COLUMNS)
        sheets[num_latents] = samples["mean"]
        if num_latents == PLANE:
            plane = pictures.manifold(model, size=config.manifold_size)
            with cli.user_errors():
                pictures.save_arrays(folder / "manifold.npz", plane)
                pictures.draw_manifold(plane, folder / "manifold.png", limits=limits)
    sizes = ", ".join(map(str, sheets))
    figure = images.groups(
        [sheet.reshape(ROWS, COLUMNS, *sheet.shape[1:]) for sheet in sheets.values()],
        title=f"Samples (means of p(x | z)), N_z = {sizes} from left to right",
        limits=limits,
    )
    arrays = {f"mean_{num_latents}": sheet for num_latents, sheet in sheets.items()}
    with cli.user_errors():
        pictures.save_arrays(folder / "samples.npz", arrays)
        files.save(figure, folder / "samples.png")
    report.write(folder / "manifold.json", config, {"runs": results})
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
