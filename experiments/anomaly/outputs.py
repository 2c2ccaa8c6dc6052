"""What is written of scores: arrays, a table of rows, and pictures."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.anomaly.measurements import Scored
from experiments.anomaly.rows import CALIBRATION, INLIERS, Rows
from experiments.command import report
from experiments.measures import pictures
from experiments.runs.trained_runs import INPUT, Trained
from vae_jax.evaluation import anomaly
from vae_jax.plots import detection, files, images

NUM_DRAWN = 8  # least and most strange rows of each score


def write_scores(
    path: pathlib.Path, scored: Sequence[Scored], rows: Rows, *, rate: float
) -> None:
    """Writes scores and p-values as path.npz, and those of each row as path.csv.

    A row of the table stands for a test row or a row to score; what is not known of it
    is empty.
    """
    shown, arrays = (INLIERS, INPUT), {"row": rows.places[INPUT]}
    sizes = [rows.size(part) for part in shown]
    unknown = [""] * rows.size(INPUT)
    labels, outlier = unknown, unknown
    if rows.labels is not None:
        labels = rows.labels.tolist()
    if rows.outlier is not None:
        arrays["outlier"] = rows.outlier
        outlier = rows.outlier.astype(int).tolist()
    columns: dict[str, list[Any]] = {
        "split": np.repeat(shown, sizes).tolist(),
        "row": np.concatenate([rows.places[part] for part in shown]).tolist(),
        "label": [""] * sizes[0] + labels,
        "outlier": [0] * sizes[0] + outlier,
    }
    for one in scored:
        name = "_".join(filter(None, (one.name, one.run))).replace(", ", "_")
        calibration = one.values[rows.parts[CALIBRATION]]
        arrays[f"{name}_{CALIBRATION}"] = calibration
        for part in shown:
            values = one.values[rows.parts[part]]
            arrays[f"{name}_{part}"] = values
            arrays[f"{name}_{part}_p_value"] = anomaly.p_values(values, calibration)
        values, p = (
            np.concatenate([arrays[f"{name}_{part}{kind}"] for part in shown])
            for kind in ("", "_p_value")
        )
        columns[f"{name}_score"] = values.tolist()
        columns[f"{name}_p_value"] = p.tolist()
        columns[f"{name}_flagged"] = (p <= rate).astype(int).tolist()
    pictures.save_arrays(path.with_suffix(".npz"), arrays)
    lines = [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]
    report.write_text(path.with_suffix(".csv"), report.csv_text(lines))


def draw(
    path: pathlib.Path,
    trained: Trained,
    scored: Sequence[Scored],
    rows: Rows,
    results: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Draws each score of the first run, and gives the endings of the pictures."""
    shown: dict[str, tuple[Scored, Mapping[str, Any]]] = {}
    for one, result in zip(scored, results, strict=True):
        shown.setdefault(one.name, (one, result))
    panels, curves, thresholds = {}, {}, {}
    for name, (one, result) in shown.items():
        outliers, inliers = rows.kinds(one.values)
        kind = "rows to score" if rows.outlier is None else "outliers"
        panels[name] = {"inliers": inliers, kind: outliers}
        thresholds[name] = result["threshold"]
        if rows.outlier is not None:
            label = f"{name}: {result['auroc']:.3f}"
            curves[label] = anomaly.roc_curve(outliers, inliers)
    figures = {"histograms": detection.histograms(panels, thresholds=thresholds)}
    if curves:
        figures["roc"] = detection.roc_curves(curves)
    if trained.is_image:
        values = {name: one.values for name, (one, _) in shown.items()}
        figures["images"] = _strangest(trained, rows, values)
    endings = {f"_{name}.png": figure for name, figure in figures.items()}
    for ending, figure in endings.items():
        files.save(figure, path.with_name(path.name + ending))
    return [*endings]


def _strangest(trained: Trained, rows: Rows, values: Mapping[str, np.ndarray]) -> Any:
    """The rows to score, least and most strange, a line of images for each score."""
    at = rows.parts[INPUT]
    x = np.asarray(trained.data.prepared.value(rows.raw[at]))
    number = min(NUM_DRAWN, len(x))
    order = [np.argsort(scores[at], kind="stable") for scores in values.values()]
    least = np.stack([x[ranks[:number]] for ranks in order])
    most = np.stack([x[ranks[::-1][:number]] for ranks in order])
    title = f"Least strange, most strange, by {', '.join(values)}"
    return images.groups([least, most], title=title, limits=pictures.limits(trained))
