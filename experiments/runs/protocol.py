"""What a number means: the stamp that every result carries, and its names."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.choices import models
from experiments.choices.config import Config
from experiments.runs import column_tables, contexts, scales
from vae_jax import conditional, numerics
from vae_jax.data import batches, csv_tables, sources

# Under a Bernoulli likelihood with real-valued targets the reconstruction is minus a
# cross-entropy, and nothing bounds a likelihood: the names then say so.
OF_CROSS_ENTROPY = {
    "bound": "cross_entropy_objective",
    "elbo": "cross_entropy_objective",
    "importance_bound": "importance_cross_entropy_objective",
    "log_joint": "cross_entropy_objective",
    "reconstruction": "cross_entropy",
}


# What log p(x), or a bound on it, is called in bits, where it has any.
OF_BITS = {
    "bound": "bits_per_dimension",
    "elbo": "bits_per_dimension",
    "importance_bound": "importance_bits_per_dimension",
    "log_p": "log_p_bits_per_dimension",
}
# Arguments of `sources.load` that are flags by the same names, as its errors tell them.
_NAMES = "missing|valid_size|channels|data_seed|data_range|image_size|skip_broken"
_ARGUMENT = re.compile(
    rf"(?:(?<=[ (])|^)(?:{_NAMES})(?==)|(?<=\()(?:{_NAMES})(?=\))"
    rf"|(?<=leave )(?:{_NAMES})(?= out)"
)


class Bits(NamedTuple):
    """How nats of a row are told in bits per dimension.

    Attributes:
        num_entries: of a row, D.
        num_values: K of dequantized rows, 1 where log p is of the values themselves.
    """

    num_entries: int
    num_values: int = 1

    def __str__(self) -> str:
        """How they are made, and what they are of."""
        rest = f"nats / ({self.num_entries} ln 2)"
        if self.num_values == 1:
            return f"bits per dimension are -{rest}, of the values themselves"
        return (
            f"bits per dimension are log2 {self.num_values} - {rest}, a bound on the "
            f"discrete log-probability of the {self.num_values} stored values"
        )


class Dataset(NamedTuple):
    """The data of a run.

    Attributes:
        source: as loaded.
        prepared: as prepared for training.
        quantity: what log p(x | z) is on them, as the likelihood itself says.
        bits: how it is told in bits; None where there are none.
        columns: of a table, its --columns with the numbers of the training rows.
        context: what the entries of a context stand for that lies behind x in every
            prepared row; () where there is none (`batches.with_context`).
    """

    source: sources.Source
    prepared: batches.Prepared
    quantity: str
    bits: Bits | None = None
    columns: tuple[str, ...] = ()
    context: tuple[str, ...] = ()

    def observed(self, rows: Any) -> Any:
        """The x [..., *X] of prepared rows."""
        return conditional.parted(rows, self.x_shape)[0] if self.context else rows

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return self.source.train.shape[1:]

    @property
    def sha256(self) -> str:
        """What tells these rows from any others, contexts and all."""
        of_rows = {s: getattr(self.prepared, s) for s in sources.SPLITS}
        return sources.digest(
            self.source._replace(**of_rows) if self.context else self.source
        )

    @property
    def units(self) -> str:
        """Of all numbers of a row."""
        return "; ".join(["nats per example", *([str(self.bits)] if self.bits else [])])

    def in_bits(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the numbers, in nats, that have bits per dimension, in these."""
        if self.bits is None:
            return {}
        return {
            OF_BITS[name]: numerics.bits_per_dimension(nats, **self.bits._asdict())
            for name, nats in numbers.items()
            if name in OF_BITS
        }

    def labeled(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Numbers of a model, in nats, under the names that are true of these data.

        Behind them those of `in_bits`.
        """
        if self.quantity != "cross-entropy":
            return {**numbers, **self.in_bits(numbers)}
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
    columns = column_tables.said(config.columns)
    with naming_flags():
        source = sources.load(
            config.dataset,
            data_dir=config.data_dir or None,
            valid_size=None if config.valid_size < 0 else config.valid_size,
            missing=config.settled.missing,
            data_seed=config.data_seed,
            **how_files_are_read(config),
            columns=columns,
        )
    if config.num_train:
        source = _first_rows(source, config.num_train)
    if sources.missing_entries(source.train).all():
        raise ValueError(f"{source.name}: every entry of the train split is missing")
    prepared = batches.prepare(
        source,
        binarization=config.settled.binarization,
        data_seed=config.data_seed,
        missing_rate=config.missing_rate,
    )
    columns = ()
    if config.observed == "columns":
        columns = column_tables.fitted(config.columns, source.columns, prepared.train)
        config = dataclasses.replace(config.settled, columns=columns)
    of_rows = models.quantity(config, source.train.shape[1:])
    of_data = scales.check(config, source, of_rows)
    bits = _bits(config, source, of_data)
    context = ()
    if config.condition:
        context, splits = contexts.of(config, source)
        prepared = batches.with_context(prepared, splits)
    return Dataset(source, prepared, of_data, bits, columns, context)


@contextlib.contextmanager
def naming_flags() -> Iterator[None]:
    """Gives arguments of `sources.load` in its errors the dashes of their flags.

    An argument is a name before an equals sign, alone in parentheses, or left out.

    Raises:
        ValueError: in the place of another.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(_ARGUMENT.sub(r"--\g<0>", str(error))) from error


def mean_x(config: Config, data: Dataset) -> np.ndarray:
    """E[x] of each entry over the training rows, missing ones aside.

    Of an entry that is missing everywhere it is that of all others.
    """
    rows = data.observed(data.prepared.train)
    size = 1 << 12  # at a time: they may be on a disk
    total, count = np.zeros(rows.shape[1:]), np.zeros(rows.shape[1:])
    for at in range(0, len(rows), size):
        piece = rows[at : at + size]
        total += np.nansum(piece, axis=0, dtype=np.float64)
        count += len(piece) - sources.missing_entries(piece).sum(axis=0)
    stored = np.where(count > 0, total, total.sum()) / np.where(
        count > 0, count, count.sum()
    )
    binarization = config.settled.binarization
    if binarization in ("threshold", "static"):
        return stored  # the rows are zeros and ones
    if binarization == "grid":
        return stored / batches.most_stored(data.source)
    if binarization == "dequantized":
        return (stored + 0.5) / (batches.most_stored(data.source) + 1.0)
    return (stored + data.source.offset) / data.source.divisor


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
        "likelihood": config.model or config.observed,
        "condition": _condition(config),
        "quantity": data.quantity,
        "units": data.units,
    }


