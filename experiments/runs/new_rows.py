"""Rows of a file, other than a run's own, that its model is applied to: --input."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.choices.config import Config
from experiments.command import cli
from experiments.runs import protocol
from vae_jax.data import batches, formats, sources

WIDTHS = 10.0  # of the run's range, beyond which rows are on another scale


class NewRows(NamedTuple):
    """Rows of a file as the test rows of a run are stored.

    Attributes:
        path: of the file.
        sha256: of the file.
        rows: [N, *X], read by the run's `Prepared.value`.
        labels: [N], or None.
    """

    path: pathlib.Path
    sha256: str
    rows: np.ndarray
    labels: np.ndarray | None

    @property
    def label(self) -> str:
        """What tells their results from any others, in the names of files."""
        return f"input_{self.path.stem}_{self.sha256[:8]}"

    def stamp(self) -> dict[str, Any]:
        """The file, beside the protocol of a result."""
        return {
            "file": str(self.path),
            "sha256": self.sha256,
            "num_rows": len(self.rows),
            "missing_share": float(sources.missing_entries(self.rows).mean()),
        }


def read(path: str, config: Config, data: protocol.Dataset) -> NewRows:
    """The rows of an .npz, binarized and scaled as the test rows of a run are.

    They are read as --dataset=npz:PATH reads them (`sources.load_rows`). A line says
    what was read.

    Raises:
        UsageError: naming the file and the run, where the rows do not fit the run's
            protocol.
    """
    file, binarization = pathlib.Path(path).expanduser(), config.settled.binarization
    try:
        source = sources.load_rows(file, data_range=config.data_range)
        _check(source, config, data)
    except (ValueError, OSError) as error:
        reason = str(error).removeprefix(f"{file}: ")
        raise cli.UsageError(f"--input={path}: {reason}") from error
    prepared = batches.prepare(
        source, binarization=binarization, data_seed=config.data_seed
    )
    rows, run = prepared.test, data.source
    scales = (source.offset, source.divisor), (run.offset, run.divisor)
    if binarization == "none" and scales[0] != scales[1]:
        values = (rows.astype(np.float32) + source.offset) / source.divisor
        rows = (values * run.divisor - run.offset).astype(np.float32)
    low, high = protocol.value_ranges(source)["test"]
    print(
        f"{path}: {len(rows)} rows, stored as {source.test.dtype}, values {low:g} to "
        f"{high:g}; --binarization={binarization}: {protocol.reading(config, source)}",
        flush=True,
    )
    labels, sha256 = prepared.labels.get("test"), formats.file_digest(file)
    return NewRows(file, sha256, rows, labels)


def _check(source: sources.Source, config: Config, data: protocol.Dataset) -> None:
    """Refuses rows that the model of a run was not made for.

    Raises:
        ValueError: naming the array and what the run has instead.
    """
    rows, run = source.test, f"the run in {config.workdir}"
    if rows.shape[1:] != data.x_shape:
        raise ValueError(
            f"{source.name} has rows of shape {rows.shape[1:]}, {run} of {data.x_shape}"
        )
    holes = sources.missing_entries(rows).reshape(len(rows), -1)
    if holes.any() and config.missing == "refuse":
        raise ValueError(
            f"{source.name} row {holes.any(1).argmax()} holds NaN, and {run} has "
            "--missing=refuse: remove the row or mend it"
        )
    if holes.all():
        raise ValueError(f"every entry of {source.name} is missing")
    binarization = config.settled.binarization
    by_flags = not config.model  # whose own likelihood says what it is of
    unit_interval = {
        "--likelihood=bernoulli": by_flags and config.likelihood == "bernoulli",
        f"--binarization={binarization}": binarization != "none",
        "--squash_mean": by_flags and config.squash_mean,
    }
    low, high = protocol.value_ranges(source)["test"]
    lows, highs = zip(*protocol.value_ranges(data.source).values(), strict=True)
    least, greatest = min(lows), max(highs)
    has = f"{source.name} has values from {low:g} to {high:g}"
    needed = [flag for flag, needs in unit_interval.items() if needs]
    if needed and not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"{has}, and {needed[0]} of {run} needs [0, 1]: scale them")
    if binarization in ("grid", "dequantized"):
        numbers = [batches.num_stored_values(rows) for rows in (source, data.source)]
        if numbers[0] != numbers[1]:
            raise ValueError(
                f"{source.name} has {numbers[0]} values that an entry may have, {run} "
                f"{numbers[1]}: store the same"
            )
    if binarization == "threshold" and 0.0 < high < 0.5:
        raise ValueError(
            f"{has}, all zeros under --binarization=threshold of {run}, which is 1 "
            "from 1/2 on: scale them to [0, 1]"
        )
    reach = WIDTHS * (greatest - least)
    if not least - reach <= low <= high <= greatest + reach:
        raise ValueError(
            f"{has}, those of {run} are from {least:g} to {greatest:g}: scale them as "
            "its own"
        )
    reals = data.source.train.dtype.kind == "f" and not 0 <= least <= greatest <= 1
    if reals and rows.dtype != data.source.train.dtype:
        raise ValueError(
            f"{source.name} holds integers, which are read as stored / "
            f"{source.divisor:g}, and {run} real values from {least:g} to "
            f"{greatest:g}: store floats"
        )
    quantity = protocol.quantity(config, source)
    if quantity == "cross-entropy" != data.quantity:
        raise ValueError(
            f"{has}, of which its numbers would be a {quantity}, and {run} has values "
            f"of which they are a {data.quantity}: give zeros and ones"
        )
