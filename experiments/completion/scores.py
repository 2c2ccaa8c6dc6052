"""How good completions are: errors, calibration, coverage, and the tables of them."""

from typing import Any

import numpy as np

from experiments.command import report
from experiments.command.report import field
from experiments.completion.methods import Completed
from experiments.measures import measure
from experiments.runs import trained_runs
from vae_jax.evaluation import calibration

NOMINAL = 0.9  # of predictive intervals
BASELINE = "training_mean"
MEANINGS = {
    "rmse": "root mean squared error of the mean completion, on hidden entries",
    "error_rate": "share of hidden pixels on the wrong side of P = 1/2",
    "entry_log_likelihood": "log p of hidden pixels one by one, nats per image",
    "log_p_of_truth": "log mean_s p(x_mis | z_s) over the draws, nats per image",
    "log_p_of_truth_standard_error": "of its mean over images",
    "expected_calibration_error": "of P(pixel = 1)",
    "coverage": f"share of hidden entries in their {NOMINAL:.0%} intervals",
    "interval_width": "mean width of those",
    "acceptance": "mean acceptance probability",
}
NUMBERS = [field("", "name", width=35), field("", "value", ".5f", 12)]
BINS = [
    field("from", "low", ".1f", 6),
    field("to", "high", ".1f", 5),
    field("pixels", "num_entries", width=9),
    field("predicted", "predicted", ".3f"),
    field("observed", "observed", ".3f"),
]


def training_values(trained: trained_runs.Trained) -> np.ndarray:
    """Up to 10,000 training observations [N, *X]; NaN where they have holes."""
    size = min(len(trained.data.prepared.train), 10_000)
    rows = trained_runs.rows(trained, split="train", num_images=size)
    if trained.config.binarization == "dynamic":
        return np.asarray(rows)
    return np.asarray(trained.data.prepared.value(rows))


def scores(
    truth: np.ndarray,
    hidden: np.ndarray,
    results: dict[str, Completed],
    training: np.ndarray,
    quantity: str,
) -> dict[str, dict[str, Any]]:
    """The figures of each method, and of the training mean, on the hidden entries.

    Entries whose truth is not known are left out.
    """
    scored = hidden & ~np.isnan(truth)
    known = ~np.isnan(training)
    total = np.where(known, training, 0.0).sum(0, dtype=np.float64)
    baseline = total / np.maximum(known.sum(0), 1)
    means = {BASELINE: np.broadcast_to(baseline, truth.shape)}
    means |= {n: np.asarray(r.draws.mean, np.float64) for n, r in results.items()}
    figures: dict[str, dict[str, Any]] = {
        name: {"rmse": float(np.sqrt(((mean - truth)[scored] ** 2).mean()))}
        for name, mean in means.items()
    }
    if "metropolis_within_gibbs" in results:
        acceptance = results["metropolis_within_gibbs"].draws.acceptance.mean()
        figures["metropolis_within_gibbs"]["acceptance"] = float(acceptance)
    if quantity == "cross-entropy":
        return figures
    for name, result in results.items():
        log_p = result.log_p_of_truth.astype(np.float64)
        figures[name] |= {
            "log_p_of_truth": float(log_p.mean()),
            "log_p_of_truth_standard_error": measure.standard_error(log_p),
        }
    for name, mean in means.items():
        if quantity == "log-likelihood":
            figures[name] |= _of_binary(np.clip(mean, 0.0, 1.0), truth, scored)
            continue
        draws = (
            training if name == BASELINE else np.moveaxis(results[name].draws.x, 1, 0)
        )
        low, high = (
            np.broadcast_to(end, truth.shape)[scored]
            for end in calibration.intervals(draws, nominal=NOMINAL)
        )
        figures[name] |= calibration.coverage(low, high, truth[scored])._asdict()
    return figures


def _of_binary(p: np.ndarray, truth: np.ndarray, scored: np.ndarray) -> dict[str, Any]:
    """Figures of P(pixel = 1) [N, *X]."""
    bins = calibration.reliability(p[scored], truth[scored])
    certain = np.clip(p, 1e-4, 1.0 - 1e-4)
    terms = np.where(truth > 0.5, np.log(certain), np.log1p(-certain))
    return {
        "error_rate": float(((p > 0.5) != (truth > 0.5))[scored].mean()),
        "entry_log_likelihood": float(np.where(scored, terms, 0.0).sum() / len(truth)),
        "expected_calibration_error": calibration.expected_calibration_error(bins),
        "calibration": [b._asdict() for b in bins],
    }


def differences(
    truth: np.ndarray, hidden: np.ndarray, results: dict[str, Completed]
) -> dict[str, float]:
    """Metropolis-within-Gibbs minus pseudo-Gibbs over the images, in pairs.

    With standard errors; empty where one of the two was not run.
    """
    if not {"metropolis_within_gibbs", "pseudo_gibbs"} <= set(results):
        return {}
    exact, rough = results["metropolis_within_gibbs"], results["pseudo_gibbs"]
    scored = (hidden & ~np.isnan(truth)).reshape(len(truth), -1)

    def mean_squared_error(result: Completed) -> np.ndarray:
        squares = (result.draws.mean - truth).reshape(scored.shape) ** 2
        totals = np.where(scored, squares, 0.0).sum(1)
        return totals / np.maximum(scored.sum(1), 1)

    pairs = {
        "mean_squared_error": mean_squared_error(exact) - mean_squared_error(rough),
        "log_p_of_truth": exact.log_p_of_truth.astype(np.float64)
        - rough.log_p_of_truth,
    }
    figures = {}
    for name, difference in pairs.items():
        figures[name] = float(difference.mean())
        figures[f"{name}_standard_error"] = measure.standard_error(difference)
    return figures


def table(result: dict[str, Any]) -> str:
    """The report as lines of text."""
    stamp, methods = result["protocol"], result["methods"]
    lines = [
        f"{stamp['dataset']}, binarization {stamp['binarization']}, likelihood "
        f"{stamp['likelihood']}, trained with missing={stamp['missing']} rate "
        f"{stamp['missing_rate']:g}",
        f"{result['split']} split, {result['num_images']} images, mask "
        f"{result['mask']}: {result['share_hidden']:.1%} hidden, step {result['step']}",
        *result["notes"],
        "",
    ]
    for name, meaning in MEANINGS.items():
        figures = {m: row[name] for m, row in methods.items() if name in row}
        if figures:
            lines += [f"{name}: {meaning}", *_numbers(figures)]
    if result["log_p_truth"]:
        doubts = result["log_p_truth"]["doubts"]
        numbers = {n: v for n, v in result["log_p_truth"].items() if n != "doubts"}
        lines += ["", "log p(x_mis | x_obs) = log p(x) - log p(x_obs), nats per image:"]
        lines += [*_numbers(numbers), *(f"  {doubt}" for doubt in doubts)]
    if result["differences"]:
        lines += ["", "Metropolis-within-Gibbs minus pseudo-Gibbs, image by image:"]
        lines += _numbers(result["differences"])
    for name, row in methods.items():
        if "calibration" in row:
            lines += ["", f"P(pixel = 1) of {name}:"]
            lines.append(report.table(BINS, row["calibration"]))
    return "\n".join(lines)


def _numbers(figures: dict[str, float]) -> list[str]:
    rows = ({"name": f"  {name}", "value": v} for name, v in figures.items())
    return [report.line(NUMBERS, row) for row in rows]
