"""A trained model from a workdir, and the rows that it is measured on."""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from experiments.choices import densities, models
from experiments.choices.config import Config
from experiments.command import cli
from experiments.runs import protocol, rundir, runs
from vae_jax.data import sources
from vae_jax.training import parallel
from vae_jax.types import Model, Params


class Trained(NamedTuple):
    """A model with the parameters of one checkpoint."""

    config: Config
    data: protocol.Dataset
    model: Model
    params: Params
    step: int
    mesh: Mesh | None = None  # devices that share the rows that are evaluated

    @property
    def has_real_latents(self) -> bool:
        """Whether z is real: else it is bits, or of categories."""
        return densities.traits(self.model).continuous

    @property
    def num_latents(self) -> int:
        """Entries of z, of all its layers."""
        key = jax.eval_shape(jax.random.key, 0)
        prior = self.model.generative.sample_prior
        return jax.eval_shape(prior, key, self.params).shape[0]


@dataclasses.dataclass(frozen=True)
class WorkdirFlags(cli.Flags):
    """The flags of a command that takes a trained model from a workdir."""

    workdir: str = cli.flag("runs/digits", "Folder of a training run.")
    checkpoint: str = cli.flag(
        "auto",
        "best by validation bound, or last; auto: best if the run stops early.",
        choices=("auto", "best", "last"),
    )
    data_dir: str = cli.flag("", "Data folder, if not the run's own.")
    member: int = cli.flag(
        0, "Which of the runs that trained together (--num_seeds, --sweep), from 0."
    )
    num_devices: int = cli.flag(
        1, "Devices that share the rows; 0 for all there are.", display=True, least=0
    )

    def load(self, workdir: str | pathlib.Path = "") -> Trained:
        """The model of --member in this workdir, or in another by the same flags.

        Raises:
            UsageError: as `load`; if there is no such member.
        """
        together = self.load_all(workdir)
        if not 0 <= self.member < len(together):
            raise cli.UsageError(
                f"--member={self.member}: {workdir or self.workdir} holds "
                f"{len(together)} runs, from 0 on"
            )
        return together[self.member]

    def load_all(self, workdir: str | pathlib.Path = "") -> list[Trained]:
        """The model of every run that trained together in the workdir.

        Raises:
            UsageError: as `load`.
        """
        return load(
            workdir or self.workdir,
            checkpoint=self.checkpoint,
            data_dir=self.data_dir,
            num_devices=self.num_devices,
        )


def load(
    workdir: str | pathlib.Path,
    *,
    checkpoint: str,
    data_dir: str = "",
    num_devices: int = 1,
) -> list[Trained]:
    """The model of a workdir, or of each of the runs that trained together there.

    Args:
        workdir: the folder of a training run.
        checkpoint: "best" (by validation bound), "last", or "auto": best if the run
            stops early, else last.
        data_dir: overrides the run's own, for a workdir carried elsewhere.
        num_devices: devices that share the rows that are evaluated, all for 0.

    Raises:
        UsageError: if there is no run, no checkpoint or no data.
    """
    folder = pathlib.Path(workdir).expanduser()
    config = rundir.read_config(folder)
    run = runs.build(
        dataclasses.replace(
            config,
            workdir=str(folder),
            data_dir=data_dir or config.data_dir,
            num_devices=1,
        )
    )
    with cli.user_errors():
        run = run._replace(mesh=parallel.data_mesh(num_devices))
    saved = runs.restore(run)
    if saved is None:
        raise cli.UsageError(f"{folder} holds no checkpoint yet: train it first")
    return of_runs(run, saved, checkpoint=checkpoint)


def of_runs(run: runs.Run, saved: runs.Saved, *, checkpoint: str) -> list[Trained]:
    """The best or the last parameters of each run; "auto" as in `load`.

    Raises:
        UsageError: if the best are wanted and no validation bound was taken.
    """
    if not run.config.trains_many:
        return [of_run(run, saved, checkpoint=checkpoint)]
    together = []
    for i, config in enumerate(run.members):
        parts = models.build(config, run.data.x_shape)  # some draw by --seed
        alone = run._replace(config=config, parts=parts)
        together.append(of_run(alone, runs.member(saved, i), checkpoint=checkpoint))
    return together


def of_run(run: runs.Run, saved: runs.Saved, *, checkpoint: str) -> Trained:
    """The best or the last parameters of a run; "auto" as in `load`."""
    if checkpoint == "auto":
        checkpoint = "best" if run.config.early_stopping else "last"
    if checkpoint == "best" and int(saved.best_step) == 0:
        raise cli.UsageError(
            "--checkpoint=best needs a validation bound, and this run took none"
        )
    params, step = {
        "best": (saved.best, saved.best_step),
        "last": (saved.parameters, saved.run.step),
    }[checkpoint]
    return Trained(run.config, run.data, run.model, params, int(step), run.mesh)


def rows(trained: Trained, *, split: str, num_images: int = 0) -> Array:
    """Rows of a split on the device, the first num_images of them if not 0.

    The training rows of a dynamically binarized data set are raw, on another scale:
    they are drawn once here, from a fixed key.

    Raises:
        ValueError: if the split is empty or holds fewer rows.
    """
    prepared = trained.data.prepared
    num = _num_rows(trained, split, num_images)
    array = jnp.asarray(getattr(prepared, split)[:num])
    if split == "train" and trained.config.binarization == "dynamic":
        key = jax.random.key(trained.config.data_seed)
        return prepared.take(key, array, jnp.arange(len(array))).x
    return array


def spread_rows(trained: Trained, *, split: str, num_images: int = 0) -> Array:
    """Rows at equal distances in a split, num_images of them if not 0.

    Some splits are sorted: the first hundreds of the test rows of `binarized_mnist`
    are of one class.

    Raises:
        ValueError: as `rows`.
    """
    num = _num_rows(trained, split, num_images)
    whole = rows(trained, split=split)
    return whole[np.arange(num) * len(whole) // num]


def _num_rows(trained: Trained, split: str, num_images: int) -> int:
    """num_images, or all rows of a split for 0, checked against what it holds."""
    sizes = {s: len(getattr(trained.data.prepared, s)) for s in sources.SPLITS}
    if not sizes[split]:
        others = ", ".join(name for name, size in sizes.items() if size)
        raise ValueError(
            f"{trained.config.dataset} has no rows in its {split} split: {others} may "
            "be chosen"
        )
    if num_images > sizes[split]:
        raise ValueError(
            f"--num_images={num_images} is more than the {sizes[split]} rows of the "
            f"{split} split of {trained.config.dataset}: give as many or fewer"
        )
    return num_images or sizes[split]


def test_split(trained: Trained) -> str:
    """The split that results are reported on: train where there is no test."""
    return "test" if len(trained.data.prepared.test) else "train"
