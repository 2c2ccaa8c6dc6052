"""What a model carried elsewhere says of itself, and the model rebuilt from that.

from experiments.export import cards
model, params = cards.load_model("model.safetensors")
"""

import dataclasses
import math
import os
from typing import Any

import jax

from experiments.choices import models
from experiments.choices.config import Config
from experiments.command import cli, report
from experiments.runs import scales, trained_runs
from vae_jax import artifacts
from vae_jax.data import csv_tables, sources
from vae_jax.types import Model, Params

LOCAL = {"workdir", "data_dir"}  # flags that mean nothing on another machine


def of_trained(trained: trained_runs.Trained) -> artifacts.Card:
    """The card of a trained model.

    What x and z are, the flags that rebuild the records, the data's protocol, the step,
    what was measured of these parameters in the workdir, and the versions.

    Raises:
        UsageError: if a file of results is damaged.
    """
    config = trained.config
    left_out = cli.display_flags(Config) | LOCAL
    z = trained.model.generative.latents(trained.params)
    return {
        "x": observation(trained),
        "z": {"shape": list(z.shape)},
        "flags": {
            name: str(value) if value in (math.inf, -math.inf) else value
            for name, value in dataclasses.asdict(config).items()
            if name not in left_out
        },
        "protocol": trained.stamp(),
        "step": trained.step,
        "results": _results(trained),
        "environment": report.environment(),
    }


def load_model(path: str | os.PathLike[str]) -> tuple[Model, Params]:
    """The model and the parameters that `experiments.export --what=model` wrote.

    The parameters are those that were exported, bit for bit. No data are read.

    Raises:
        ValueError: as `artifacts.load_model`; a card without this library's flags.
        OSError: the file cannot be read.
    """

    def build(card: artifacts.Card) -> Model:
        try:
            flags, shape = card["flags"], card["x"]["shape"]
        except KeyError as error:
            raise ValueError(
                f"{path}: its card has no {error}, so that the records cannot be "
                "rebuilt: build them and call artifacts.load_model"
            ) from error
        return models.build(_config(path, flags), tuple(shape)).model

    return artifacts.load_model(path, build)


def observation(trained: trained_runs.Trained) -> dict[str, Any]:
    """What x is: its shape and dtype, and how it is made from what the data hold."""
    source = trained.data.source
    columns = csv_tables.observed(source.columns)
    of_table = {
        "columns": [column._asdict() for column in columns],
        "levels": "of the K levels of a column the k-th, from 0, is k / (K - 1)",
    }
    return {
        "shape": list(trained.data.x_shape),
        "dtype": str(rows(trained).dtype),
        "stored_dtype": str(source.train.dtype),
        "offset": source.offset,
        "divisor": source.divisor,
        "binarization": trained.config.settled.binarization,
        "holes": {"refuse": "none: NaN gives NaN", "nan": "NaN marks a missing entry"}[
            trained.config.missing
        ],
        "value": scales.reading(trained.config, source),
        **(of_table if columns else {}),
    }


def rows(trained: trained_runs.Trained) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one x."""
    stored = trained.data.source.train
    raw = jax.ShapeDtypeStruct(stored.shape[1:], stored.dtype)
    return jax.eval_shape(trained.data.prepared.value, raw)


def _results(trained: trained_runs.Trained) -> dict[str, dict[str, Any]]:
    """The figures in its workdir that are the model's own, by the file's name.

    Those of its step, its weights and, of runs that trained together, its run. Single
    figures and settings only: the workdir keeps the lists. A figure that is not finite
    is left out.
    """
    folder, member = trained.config.directory(), trained.member
    runs = [""] if member is None else ["", f"_member_{member}"]
    evaluations = [
        f"evaluation_{split}{checkpoint}{weights}{run}"
        for run in runs
        for split in sources.SPLITS
        for checkpoint in ("", "_best", "_last")
        for weights in ("", "_raw")
    ]
    results = {}
    for path in (folder / f"{name}.json" for name in ("result", *evaluations)):
        result = report.read_json(path) if path.is_file() else {}
        if member is not None and "runs" in result:
            result |= result["runs"][member]
        elif member is not None and result.get("member") != member:
            continue
        of_weights = result.get("protocol", {}).get("weights", trained.weights)
        if (result.get("step"), of_weights) == (trained.step, trained.weights):
            results[path.stem] = {
                name: value
                for name, value in result.items()
                if isinstance(value, str)
                or (isinstance(value, int | float) and math.isfinite(value))
            }
    return results


def _config(path: str | os.PathLike[str], flags: dict[str, Any]) -> Config:
    """The flags of a card.

    Raises:
        ValueError: if one is unknown, or has a value that it cannot have.
    """
    try:
        flags = cli.without_gone(Config, flags)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    fields = {field.name: field for field in dataclasses.fields(Config)}
    unknown = sorted(flags.keys() - fields.keys())
    if unknown:
        raise ValueError(
            f"{path}: its card has flags that this vae_jax does not know: "
            f"{', '.join(unknown)}"
        )
    readers = {tuple: tuple, float: float}  # an infinite one is written as text
    values: dict[str, Any] = {
        name: readers.get(type(fields[name].default), lambda value: value)(value)
        for name, value in flags.items()
    }
    return Config(**values)
