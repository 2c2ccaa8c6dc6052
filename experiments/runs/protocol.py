"""What a number means: the stamp that every result carries, and its names."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.choices import models
from experiments.choices.config import Config
from vae_jax.data import batches, sources

# Under a Bernoulli likelihood with real-valued targets the reconstruction is minus a
# cross-entropy, and nothing bounds a likelihood: the names then say so.
OF_CROSS_ENTROPY = {
    "bound": "cross_entropy_objective",
    "elbo": "cross_entropy_objective",
    "importance_bound": "importance_cross_entropy_objective",
    "log_joint": "cross_entropy_objective",
    "reconstruction": "cross_entropy",
}


class Dataset(NamedTuple):
    """The data of a run.

    Attributes:
        source: as loaded.
        prepared: as prepared for training.
        quantity: what log p(x | z) is on them, as the likelihood itself says.
    """

    source: sources.Source
    prepared: batches.Prepared
    quantity: str

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return self.source.train.shape[1:]

    @property
    def sha256(self) -> str:
        """What tells these rows from any others."""
        return sources.digest(self.source)

    def labeled(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Numbers of a model, in nats, under the names that are true of these data."""
        if self.quantity != "cross-entropy":
            return {**numbers}
        return {
            OF_CROSS_ENTROPY.get(name, name): -x if name == "reconstruction" else x
            for name, x in numbers.items()
        }


def load(config: Config) -> Dataset:
    """Loads and binarizes the data set of a configuration.

    Raises:
        ValueError: as `sources.load` and `batches.prepare`; values that the likelihood
            or another flag cannot read, or that --binarization has to choose for.
        FileNotFoundError: as `sources.load`.
    """
    source = sources.load(
        config.dataset,
        data_dir=config.data_dir or None,
        valid_size=None if config.valid_size < 0 else config.valid_size,
        missing=config.missing,
        data_seed=config.data_seed,
        image_size=config.image_size or None,
        channels=config.channels,
        skip_broken=config.skip_broken,
        data_range=config.data_range,
    )
    if config.num_train:
        source = _first_rows(source, config.num_train)
    _check_scale(source, config)
    prepared = batches.prepare(
        source,
        binarization=config.settled.binarization,
        data_seed=config.data_seed,
        missing_rate=config.missing_rate,
    )
    return Dataset(source, prepared, _quantity(config, source))


def value_ranges(source: sources.Source) -> dict[str, tuple[float, float]]:
    """Least and greatest value of each split that holds any."""
    found = {}
    for split in sources.SPLITS:
        rows = getattr(source, split)
        if not sources.missing_entries(rows).all():
            ends = np.nanmin(rows), np.nanmax(rows)
            low, high = ((float(end) + source.offset) / source.divisor for end in ends)
            found[split] = low, high
    return found


def stamp(config: Config, data: Dataset) -> dict[str, Any]:
    """The protocol behind a result: data, split sizes, binarization, likelihood."""
    source = data.source
    return {
        "dataset": source.name,
        "origin": source.origin,
        "sha256": data.sha256,
        "split_sizes": {s: len(getattr(source, s)) for s in sources.SPLITS},
        "binarization": config.settled.binarization,
        "data_seed": config.data_seed,
        "missing": config.missing,
        "missing_rate": config.missing_rate,
        "missing_share": {s: _share_missing(data, s) for s in sources.SPLITS},
        "likelihood": config.likelihood,
        "quantity": data.quantity,
        "units": "nats per example",
    }


def reading(config: Config, source: sources.Source) -> str:
    """How x is made of what is stored."""
    shifted = f"(stored + {source.offset:g})" if source.offset else "stored"
    value = f"{shifted} / {source.divisor:g}"
    return {
        "none": f"x = {value}",
        "threshold": f"x = 1 where {value} >= 0.5, else 0",
    }.get(config.settled.binarization, f"x = 1 with probability {value}, else 0")


def opening(config: Config, data: Dataset) -> str:
    """The line that a run begins with: what was read, and what its numbers are."""
    source = data.source
    sizes = ", ".join(
        f"{len(getattr(source, split))} {split}" for split in sources.SPLITS
    )
    low, high = np.transpose([*value_ranges(source).values()])
    ends = ((end * source.divisor - source.offset) for end in (low.min(), high.max()))
    stored = " to ".join(f"{end:g}" for end in ends)
    share = max(_share_missing(data, split) for split in sources.SPLITS)
    holes = f", up to {100 * share:.0f}% of a split missing" if share else ""
    shape = "x".join(map(str, data.x_shape))
    return (
        f"{source.name}: {sizes} rows of {shape} {source.train.dtype}, stored {stored}"
        f"{holes}; --binarization={config.settled.binarization}: "
        f"{reading(config, source)}; --likelihood={config.likelihood}: a row's number "
        f"is a {data.quantity} in nats"
    )