def _condition(config: Config) -> str:
    size = f" with the size factor {config.size_factor}" if config.size_factor else ""
    return config.condition + size


def opening(config: Config, data: Dataset) -> str:
    """The line that a run begins with: what was read, and what its numbers are."""
    source = data.source
    sizes = ", ".join(
        f"{len(getattr(source, split))} {split}" for split in sources.SPLITS
    )
    share = max(_share_missing(data, split) for split in sources.SPLITS)
    holes = f", up to {100 * share:.0f}% of a split missing" if share else ""
    shape = "x".join(map(str, data.x_shape))
    bits = f"; {data.bits}" if data.bits else ""
    values = f" of {config.num_values} values" if config.is_of_stored_values else ""
    beside = ""
    if data.context:
        entries = data.context
        if config.condition == "labels":
            entries = contexts.label_texts(source, entries)
        listed = csv_tables.listed(entries)
        beside = f", given its {_condition(config)} ({listed})"
    line = (
        f"{source.name}: {sizes} rows of {shape} {source.train.dtype}, stored "
        f"{scales.stored_range(source)}{holes}; "
        f"--binarization={config.settled.binarization}: "
        f"{scales.reading(config, source)}; {config.observation}{values}: a row's "
        f"number is a {data.quantity} in nats{beside}{bits}"
    )
    of_columns = column_tables.lines(
        source.columns, data.prepared.train, by_family=config.observed == "columns"
    )
    return "\n".join([line, *of_columns])


def how_files_are_read(config: Config) -> dict[str, Any]:
    """Keywords of `sources.load` that are of images and arrays."""
    return {
        "image_size": config.image_size or None,
        "channels": config.channels,
        "skip_broken": config.skip_broken,
        "data_range": config.data_range,
    }


def _bits(config: Config, source: sources.Source, quantity: str) -> Bits | None:
    """How numbers are told in bits: not where rows are of different numbers of entries.

    Nor for a density on values without noise, which says nothing of bits, and for a
    cross-entropy.
    """
    if config.settled.missing != "refuse":
        return None
    num_entries = math.prod(source.train.shape[1:])
    if quantity == "log-likelihood":
        return Bits(num_entries)
    if config.settled.binarization == "dequantized":
        return Bits(num_entries, batches.num_stored_values(source))
    return None


def check_likelihood(config: Config, data: Dataset) -> None:
    """Refuses targets that no Bernoulli model has a likelihood of.

    Raises:
        ValueError: for real-valued pixels under a Bernoulli likelihood.
    """
    if data.quantity == "cross-entropy":
        raise ValueError(
            f"real-valued pixels under {config.observation} have no likelihood to "
            "bound: binarize them"
        )


def check_rows(
    data: Dataset,
    number: int = 0,
    *,
    flag: str = "num_images",
    splits: Sequence[str] = ("train", "test"),
) -> None:
    """Refuses data without rows in one of the splits, or with fewer than a flag says.

    Raises:
        ValueError: naming the flag and the split.
    """
    for split in splits:
        size = len(getattr(data.source, split))
        if not size:
            raise ValueError(f"{data.source.name} has no {split} split")
        if number > size:
            raise ValueError(
                f"--{flag}={number} is more than the {size} {split} rows of "
                f"{data.source.name}"
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
    labels, contexts = dict(source.labels), dict(source.contexts)
    for beside in (labels, contexts):
        if "train" in beside:
            beside["train"] = beside["train"][:num_train]
    return source._replace(
        train=source.train[:num_train], labels=labels, contexts=contexts
    )


def _share_missing(data: Dataset, split: str) -> float:
    """Entries of a split that are missing, of all of them; zero where it is empty."""
    array = data.observed(getattr(data.prepared, split))
    return float(sources.missing_entries(array).mean()) if array.size else 0.0
