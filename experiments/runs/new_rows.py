"""Rows other than a run's own that its model is applied to: a file's, a data set's."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.choices import models
from experiments.choices.config import Config
from experiments.command import cli
from experiments.runs import contexts, protocol, scales
from vae_jax.data import batches, csv_tables, formats, npz_rows, sources

WIDTHS = 10.0  # of the run's range, beyond which rows are on another scale


class NewRows(NamedTuple):
    """Rows as the test rows of a run are stored.

    Attributes:
        path: of the file, or the name of the data set.
        sha256: of the file, or of the data set.
        rows: [N, *X], or with a context behind x, read by the run's `Prepared.value`.
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


def read(
    path: str, config: Config, data: protocol.Dataset, *, of_images: str = ""
) -> NewRows:
    """The rows of an .npz, binarized and scaled as the test rows of a run are.

    They are read as --dataset=npz:PATH reads them (`npz_rows.load`); of a run on a
    table those of a .csv too, whose columns are the run's by their names. A line says
    what was read.

    Args:
        path: of the file.
        config: the flags of the run.
        data: those of the run.
        of_images: what the command takes before the path of images, if it does.

    Raises:
        UsageError: for a folder or a .zip; naming the file and the run, where the rows
            do not fit the run's protocol.
    """
    file = pathlib.Path(path).expanduser()
    if file.is_dir() or file.suffix.lower() == ".zip":
        images = f"; for images {of_images}{path}" if of_images else ""
        raise cli.UsageError(
            f"--input={path}: give an .npz of rows (numpy.savez), or, of a run on a "
            f"table, a .csv{images}"
        )

    def load() -> sources.Source:
        if _is_csv(file) or (config.is_table and config.dataset.startswith("npz:")):
            return _of_table(file, data.source)
        return npz_rows.load(file, data_range=config.data_range)

    source = _fitting(f"--input={path}", str(file), load, config, data)
    rows, labels = _stored(path, source, config, data)
    return NewRows(file, formats.file_digest(file), rows, labels)


def of_dataset(name: str, config: Config, data: protocol.Dataset) -> NewRows:
    """The test rows of a data set by name, all of its rows where it has none, likewise.

    Its path is the name. It heeds `data_dir` and `data_seed` of the run's flags and,
    where it is of the same kind as the run's, how images and arrays are read.

    Raises:
        UsageError: as `read`, naming the data set.
    """

    def load() -> sources.Source:
        kind, _, path = name.partition(":")
        if kind == "csv" and data.source.columns:
            return _of_table(pathlib.Path(path).expanduser(), data.source)
        is_alike = kind == config.dataset.partition(":")[0]
        source = sources.load(
            name,
            **(protocol.how_files_are_read(config) if is_alike else {}),
            data_dir=config.data_dir or None,
            missing=config.missing,
            data_seed=config.data_seed,
        )
        split = "test" if len(source.test) else "train"
        labels, of_rows = (
            {"test": beside[split]} if split in beside else {}
            for beside in (source.labels, source.contexts)
        )
        none, test = source.train[:0], getattr(source, split)
        return source._replace(
            train=none, valid=none, test=test, labels=labels, contexts=of_rows
        )

    source = _fitting(f"--outlier_dataset={name}", name, load, config, data)
    rows, labels = _stored(name, source, config, data)
    return NewRows(pathlib.Path(name), sources.digest(source), rows, labels)


def _is_csv(file: pathlib.Path) -> bool:
    return file.suffix.lower() == ".csv"


def _of_table(file: pathlib.Path, run: sources.Source) -> sources.Source:
    """The rows of a file as test rows of the run's table.

    Raises:
        ValueError: for a run on what is no table; as `csv_tables.read_rows` and
            `npz_rows.load_table`.
    """
    if not run.columns:
        raise ValueError(f"{file}: a .csv holds rows of tables, and the run is of none")
    read = csv_tables.read_rows if _is_csv(file) else npz_rows.load_table
    table = read(file, run.columns)
    none = run.train[:0]
    return run._replace(
        name=file.name,
        train=none,
        valid=none,
        test=table.arrays["test"],
        labels=table.labels,
        contexts=table.contexts,
    )


def _fitting(
    flag: str,
    place: str,
    load: Callable[[], sources.Source],
    config: Config,
    data: protocol.Dataset,
) -> sources.Source:
    """A source that the model of a run was made for.

    Raises:
        UsageError: naming the flag and what the run has instead.
    """
    try:
        with protocol.naming_flags():
            source = load()
        _check(source, config, data)
    except (ValueError, OSError) as error:
        reason = str(error).removeprefix(f"{place}: ")
        raise cli.UsageError(f"{flag}: {reason}") from error
    return source


def _stored(
    place: str, source: sources.Source, config: Config, data: protocol.Dataset
) -> tuple[np.ndarray, np.ndarray | None]:
    """Its rows on the scale of the run's test rows, and their labels; says so."""
    binarization = config.settled.binarization
    prepared = batches.prepare(
        source, binarization=binarization, data_seed=config.data_seed
    )
    rows, run = prepared.test, data.source
    scale, of_run = (source.offset, source.divisor), (run.offset, run.divisor)
    if binarization == "none" and scale != of_run:
        values = (rows.astype(np.float32) + source.offset) / source.divisor
        rows = (values * run.divisor - run.offset).astype(np.float32)
    labels = prepared.labels.get("test")
    if config.condition == "context":
        if "test" not in source.contexts:
            giving = (
                "give a .csv that has its columns"
                if run.columns
                else "store it as test_context [N, C] beside the rows"
            )
            raise cli.UsageError(
                f"{place} has no context, and the run in {config.workdir} is given one "
                f"(--condition=context): {giving}"
            )
        with cli.user_errors():
            rows = batches.packed(rows, contexts.of_new(config, run, source))
    elif data.context:
        if labels is None:
            names = [c.name for c in source.columns if c.family == "label"]
            by = f"give its column {names[0]}" if names else "store them as test_labels"
            raise cli.UsageError(
                f"{place} has no labels, and the run in {config.workdir} is given them "
                f"(--condition={config.condition}): {by}"
            )
        with cli.user_errors():
            of_rows = contexts.one_hot(labels, data.context, place, run.classes)
            rows = batches.packed(rows, of_rows)
    print(
        f"{place}: {len(rows)} rows of {source.test.dtype}, stored "
        f"{scales.stored_range(source)}; --binarization={binarization}: "
        f"{scales.reading(config, source)}",
        flush=True,
    )
    return rows, labels


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
        "--likelihood=bernoulli": by_flags and config.observed == "bernoulli",
        f"--binarization={binarization}": binarization != "none",
        "--squash_mean": by_flags and config.squash_mean,
    }
    low, high = scales.value_ranges(source)["test"]
    lows, highs = zip(*scales.value_ranges(data.source).values(), strict=True)
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
    if scales.are_zeros(config, source, "test"):
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
    of_rows = models.quantity(config, data.x_shape)
    quantity = scales.quantity(config, source, of_rows)
    if quantity == "cross-entropy" != data.quantity:
        raise ValueError(
            f"{has}, of which its numbers would be a {quantity}, and {run} has values "
            f"of which they are a {data.quantity}: give zeros and ones"
        )