def _quantity(config: Config, source: sources.Source) -> str:
    """What log p(x | z) is on these data.

    Raises:
        ValueError: for values that the likelihood has no number for.
    """
    likelihood = models.likelihood(config, source.train.shape[1:])
    if config.settled.binarization != "none":
        return likelihood.quantity(np.array([0.0, 1.0]))
    of_splits = {
        likelihood.quantity((_distinct(rows) + source.offset) / source.divisor)
        for rows in (getattr(source, split) for split in sources.SPLITS)
        if rows.size
    }
    return "cross-entropy" if "cross-entropy" in of_splits else of_splits.pop()


def _distinct(rows: np.ndarray) -> np.ndarray:
    """The values of bytes, of which there are few; all values of anything else."""
    if rows.dtype != np.uint8:
        return rows
    flat, size = rows.reshape(-1), 1 << 18  # a piece: counting takes 8 bytes a byte
    pieces = (flat[at : at + size] for at in range(0, flat.size, size))
    return np.flatnonzero(sum(np.bincount(piece, minlength=256) for piece in pieces))


def check_likelihood(config: Config, data: Dataset) -> None:
    """Refuses targets that no Bernoulli model has a likelihood of.

    Raises:
        ValueError: for real-valued pixels under --likelihood=bernoulli.
    """
    if data.quantity == "cross-entropy":
        raise ValueError(
            f"real-valued pixels under --likelihood={config.likelihood} have no "
            "likelihood to bound: binarize them"
        )


def _first_rows(source: sources.Source, num_train: int) -> sources.Source:
    """The source with its first training rows alone.

    Raises:
        ValueError: if there are fewer.
    """
    if num_train > len(source.train):
        raise ValueError(
            f"--num_train={num_train} is more than the {len(source.train)} training "
            f"rows of {source.name}"
        )
    labels = dict(source.labels)
    if "train" in labels:
        labels["train"] = labels["train"][:num_train]
    return source._replace(train=source.train[:num_train], labels=labels)


def _share_missing(data: Dataset, split: str) -> float:
    """Entries of a split that are missing, of all of them; zero where it is empty."""
    array = getattr(data.prepared, split)
    return float(sources.missing_entries(array).mean()) if array.size else 0.0


def _not_binary(source: sources.Source) -> str:
    """The first split with values other than 0 and 1; empty if there is none."""
    for split in sources.SPLITS:
        rows = getattr(source, split)
        found = (rows == 0) | (rows == source.divisor) | sources.missing_entries(rows)
        if rows.size and not (source.offset == 0.0 and found.all()):
            return split
    return ""


def _refuse_beyond(source: sources.Source, reader: str, fix: str) -> None:
    """Refuses values outside [0, 1], naming what reads them and the split.

    Raises:
        ValueError: for the first such split.
    """
    for split, (low, high) in value_ranges(source).items():
        if low < 0.0 or high > 1.0:
            raise ValueError(
                f"{reader} needs values in [0, 1], the {split} split of {source.name} "
                f"has [{low:g}, {high:g}]: scale it, say its scale (--data_range), or "
                f"{fix}"
            )


def _check_scale(source: sources.Source, config: Config) -> None:
    """Refuses values that the flags do not fit, and what no flag has chosen.

    Raises:
        ValueError: naming the flag that reads them, or that has to choose.
    """
    binarization, likelihood = config.settled.binarization, config.likelihood
    ranges = value_ranges(source)
    if "train" not in ranges:
        raise ValueError(f"{source.name}: every entry of the train split is missing")
    if likelihood == "bernoulli":
        fix = "take --likelihood=normal_per_pixel_std --binarization=none"
        _refuse_beyond(source, "--likelihood=bernoulli", fix)
    elif config.binarization == "auto" and binarization != "none":
        raise ValueError(
            f"--likelihood={likelihood} of {source.name}: give --binarization=none for "
            f"its values as they are, or {binarization} for zeros and ones"
        )
    if binarization != "none":
        fix = "take --binarization=none"
        _refuse_beyond(source, f"--binarization={binarization}", fix)
    if binarization == "threshold" and 0.0 < ranges["train"][1] < 0.5:
        raise ValueError(
            f"--binarization=threshold is 1 from 1/2 on, and the train split of "
            f"{source.name} has [{ranges['train'][0]:g}, {ranges['train'][1]:g}]: "
            "scale it to [0, 1]"
        )
    if config.squash_mean:
        _refuse_beyond(source, "--squash_mean", "leave --squash_mean out")
    undecided = config.binarization == "auto" and binarization == "none"
    if undecided and likelihood == "bernoulli" and (split := _not_binary(source)):
        raise ValueError(
            f"the {split} split of {source.name} has values between 0 and 1: give "
            "--binarization=static or dynamic (1 with the value as probability) or "
            "threshold (1 from 1/2 on), --likelihood=normal_per_pixel_std for real "
            "values, or --binarization=none for a cross-entropy"
        )
