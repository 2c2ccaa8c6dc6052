"""Rows of an .npz file that need be no data set: what a trained model is applied to."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vae_jax.data import csv_tables, ranges, sources


def load(path: str | os.PathLike[str], *, data_range: str = "auto") -> sources.Source:
    """Rows of an .npz file that need be no data set: all of them are test rows.

    The array named test, or the only one; its labels and contexts, if any, have its
    name with _labels and _context behind it. Everything is read as `npz:PATH` reads it.
    NaN passes.

    Raises:
        ValueError: as `sources.load`; no rows, or several arrays and none named test.
        FileNotFoundError: there is no such file.
    """
    path, stored, name = _file_of(path)
    splits = {split: stored[split] for split in sources.SPLITS if split in stored}
    arrays, divisor = ranges.understand(
        str(path), splits | {name: stored[name]}, data_range=data_range
    )
    rows = ranges.stored(f"{path}: {name}", arrays[name])
    if not rows.size:
        raise ValueError(f"{path}: {name} of shape {rows.shape} holds no rows")
    labels, known = {}, stored.get(f"{name}_labels")
    if known is not None:
        labels["test"] = sources.labels_of(str(path), name, known, len(rows))
    context = stored.get(f"{name}_context")
    return sources.Source(
        name=name,
        train=rows[:0],
        valid=rows[:0],
        test=rows,
        labels=labels,
        offset=0.0,
        divisor=divisor,
        origin=sources.origin_of(path, data_range),
        contexts={} if context is None else {"test": context},
    )


def load_table(
    path: str | os.PathLike[str], columns: Sequence[csv_tables.Column]
) -> csv_tables.Table:
    """Rows of an .npz file, found as `load` does, with the columns of a table.

    Raises:
        ValueError: as `load` and `csv_tables.further_rows`.
        FileNotFoundError: there is no such file.
    """
    path, stored, name = _file_of(path)
    table = csv_tables.further_rows(f"{path}: {name}", stored[name], columns)
    labels, contexts = stored.get(f"{name}_labels"), stored.get(f"{name}_context")
    if labels is not None and not table.labels:
        of_rows = sources.labels_of(str(path), name, labels, len(stored[name]))
        table = table._replace(labels={"test": of_rows})
    if contexts is not None and not table.contexts:
        table = table._replace(contexts={"test": contexts})
    return table


def _file_of(
    path: str | os.PathLike[str],
) -> tuple[Path, Mapping[str, np.ndarray], str]:
    """Where a file lies, its arrays, and the name of the one that holds the rows."""
    path = Path(path).expanduser()
    stored = sources.arrays_of(path)
    names = [n for n in stored if not n.endswith(("_labels", "_context"))]
    if "test" not in names and len(names) != 1:
        raise ValueError(
            f"{path}: it holds {', '.join(sorted(names)) or 'no rows'}: name the array "
            "of rows test, or save it alone"
        )
    return path, stored, "test" if "test" in names else names[0]
