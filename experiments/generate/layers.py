"""Which layer of a ladder draws what: samples below layers that stay."""

import pathlib

import jax
import numpy as np

from experiments.command import cli
from experiments.generate import samplers
from experiments.measures import pictures
from experiments.measures.pictures import Arrays, Limits
from experiments.runs import trained_runs
from vae_jax import compilation
from vae_jax.plots import files, images
from vae_jax.types import PRNGKey

NUM_COLUMNS = 10


def sampled(
    key: PRNGKey, trained: trained_runs.Trained, temperatures: tuple[float, ...]
) -> Arrays:
    """Samples below layers of one z that stay: z and mean, [L + 1, C, ...] each.

    In the first row no layer stays, in each that follows one more, from the top: what
    differs within a row is what the layers below draw. A column has the same noise in
    all of its rows.

    Raises:
        UsageError: for one layer of latents, or as `samplers.tempered`.
    """
    hierarchy, depth = trained.model.hierarchy, len(trained.layer_sizes)
    if hierarchy is None or depth < 2:
        raise cli.UsageError("--by_layer is of --ladder, and this model has one layer")
    each = samplers.of_each_layer(trained, temperatures)
    key_z, key_columns = jax.random.split(key)
    z = compilation.program(samplers.tempered(trained, each))(key_z)
    redraw, params = hierarchy.redraw, trained.params

    def rows(key: PRNGKey) -> list[jax.Array]:
        return [
            redraw(jax.random.clone(key), params, z, depth - num, each)
            for num in range(depth + 1)
        ]

    keys = jax.random.split(key_columns, NUM_COLUMNS)
    zs = np.stack(compilation.program(jax.vmap(rows))(keys))
    return {"z": zs, "mean": pictures.decoded(trained, jax.numpy.asarray(zs))}


def draw(arrays: Arrays, path: pathlib.Path, *, limits: Limits, source: str) -> None:
    """A row of means for each number of layers that stay, none at the top."""
    depth = len(arrays["mean"]) - 1
    title = f"0 to {depth} upper layers stay, the lower are drawn from {source}"
    files.save(images.groups([arrays["mean"]], title=title, limits=limits), path)
