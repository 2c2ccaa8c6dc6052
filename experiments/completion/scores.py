"""How good completions are: errors, calibration, coverage, and the tables of them."""

from typing import Any

import numpy as np

from experiments.command import report
from experiments.command.report import field
from experiments.completion.config import NOMINAL
from experiments.completion.methods import Completed
from experiments.measures import measure
from experiments.runs import trained_runs
from vae_jax.data import batches
from vae_jax.evaluation import calibration

BASELINE = "training_mean"
MEANINGS = {
    "rmse": "root mean squared error of the mean completion, on hidden entries",
    "error_rate": "share of hidden entries on the wrong side of P = 1/2",
    "entry_log_likelihood": "log p of hidden entries one by one, nats per row",
    "log_p_of_truth": "log mean_s p(x_mis | z_s) over the draws, nats per row",
    "log_p_of_truth_standard_error": "of its mean over rows",
    "expected_calibration_error": "of P(entry = 1)",
    "coverage": f"share of hidden entries in their {NOMINAL:.0%} intervals",
    "interval_width": "mean width of those",
    "acceptance": "mean acceptance probability",
}
BINS = [
    field("from", "low", ".1f", 6),
    field("to", "high", ".1f", 5),
    field("entries", "num_entries", width=9),
    field("predicted", "predicted", ".3f"),
    field("observed", "observed", ".3f"),
]


def training_values(trained: trained_runs.Trained) -> np.ndarray:
    """Up to 10,000 training observations [N, *X]; NaN where they have holes."""
    size = min(len(trained.stored("train")), 10_000)
    rows = trained_runs.rows(trained, split="train", num_images=size)
    if trained.config.binarization not in batches.REDRAWN:
        rows = trained.data.prepared.value(rows)
    return np.asarray(trained.data.observed(rows))


def scores(
    truth: np.ndarray,
    hidden: np.ndarray,
    results: dict[str, Completed],
    training: np.ndarray,
    quantity: str,
    *,
    are_counts: bool = False,
    are_numbers: np.ndarray | bool = True,
    units: np.ndarray | float = 1.0,
) -> dict[str, dict[str, Any]]:
    """The figures of each method, and of the training mean, on the hidden entries.

    Entries whose truth is not known are left out. Errors and widths are in `units` of
    each entry; bits are told by their probability, all else by intervals.

    Args:
        truth: [N, *X], NaN where nobody knows it.
        hidden: of those the entries that were completed.
        results: of each method.
        training: rows [M, *X], NaN where they have holes.
        quantity: what log p(x | z) is.
        are_counts: whether entries may be any count, whichever are seen.
        are_numbers: [*X], those that errors and intervals are of; levels have neither.
        units: of each entry.
    """
    scored = hidden & ~np.isnan(truth) & are_numbers
    observed = ~np.isnan(training)
    has_probability = quantity == "log-likelihood" and not are_counts
    are_bits = has_probability and set(truth[scored]) <= {0.0, 1.0}
    total = np.where(observed, training, 0.0).sum(0, dtype=np.float64)
    baseline = total / np.maximum(observed.sum(0), 1)
    means = {BASELINE: np.broadcast_to(baseline, truth.shape)}
    means |= {n: np.asarray(r.draws.mean, np.float64) for n, r in results.items()}
    figures: dict[str, dict[str, Any]] = {}
    for name, mean in means.items():
        row: dict[str, Any] = {}
        if scored.any():
            error = ((mean - truth) / units)[scored]
            row["rmse"] = float(np.sqrt((error**2).mean()))
        figures[name], result = row, results.get(name)
        if name == "metropolis_within_gibbs" and result is not None:
            row["acceptance"] = float(result.draws.acceptance.mean())
        if quantity == "cross-entropy":
            continue
        if result is not None:
            row |= _mean("log_p_of_truth", result.log_p_of_truth)
        if not scored.any():
            continue
        if are_bits:
            bits = calibration.of_bits(np.clip(mean, 0.0, 1.0), truth, scored)
            row |= bits._asdict()
            row["calibration"] = [b._asdict() for b in bits.calibration]
            continue
        draws = (
            training if result is None else np.asarray(result.draws.x).swapaxes(0, 1)
        )
        low, high = (
            np.broadcast_to(end, truth.shape)[scored]
            for end in calibration.intervals(draws, nominal=NOMINAL)
        )
        row |= calibration.coverage(low, high, truth[scored])._asdict()
        of_each = np.broadcast_to(units, truth.shape)[scored]
        row["interval_width"] = float(((high - low) / of_each).mean())
    return figures


def differences(
    truth: np.ndarray, hidden: np.ndarray, results: dict[str, Completed]
) -> dict[str, float]:
    """Metropolis-within-Gibbs minus pseudo-Gibbs over the images, in pairs.

    With standard errors; empty where one of the two was not run.
    """
    if not {"metropolis_within_gibbs", "pseudo_gibbs"} <= set(results):
        return {}
    scored, axes = hidden & ~np.isnan(truth), tuple(range(1, truth.ndim))

    def per_image(name: str) -> tuple[np.ndarray, np.ndarray]:
        squares = np.where(scored, (results[name].draws.mean - truth) ** 2, 0.0)
        log_p = np.asarray(results[name].log_p_of_truth, np.float64)
        return squares.sum(axes) / np.maximum(scored.sum(axes), 1), log_p

    pairs = zip(
        ("mean_squared_error", "log_p_of_truth"),
        per_image("metropolis_within_gibbs"),
        per_image("pseudo_gibbs"),
        strict=True,
    )
    figures: dict[str, float] = {}
    for name, exact, rough in pairs:
        figures |= _mean(name, exact - rough)
    return figures


def _mean(name: str, values: Any) -> dict[str, float]:
    values = np.asarray(values, np.float64)
    return {
        name: float(values.mean()),
        f"{name}_standard_error": measure.standard_error(values),
    }


def table(result: dict[str, Any], of_columns: list[str]) -> str:
    """The report as lines of text, with those of a table's columns."""
    methods, share = result["methods"], f"{result['share_hidden']:.1%} hidden"
    if result["mask"] == "none":
        share = f"{result['share_missing']:.1%} missing, no more hidden"
    lines = [
        *trained_runs.heading(result),
        f"mask {result['mask']}: {share}",
        *result["notes"],
        "",
    ]
    for name, meaning in MEANINGS.items():
        figures = {m: row[name] for m, row in methods.items() if name in row}
        if figures:
            lines += [f"{name}: {meaning}", *report.numbers(figures, ".5f")]
    lines += of_columns
    if result["log_p_truth"]:
        log_p = result["log_p_truth"]
        numbers = {n: x for n, x in log_p.items() if isinstance(x, float)}
        lines += ["", "log p(x_mis | x_obs) = log p(x) - log p(x_obs), nats per row:"]
        lines += report.numbers(numbers, ".5f")
        lines += [f"  {doubt}" for doubt in log_p["doubts"]]
    if result["differences"]:
        lines += ["", "Metropolis-within-Gibbs minus pseudo-Gibbs, row by row:"]
        lines += report.numbers(result["differences"], ".5f")
    for name, row in methods.items():
        if "calibration" in row:
            lines += ["", f"P(entry = 1) of {name}:"]
            lines.append(report.table(BINS, row["calibration"]))
    return "\n".join(lines)
