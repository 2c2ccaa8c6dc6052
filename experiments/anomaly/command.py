r"""Scores how strange rows are to a trained model, and raises alarms at a known rate.

    python -m experiments.anomaly --workdir=runs/digits --input=rows.npz
    python -m experiments.anomaly --workdir=runs/mnist \
        --outlier_dataset=fashion_mnist --false_alarm_rate=0.01

A row is flagged where its p-value among the run's validation rows is at most
--false_alarm_rate: for rows that are exchangeable with those the rate is then at most
that, whatever the score (`vae_jax.evaluation.anomaly`). Where early stopping chose the
weights by the validation rows, test rows are not quite exchangeable with them.

The table says for each score what rate the run's test rows have, with its exact 95%
interval, what share of the rows to score is flagged and, where it is known which of
them are outliers, AUROC with DeLong's 95% interval and the false-alarm rate at which
95% of the outliers are flagged. Scores are larger for stranger rows: an AUROC below 1/2
takes outliers for usual.

Writes to the workdir (anomaly_ROWS.json, .txt, .npz and .csv) the table, scores and
p-values, and pictures: ROC curves, histograms, the least and the most strange rows.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.anomaly import measurements, outputs, scores
from experiments.anomaly.config import Config
from experiments.anomaly.rows import CALIBRATION, INLIERS, Rows, gathered
from experiments.choices import sweep
from experiments.command import cli, report
from experiments.runs import programs, rundir, trained_runs
from experiments.runs.trained_runs import INPUT, Trained
from vae_jax.evaluation import anomaly

COLUMNS = (
    report.field("score", "score", width=14),
    report.field("AUROC", "auroc", ".3f", 6),
    report.field("from", "auroc_lower", ".3f", 6),
    report.field("to", "auroc_upper", ".3f", 6),
    report.field("sd of runs", "auroc_deviation", ".3f", 10),
    report.field("FPR at 95%", "false_positive_rate", ".3f", 10),
    report.field("threshold", "threshold", ".2f", 10),
    report.field("false alarms", "false_alarms", ".4f", 12),
    report.field("from", "false_alarms_lower", ".4f", 7),
    report.field("to", "false_alarms_upper", ".4f", 7),
    report.field("flagged", "flagged", ".3f", 8),
    report.field("seconds", "seconds", ".1f", 8),
)


@programs.compiled_once()
def main(config: Config) -> int:
    """Scores, prints and writes."""
    runs = config.load_asked()
    first = runs[0]
    scores.check(config.scores, runs)
    with cli.user_errors():
        background = _background(config)
        rows = gathered(
            first,
            num_rows=config.num_images,
            outlier_labels=config.outlier_labels,
            place=config.place,
        )
        _check_rate(config, rows.size(CALIBRATION))  # before the work
        names = _run_names(runs)
        asked = measurements.Asked(rows, config, background)
        scored, doubts = measurements.of_rows(
            jax.random.key(config.seed), runs, names, asked
        )
        results = [_judged(config, one, rows) for one in scored]
    table = [_over_runs(name, results) for name in config.scores]
    columns = [c for c in COLUMNS if any(c.value(row) is not None for row in table)]
    text = "\n".join(
        [
            *_heading(config, first, rows),
            "",
            report.table(columns, table),
            *(f"  warning, log_p: {doubt}" for doubt in doubts),
            "scores, greater the stranger a row is:",
            *(f"  {name}: {scores.SCORES[name].meaning}" for name in config.scores),
        ]
    )
    path = _path(config, first)
    result = {
        "table": table,
        "runs": results,
        "num_rows": {part: rows.size(part) for part in rows.parts},
        "num_outliers": rows.num_outliers,
        "doubts": doubts,
        "protocol": first.stamp(),
    }
    print(text)
    with cli.user_errors():
        outputs.write_scores(path, scored, rows, rate=config.false_alarm_rate)
        figures = outputs.draw(path, first, scored, rows, results)
    report.write_both(path, config, result, text, ".npz", ".csv", *figures)
    return 0


def _check_rate(config: Config, num_rows: int) -> None:
    """Refuses a rate that is below what so many calibration rows can hold.

    Raises:
        ValueError: naming the flags.
    """
    rate = config.false_alarm_rate
    try:
        anomaly.alarm_threshold(np.zeros(num_rows), rate=rate)
    except ValueError as error:
        raise ValueError(
            f"--false_alarm_rate={rate:g}: {error} (rows: --valid_size of training, "
            "at most --num_images)"
        ) from error


def _background(config: Config) -> Trained | None:
    if not config.background:
        return None
    which = {"checkpoint": config.checkpoint, "weights": config.weights}
    return trained_runs.load(
        config.background,
        **which,
        precision=config.precision,
        data_dir=config.data_dir,
        num_devices=config.num_devices,
    )[0]


def _run_names(runs: Sequence[Trained]) -> list[str]:
    if len(runs) == 1:
        return [""]
    return sweep.names(rundir.read_config(runs[0].config.directory()))


def _judged(config: Config, scored: measurements.Scored, rows: Rows) -> dict[str, Any]:
    """What one score of one run gives."""
    parts = {name: scored.values[at] for name, at in rows.parts.items()}
    threshold = anomaly.alarm_threshold(
        parts[CALIBRATION], rate=config.false_alarm_rate
    )
    alarms = anomaly.share(parts[INLIERS] > threshold)
    judged: dict[str, Any] = {
        "score": scored.name,
        "run": scored.run,
        "threshold": threshold,
        "false_alarms": alarms.share,
        "false_alarms_lower": alarms.lower,
        "false_alarms_upper": alarms.upper,
        "seconds": scored.seconds,
    }
    outliers, inliers = rows.kinds(scored.values)
    judged["flagged"] = anomaly.share(outliers > threshold).share
    if rows.outlier is None:
        return judged
    area = anomaly.auroc(outliers, inliers)
    return judged | {
        "auroc": area.auroc,
        "auroc_lower": area.lower,
        "auroc_upper": area.upper,
        "false_positive_rate": anomaly.false_positive_rate(outliers, inliers),
    }


def _over_runs(name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One score's line: its only run's, or means, whose intervals are of no mean."""
    of_score = [result for result in results if result["score"] == name]
    if len(of_score) == 1:
        return dict(of_score[0])
    row: dict[str, Any] = {"score": name, "seconds": of_score[0]["seconds"]}
    averaged = ("auroc", "false_positive_rate", "threshold", "false_alarms", "flagged")
    for field in averaged:
        if field in of_score[0]:
            row[field] = float(np.mean([result[field] for result in of_score]))
    if "auroc" in row:
        areas = [result["auroc"] for result in of_score]
        row["auroc_deviation"] = float(np.std(areas, ddof=1))
    return row


def _heading(config: Config, trained: Trained, rows: Rows) -> list[str]:
    number, known = rows.num_outliers, "outliers are not known: no AUROC"
    if number is not None:
        others = rows.size(INPUT) - number
        against = f"its {others} others" if others else f"{rows.size(INLIERS)} of test"
        known = f"{number} outliers against {against}"
    protocol = trained.stamp()
    return [
        f"{config.place}: {rows.size(INPUT)} rows, {known}; {trained.moment}",
        f"{protocol['dataset']}, binarization {protocol['binarization']}: alarms at a "
        f"rate of {config.false_alarm_rate:g} calibrated on {rows.size(CALIBRATION)} "
        f"rows of {CALIBRATION}, false alarms of {rows.size(INLIERS)} of {INLIERS}",
    ]


def _path(config: Config, trained: Trained) -> pathlib.Path:
    assert trained.input is not None
    labels = "_".join(map(str, config.outlier_labels))
    others = config.scores != config.default("scores")
    return config.result_path(
        trained,
        "anomaly",
        trained.input.label.removeprefix("input_"),
        labels and f"labels_{labels}",
        config.part("num_images"),
        "_".join(config.scores) if others else "",
    )
