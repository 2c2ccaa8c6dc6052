"""Which values the rows of a data set have, and which p(x | z) they fit."""

import contextlib
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from experiments.choices.config import Config
from vae_jax.data import batches, sources

OF_REALS = "take --likelihood=normal_per_pixel_std --binarization=none"
# Rows of x -> what log p(x | z) is on them, as the model says (`models.quantity`).
OfRows: TypeAlias = Callable[[np.ndarray], str]


def value_ranges(source: sources.Source) -> dict[str, tuple[float, float]]:
    """Least and greatest value of each split that holds any."""
    ranges = {}
    for split, ends in _stored_ranges(source).items():
        low, high = ((end + source.offset) / source.divisor for end in ends)
        ranges[split] = low, high
    return ranges


def _stored_ranges(source: sources.Source) -> dict[str, tuple[float, float]]:
    """As `value_ranges`, of what is stored."""
    return {
        split: (float(np.nanmin(rows)), float(np.nanmax(rows)))
        for split, rows in ((s, getattr(source, s)) for s in sources.SPLITS)
        if not sources.missing_entries(rows).all()
    }


def stored_range(source: sources.Source) -> str:
    """Least and greatest entry of all splits, as they are stored."""
    lows, highs = zip(*_stored_ranges(source).values(), strict=True)
    return f"{min(lows):g} to {max(highs):g}"


def reading(config: Config, source: sources.Source) -> str:
    """How x is made of what is stored."""
    shifted = f"(stored + {source.offset:g})" if source.offset else "stored"
    value = f"{shifted} / {source.divisor:g}"
    top = batches.most_stored(source)
    return {
        "none": f"x = {value}",
        "grid": f"x = stored / {top:g}",
        "dequantized": f"x = (stored + u) / {top + 1:g}, u uniform in [0, 1)",
        "threshold": f"x = 1 where {value} >= 0.5, else 0",
    }.get(config.settled.binarization, f"x = 1 with probability {value}, else 0")


def check(config: Config, source: sources.Source, of_rows: OfRows) -> str:
    """The `quantity` of data that fit the flags, and of which flags choose all.

    Raises:
        ValueError: as `quantity`; naming the flag that reads the values, or that has to
            choose.
    """
    of_splits = _of_splits(config, source, of_rows)
    of_data = _of_all(of_splits)
    binarization = config.settled.binarization
    if config.squash_mean and not config.model:
        _refuse_beyond(source, "--squash_mean", "leave --squash_mean out")
    if binarization in ("grid", "dequantized"):
        return of_data
    if binarization == "none":
        if of_data == "cross-entropy" and config.binarization == "auto":
            split = next(s for s in of_splits if of_splits[s] == of_data)
            raise ValueError(
                f"the {split} split of {source.name} has values between 0 and 1: give "
                "--binarization=static or dynamic (1 with the value as probability) or "
                "threshold (1 from 1/2 on), --likelihood=discretized_logistic_mixture "
                "for stored bytes, --likelihood=normal_per_pixel_std for real values, "
                "or --binarization=none for a cross-entropy"
            )
        return of_data
    if of_data == "log-density" and config.binarization == "auto":
        raise ValueError(
            f"{config.observation} of {source.name}: give --binarization=none for its "
            f"values as they are, dequantized for a bound on the probability of those "
            f"that are stored, or {binarization} for zeros and ones"
        )
    fix = "take --binarization=none" if of_data == "log-density" else OF_REALS
    _refuse_beyond(source, f"--binarization={binarization}", fix)
    if are_zeros(config, source, "train"):
        low, high = value_ranges(source)["train"]
        raise ValueError(
            f"--binarization=threshold is 1 from 1/2 on, and the train split of "
            f"{source.name} has [{low:g}, {high:g}]: scale it to [0, 1]"
        )
    return of_data


def quantity(config: Config, source: sources.Source, of_rows: OfRows) -> str:
    """What log p(x | z) is on all these data.

    Raises:
        ValueError: for values that the model has no number for.
    """
    return _of_all(_of_splits(config, source, of_rows))


def are_zeros(config: Config, source: sources.Source, split: str) -> bool:
    """Whether --binarization=threshold makes zeros alone of a split that has others."""
    if config.settled.binarization != "threshold":
        return False
    return 0.0 < value_ranges(source)[split][1] < 0.5


def _of_all(of_splits: Mapping[str, str]) -> str:
    """What it is on all splits together."""
    names = set(of_splits.values())
    return "cross-entropy" if "cross-entropy" in names else names.pop()


def _of_splits(
    config: Config, source: sources.Source, of_rows: OfRows
) -> dict[str, str]:
    """What it is on each split that holds any value."""
    binarization = config.settled.binarization
    if binarization == "dequantized":
        return dict.fromkeys(sources.SPLITS, _of_noisy(config, of_rows))
    if binarization not in ("none", "grid"):
        return dict.fromkeys(sources.SPLITS, of_rows(np.array([0.0, 1.0])))
    if binarization == "grid":  # where the values lie on another scale
        divisor = float(batches.num_stored_values(source) - 1)
        source = source._replace(offset=0.0, divisor=divisor)
    of_splits = {}
    for split, (low, high) in value_ranges(source).items():
        values = _distinct(getattr(source, split))
        try:
            of_splits[split] = of_rows((values + source.offset) / source.divisor)
        except ValueError as error:
            raise ValueError(
                f"{config.observation} cannot read the {split} split of {source.name}, "
                f"which has [{low:g}, {high:g}]: {_fix(config, source)} "
                f"({error})"
            ) from error
    return of_splits


def _fix(config: Config, source: sources.Source) -> str:
    """What makes values fit that a likelihood has no number for."""
    if config.is_of_stored_values:
        with contextlib.suppress(ValueError):
            number = batches.num_stored_values(source)
            if number == config.num_values:
                return "take --binarization=grid"
            return f"take --binarization=grid --num_values={number}"
    if config.is_table:
        return "take --likelihood=columns, by which every column has its own"
    return f"scale it, or {OF_REALS}"


def _of_noisy(config: Config, of_rows: OfRows) -> str:
    """What it is on dequantized rows.

    Raises:
        ValueError: for anything but a density, as noise is for these alone.
    """
    try:
        of_noise = of_rows(np.array([0.2, 0.4]))
    except ValueError:
        of_noise = ""
    if of_noise != "log-density":
        raise ValueError(
            f"--binarization=dequantized adds noise for a density, and "
            f"{config.observation} is none: take --binarization=grid for the stored "
            "values, or a density such as --likelihood=normal_per_pixel_std"
        )
    return of_noise


def _distinct(rows: np.ndarray) -> np.ndarray:
    """The values of bytes, of which there are few; all values of anything else."""
    if rows.dtype != np.uint8:
        return rows
    flat, size = rows.reshape(-1), 1 << 18  # a piece: counting takes 8 bytes a byte
    pieces = (flat[at : at + size] for at in range(0, flat.size, size))
    return np.flatnonzero(sum(np.bincount(piece, minlength=256) for piece in pieces))


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
