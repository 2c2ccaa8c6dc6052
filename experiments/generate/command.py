r"""Draws from a trained model, and what it makes of the space between its codes.

    python -m experiments.generate --workdir=runs/digits
    python -m experiments.generate --workdir=runs/digits --sampler=mixture --quality

Writes to the workdir, as .npz and, for images, as .png (samples of a table as .csv of
its own types): samples (z from the prior, then
x from the decoder: z, mean, x), with two latents the manifold, interpolation (linear
and spherical, between the codes of pairs of --images) and traversal (the latents of
greatest KL, each moved by itself).

Of a run of --condition=labels, samples have a label a row and one z a column, or are of
--label alone; of --condition=context each is given that of a test row. What goes
between rows is left out.

--temperature=0.7 scales the noise of the prior; of a ladder a number for each layer may
stand there, from x upward. --by_layer adds a picture of what each layer draws: its rows
have none of one sample's layers in common, then the top one, then one more.

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
from collections.abc import Callable, Collection
from functools import partial
from typing import ClassVar, NamedTuple

import jax
from jaxtyping import Array

from experiments.choices import densities
from experiments.command import cli, report
from experiments.generate import layers, paths, quality, rows, samplers
from experiments.measures import pictures
from experiments.runs import trained_runs
from vae_jax.data import csv_tables, sources
from vae_jax.types import PRNGKey

DEFAULT_IMAGES = 10


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.WorkdirFlags):
    """One set of samples; every field is a flag."""

    TAKES_CONTEXT: ClassVar = True
    num: int = cli.flag(
        100, "Samples; of a run given labels shared out among them.", least=1
    )
    label: str = cli.flag(
        "",
        "Of a run given labels: of all samples, by the name of its class or else its "
        "number; empty: a row of each.",
    )
    sampler: str = cli.flag(
        "prior",
        "Where z comes from: p(z), or a mixture fitted to the codes.",
        choices=("prior", "mixture"),
    )
    num_components: int = cli.flag(10, "Components of --sampler=mixture.", least=1)
    num_fitted: int = cli.flag(
        10_000, "Training rows that it is fitted to; 0: all.", least=0
    )
    temperature: tuple[float, ...] = cli.flag(
        (),
        "What the noise of p(z) is multiplied by; for a ladder one number, or one for "
        "each layer from x upward. Empty: 1.",
        least=0,
    )
    by_layer: bool = cli.flag(
        False, "Of a ladder: samples below one layer that stays, two, and so on."
    )
    manifold_size: int = cli.flag(20, "Tiles a side of the manifold.", least=1)
    split: str = cli.flag(
        "",
        "Split of --images; empty: test, or train without one.",
        choices=("", *sources.SPLITS),
    )
    images: tuple[int, ...] = cli.flag(
        (),
        "Rows of the split to go between, first to second, third to fourth, ...; the "
        "first is traversed. Empty: the first ten.",
    )
    num_steps: int = cli.flag(10, "Images on a path, both ends included.", least=2)
    num_traversed: int = cli.flag(10, "Latents that are traversed, at most.", least=1)
    quality: bool = cli.flag(False, "Compare draws of x with test rows.")
    quality_rows: int = cli.flag(2000, "Draws and test rows compared.", least=1)
    num_neighbors: int = cli.flag(3, "Neighbors of precision and recall, k.", least=1)
    seed: int = cli.flag(0, "Seed of the samples.", least=0)

    def refuse(self) -> None:
        """Refuses images that are no pairs, and numbers that nothing reads."""
        self.refuse_unread(
            "sampler",
            (self.sampler,),
            {"num_components": ("mixture",), "num_fitted": ("mixture",)},
        )
        self.refuse_unread(
            "quality",
            (str(self.quality).lower(),),
            {"quality_rows": ("true",), "num_neighbors": ("true",)},
        )
        if self.temperature and self.sampler != "prior":
            raise ValueError(
                f"--temperature is of --sampler=prior, not of {self.sampler}"
            )
        if self.by_layer and self.sampler != "prior":
            raise ValueError(f"--by_layer is of --sampler=prior, not of {self.sampler}")
        if len(self.images) % 2:
            raise ValueError(
                f"--images must be pairs of rows, got {len(self.images)} of them"
            )


class Drawing(NamedTuple):
    """Arrays, and the function (arrays, path, limits=) that draws them.

    Attributes:
        arrays: what is drawn.
        draw: the function.
        parts: what the names of several pictures end in.
    """

    arrays: pictures.Arrays
    draw: Callable[..., None]
    parts: Collection[str] = ()


class Source(NamedTuple):
    """Where the latents of samples come from.

    Attributes:
        sample_z: key -> z; None: the prior itself.
        said: of it, in captions and tables.
        part: of it, in the names of files.
    """

    sample_z: samplers.Sampler | None
    said: str
    part: str


def main(config: Config) -> int:
    """Samples, draws and writes."""
    trained, pairs = config.load(), None
    if trained.at_context is not None or config.label:
        _check_context(config, trained)
    else:
        pairs = images_to_join(config, trained)
    of_quality = {
        "num_rows": config.quality_rows,
        "num_neighbors": config.num_neighbors,
    }
    if config.quality:
        quality.check(trained, **of_quality)  # before anything is sampled
    if config.label:
        trained = trained.at_label(config.label)
    root = jax.random.key(config.seed)
    key_fit, key_samples, key_paths, key_quality = jax.random.split(root, 4)
    source = source_of(key_fit, config, trained)
    drawings = draws(key_samples, config, trained, source)
    if config.by_layer:
        # A key of its own, so that all else draws what it drew.
        key_layers = jax.random.fold_in(root, 4)
        of_layers = layers.sampled(key_layers, trained, config.temperature)
        draw_layers = partial(layers.draw, source=source.said)
        path = config.result_path(trained, "by_layer", source.part)
        drawings[path] = Drawing(of_layers, draw_layers)
    if pairs is not None:
        for name, drawing in explore(key_paths, config, trained, pairs).items():
            drawings[config.result_path(trained, name)] = drawing
    write(config, trained, drawings)
    if config.quality:
        result = quality.measured(key_quality, trained, source.sample_z, **of_quality)
        print(quality.table(result, source=source.said))
        parts = "quality", source.part, config.part("quality_rows")
        path = config.result_path(trained, *parts).with_suffix(".json")
        report.write(path, config, result._asdict())
    return 0


def source_of(key: PRNGKey, config: Config, trained: trained_runs.Trained) -> Source:
    """What --sampler and --temperature ask for.

    Raises:
        UsageError: as `samplers.of_mixture` and `samplers.tempered`.
    """
    of_label = f", label {config.label}" if config.label else ""
    if config.sampler == "mixture":
        sizes = {
            "num_components": config.num_components,
            "num_rows": config.num_fitted,
        }
        sample_z = samplers.of_mixture(key, trained, **sizes)
        return Source(sample_z, "a mixture fitted to codes" + of_label, "mixture")
    if not config.temperature:
        return Source(None, "the prior" + of_label, "")
    numbers = [f"{number:g}" for number in config.temperature]
    return Source(
        samplers.tempered(trained, config.temperature),
        f"the prior at temperature {', '.join(numbers)}{of_label}",
        "_".join(["temperature", *numbers]),
    )


def draws(
    key: PRNGKey, config: Config, trained: trained_runs.Trained, source: Source
) -> dict[pathlib.Path, Drawing]:
    """Samples, and the manifold of two latents, by the paths that they go to."""
    label = f"label_{trained.number_of(config.label)}" if config.label else ""
    sample, draw = pictures.sampler(trained)
    arrays = sample(key, trained, num=config.num, sample_z=source.sample_z)
    path = config.result_path(
        trained, "samples", source.part, label, config.part("num")
    )
    drawings = {path: Drawing(arrays, partial(draw, source=source.said))}
    if pictures.has_manifold(trained):
        plane = pictures.manifold(trained, size=config.manifold_size)
        caption = f"label {config.label}" if config.label else ""
        path = config.result_path(trained, "manifold", label)
        drawings[path] = Drawing(
            plane, partial(pictures.draw_manifold, caption=caption)
        )
    return drawings


def write(
    config: Config,
    trained: trained_runs.Trained,
    drawings: dict[pathlib.Path, Drawing],
) -> None:
    """Writes arrays, pictures of what are images, and the samples of a table as one.

    Raises:
        UsageError: for a folder that cannot be written to.
    """
    drawable, limits = trained.is_image, pictures.limits(trained)
    with cli.user_errors():
        for path, (arrays, draw, _) in drawings.items():
            pictures.save_arrays(path.with_suffix(".npz"), arrays)
            if drawable:
                draw(arrays, path.with_suffix(".png"), limits=limits)
        if csv_tables.observed(trained.data.source.columns):
            path, (arrays, _, _) = next(iter(drawings.items()))
            columns, cells = rows.of_table(trained, arrays, label=config.label)
            csv_tables.write(path.with_suffix(".csv"), columns, cells)
            print(f"written to {path}.csv: the draws of x as rows of the table")
    kinds = ".npz and .png" if drawable else ".npz: no images, not drawn"
    names = ", ".join(path.name for path in drawings)
    for path, drawing in drawings.items():
        if drawable and drawing.parts:
            endings = " and ".join(f"_{part}.png" for part in drawing.parts)
            kinds += f", of {path.name} {endings}"
    print(
        f"written to {trained.config.directory()}: {names} ({kinds}); {trained.moment}"
    )


def _check_context(config: Config, trained: trained_runs.Trained) -> None:
    """Refuses what codes rows, which have contexts of their own.

    Raises:
        UsageError: naming the flag.
    """
    asked = {
        "--images": bool(config.images),
        "--sampler=mixture": config.sampler == "mixture",
        "--quality": config.quality,
    }
    for flag in (name for name, is_asked in asked.items() if is_asked):
        raise cli.UsageError(
            f"{flag} codes rows, each with a context of its own, and --workdir="
            f"{trained.config.workdir} is a run of --condition="
            f"{trained.config.condition}: leave it out"
        )


def images_to_join(config: Config, trained: trained_runs.Trained) -> Array | None:
    """The images whose codes are gone between, in pairs; None where there are not two.

    Raises:
        UsageError: as `paths.chosen`.
    """
    split = config.split or trained_runs.test_split(trained)
    size = min(DEFAULT_IMAGES, len(trained.stored(split)))
    places = config.images or tuple(range(size // 2 * 2))
    if not places:
        print(f"the {split} split has no two rows to go between")
        return None
    return paths.chosen(trained, split=split, places=places)


def explore(
    key: PRNGKey, config: Config, trained: trained_runs.Trained, pairs: Array
) -> dict[str, Drawing]:
    """Paths along latents and between codes."""
    if densities.traits(trained.model).spherical:
        print("unit vectors move neither alone nor along lines: no paths of latents")
        return {}
    key_between, key_along = jax.random.split(key)
    num, num_steps = config.num_traversed, config.num_steps
    along = paths.along(key_along, trained, pairs[0], num=num, num_steps=num_steps)
    drawings = {"traversal": Drawing(along, paths.draw_along)}
    if not trained.has_real_latents:
        print("codes that are not real have nothing between them: no interpolation")
        return drawings
    between = paths.between(key_between, trained, pairs, num_steps=num_steps)
    return drawings | {
        "interpolation": Drawing(between, paths.draw_between, paths.KINDS)
    }
