r"""Draws from a trained model, and what it makes of the space between its codes.

    python -m experiments.generate --workdir=runs/digits
    python -m experiments.generate --workdir=runs/digits --sampler=mixture --quality

Writes to the workdir, as .npz and, for images, as .png: samples (z from the prior, then
x from the decoder: z, mean, x), with two latents the manifold, interpolation (linear
and spherical, between the codes of pairs of --images) and traversal (the latents of
greatest KL, each moved by itself).

--sampler=mixture draws z from a mixture of normals fitted to the codes of training rows
instead, and adds _mixture to the names of samples.

--quality prints how draws of x compare with test rows, in pixels and in codes, and
writes it to quality.json: the distance to the nearest training row beside that of test
rows (copies lie closer; Meehan et al. 2020, arXiv:2004.05675), improved precision and
recall (Kynkäänniemi et al. 2019, arXiv:1904.06991) and the squared maximum mean
discrepancy with a Gaussian kernel as wide as the median distance (Gretton et al. 2012).
"""

import dataclasses
import pathlib

import jax
from jaxtyping import Array

from experiments.command import cli, report
from experiments.generate import paths, quality, samplers
from experiments.measures import pictures
from experiments.runs import trained_runs
from vae_jax.types import PRNGKey

DEFAULT_IMAGES = 10


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.WorkdirFlags):
    """One set of samples; every field is a flag."""

    num: int = cli.flag(100, "Samples.")
    sampler: str = cli.flag(
        "prior",
        "Where z comes from: p(z), or a mixture fitted to the codes.",
        choices=("prior", "mixture"),
    )
    num_components: int = cli.flag(10, "Components of --sampler=mixture.")
    num_fitted: int = cli.flag(
        10_000, "Training rows that the mixture is fitted to; 0 for all."
    )
    manifold_size: int = cli.flag(20, "Tiles a side of the manifold.")
    split: str = cli.flag("", "Split of --images; empty: test, or train without one.")
    images: tuple[int, ...] = cli.flag(
        (),
        "Rows of the split to go between, first to second, third to fourth, ...; the "
        "first is traversed. Empty: the first ten.",
    )
    num_steps: int = cli.flag(10, "Images on a path, both ends included.")
    num_traversed: int = cli.flag(10, "Latents that are traversed, at most.")
    quality: bool = cli.flag(False, "Compare draws of x with test rows.")
    quality_rows: int = cli.flag(2000, "Draws and test rows that are compared.")
    num_neighbors: int = cli.flag(3, "Neighbors of precision and recall, k.")
    seed: int = cli.flag(0, "Seed of the samples.")

    def __post_init__(self) -> None:
        """Refuses numbers that make no samples.

        Raises:
            ValueError: naming the flag and its value.
        """
        for name in (
            *("num", "manifold_size", "num_components", "num_traversed"),
            *("quality_rows", "num_neighbors"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name} must be positive, got {getattr(self, name)}"
                )
        if self.num_steps < 2:
            raise ValueError(f"--num_steps must be at least 2, got {self.num_steps}")
        if self.num_fitted < 0:
            raise ValueError(
                f"--num_fitted must not be negative, got {self.num_fitted}"
            )
        if len(self.images) % 2:
            raise ValueError(
                f"--images must be pairs of rows, got {len(self.images)} of them"
            )
        if self.split not in ("", "train", "valid", "test"):
            raise ValueError(f"--split must be train, valid or test, got {self.split}")


def main(config: Config) -> int:
    """Samples, draws and writes."""
    trained = config.load()
    folder = pathlib.Path(config.workdir).expanduser()
    joined = images_to_join(config, trained)
    key_fit, key_samples, key_paths, key_quality = jax.random.split(
        jax.random.key(config.seed), 4
    )
    sample_z, source, suffix = samplers.of_prior(trained), "the prior", ""
    if config.sampler == "mixture":
        sample_z = samplers.of_mixture(
            key_fit,
            trained,
            num_components=config.num_components,
            num_rows=config.num_fitted,
        )
        source, suffix = "a mixture fitted to codes", "_mixture"
    arrays = pictures.samples(key_samples, trained, num=config.num, sample_z=sample_z)
    drawable, limits = pictures.is_image(trained), pictures.limits(trained)
    written = [f"samples{suffix}"]
    with cli.user_errors():
        pictures.save_arrays(folder / f"samples{suffix}.npz", arrays)
        if drawable:
            path = folder / f"samples{suffix}.png"
            pictures.draw_samples(arrays, path, limits=limits, source=source)
        if pictures.has_manifold(trained):
            tiles = pictures.manifold(trained, size=config.manifold_size)
            pictures.save_arrays(folder / "manifold.npz", {"mean": tiles})
            pictures.draw_manifold(tiles, folder / "manifold.png", limits=limits)
            written.append("manifold")
    if joined is not None:
        written += explore(
            key_paths, config, trained, joined, folder, drawable=drawable
        )
    kinds = ".npz and .png" if drawable else ".npz: no images, not drawn"
    print(f"written to {folder}: {', '.join(written)} ({kinds})")
    if config.quality:
        compare(key_quality, config, trained, sample_z, folder, source=source)
    return 0


def images_to_join(config: Config, trained: trained_runs.Trained) -> Array | None:
    """The images whose codes are gone between, in pairs; None where there are not two.

    Raises:
        UsageError: as `paths.chosen`.
    """
    split = config.split or trained_runs.test_split(trained)
    size = len(getattr(trained.data.prepared, split))
    places = config.images or tuple(range(min(DEFAULT_IMAGES, size) // 2 * 2))
    if not places:
        print(f"the {split} split has no two rows to go between")
        return None
    return paths.chosen(trained, split=split, places=places)


def explore(
    key: PRNGKey,
    config: Config,
    trained: trained_runs.Trained,
    data: Array,
    folder: pathlib.Path,
    *,
    drawable: bool,
) -> list[str]:
    """Writes paths between codes and along latents; the names of what was written."""
    key_between, key_along = jax.random.split(key)
    found = {
        "traversal": paths.along(
            key_along,
            trained,
            data[0],
            num_steps=config.num_steps,
            num=config.num_traversed,
        )
    }
    if trained.config.posterior == "bernoulli":
        print("codes of bits have nothing between them: no interpolation")
    else:
        found["interpolation"] = paths.between(
            key_between, trained, data, num_steps=config.num_steps
        )
    with cli.user_errors():
        for name, arrays in found.items():
            pictures.save_arrays(folder / f"{name}.npz", arrays)
        if drawable:
            limits = pictures.limits(trained)
            path = folder / "traversal.png"
            paths.draw_along(found["traversal"], path, limits=limits)
            if "interpolation" in found:
                paths.draw_between(found["interpolation"], folder, limits=limits)
    return list(found)


def compare(
    key: PRNGKey,
    config: Config,
    trained: trained_runs.Trained,
    sample_z: samplers.Sampler,
    folder: pathlib.Path,
    *,
    source: str,
) -> None:
    """Prints and writes how draws of x compare with test rows."""
    result = quality.measured(
        key,
        trained,
        sample_z,
        num_rows=config.quality_rows,
        num_neighbors=config.num_neighbors,
    )
    print(quality.table(result, source=source))
    name = "quality.json" if config.sampler == "prior" else "quality_mixture.json"
    report.write(folder / name, config, result)
