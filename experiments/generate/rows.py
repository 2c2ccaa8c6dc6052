"""Draws of x as rows of a table, beside what each was given."""

import numpy as np

from experiments.measures import pictures
from experiments.runs import trained_runs
from vae_jax.data import batches, csv_tables


def of_table(
    trained: trained_runs.Trained, arrays: pictures.Arrays, *, label: str
) -> tuple[list[csv_tables.Column], np.ndarray]:
    """Columns and cells [N, K], in the order of the table that the run was trained on.

    Args:
        trained: of a table.
        arrays: as `pictures.sampler` draws them.
        label: of all draws, or empty.
    """
    observed = csv_tables.observed(trained.data.source.columns)
    x = arrays["x"].reshape(-1, len(observed))  # of all labels
    pairs = [*zip(observed, x.T, strict=True), *_context(trained, arrays, label)]
    order = [column.name for column in trained.data.source.columns]
    pairs.sort(key=lambda pair: (*order, pair[0].name).index(pair[0].name))
    return [column for column, _ in pairs], np.stack([of for _, of in pairs], axis=1)


def _context(
    trained: trained_runs.Trained, arrays: pictures.Arrays, label: str
) -> list[tuple[csv_tables.Column, np.ndarray]]:
    """Columns of what p(x | z) was given, and their cells [N]."""
    source, condition = trained.data.source, trained.config.condition
    if condition == "labels":
        column = next((c for c in source.columns if c.family == "label"), None)
        if column is None:
            levels = tuple(map(str, range(1 + source.labels["train"].max())))
            column = csv_tables.Column("label", "label", source.classes or levels)
        if label:
            numbers = np.full(len(arrays["x"]), trained.number_of(label))
        else:
            numbers = np.repeat(arrays["label"], arrays["x"].shape[1])
        return [(column, numbers / max(1, len(column.levels) - 1))]
    if condition == "context":
        stored = source.contexts[trained_runs.test_split(trained)]
        some = stored[batches.at_equal_distances(len(stored), len(arrays["x"]))]
        return csv_tables.of_entries(source.columns, some, trained.data.context)
    return []
