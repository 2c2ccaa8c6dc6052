"""What a number means: the stamp that every result carries, and its names."""

import platform
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np

import vae_jax
from experiments.configuration import Config
from vae_jax.data import batches, sources

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Dataset(NamedTuple):
    """The data of a run: as loaded, and as prepared for training."""

    source: sources.Source
    prepared: batches.Prepared

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return self.source.train.shape[1:]

    @property
    def sha256(self) -> str:
        """What tells these rows from any others."""
        return sources.digest(self.source)


def load(config: Config) -> Dataset:
    """Loads and binarizes the data set of a configuration.

    Raises:
        ValueError, FileNotFoundError: as `sources.load` and `batches.prepare`.
    """
    source = sources.load(
        config.dataset,
        data_dir=config.data_dir or None,
        valid_size=None if config.valid_size < 0 else config.valid_size,
        missing=config.missing,
    )
    if config.num_train:
        source = _first_rows(source, config.num_train)
    prepared = batches.prepare(
        source,
        binarization=config.binarization,
        data_seed=config.data_seed,
        missing_rate=config.missing_rate,
    )
    if config.likelihood == "bernoulli":
        _check_unit_interval(source, config)
    return Dataset(source, prepared)


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
        "binarization": config.binarization,
        "data_seed": config.data_seed,
        "missing": config.missing,
        "missing_rate": config.missing_rate,
        "missing_share": {s: _share_missing(data, s) for s in sources.SPLITS},
        "likelihood": config.likelihood,
        "quantity": quantity(config, data),
        "units": "nats per example",
    }


def quantity(config: Config, data: Dataset) -> str:
    """What log p(x | z) is: log-likelihood, log-density or minus a cross-entropy."""
    if config.likelihood != "bernoulli":
        return "log-density"
    if config.binarization != "none" or _is_binary(data.source):
        return "log-likelihood"
    return "cross-entropy"


def check_likelihood(config: Config, data: Dataset) -> None:
    """Refuses targets that no Bernoulli model has a likelihood of.

    Raises:
        ValueError: for real-valued pixels under --likelihood=bernoulli.
    """
    if quantity(config, data) == "cross-entropy":
        raise ValueError(
            "real-valued pixels under --likelihood=bernoulli have no likelihood to "
            "bound: binarize them"
        )


def named(metrics: dict[str, Any], *, quantity: str) -> dict[str, Any]:
    """Metrics, numbers or a list of each run's, under the names that are true of them.

    Under a Bernoulli likelihood with real-valued targets the reconstruction is minus a
    cross-entropy and nothing bounds a likelihood: the names then say so.
    """
    if quantity != "cross-entropy":
        return metrics
    renamed: dict[str, Any] = {}
    for name, value in metrics.items():
        stem, std = name.removesuffix("_std"), "_std" * name.endswith("_std")
        if stem.endswith("reconstruction"):
            if not std:
                value = (-np.asarray(value)).tolist()
            renamed[stem.replace("reconstruction", "cross_entropy") + std] = value
        elif stem.endswith(("bound", "elbo", "log_joint")):
            for ending in ("bound", "elbo", "log_joint"):
                stem = stem.removesuffix(ending)
            renamed[f"{stem}cross_entropy_objective{std}"] = value
        else:
            renamed[name] = value
    return renamed


def environment() -> dict[str, Any]:
    """Versions and device of this process."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "packages": {"vae_jax": vae_jax.__version__}
        | {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": f"{device.platform}: {device.device_kind}",
        "num_devices": jax.device_count(),
    }


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


def _is_binary(source: sources.Source) -> bool:
    def only(rows: np.ndarray) -> bool:
        found = (rows == 0) | (rows == source.divisor) | sources.missing_entries(rows)
        return bool(found.all())

    splits = (getattr(source, split) for split in sources.SPLITS)
    return source.offset == 0.0 and all(map(only, splits))


def _check_unit_interval(source: sources.Source, config: Config) -> None:
    """Refuses values that are no targets of a Bernoulli, in any split."""
    for split, (low, high) in value_ranges(source).items():
        if config.binarization == "none" and (low < 0.0 or high > 1.0):
            raise ValueError(
                f"--likelihood=bernoulli needs values in [0, 1], the {split} split of "
                f"{source.name} has [{low:g}, {high:g}]: scale it, or take "
                "--likelihood=normal_per_pixel_std"
            )
