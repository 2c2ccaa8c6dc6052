"""How good completions are: errors, calibration, coverage, and the table of them."""

from typing import Any

import numpy as np

from experiments.completion.methods import Found
from experiments.measures import measure
from experiments.runs import trained_runs

NUM_BINS = 10
NOMINAL = 0.9  # of predictive intervals
BASELINE = "training_mean"
CHAIN, ROUGH = "metropolis_within_gibbs", "pseudo_gibbs"
SHOWN = {  # what a table shows of a method, by its unit
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


def training_values(trained: trained_runs.Trained) -> np.ndarray:
    """Up to 10,000 training observations [N, *X]; NaN where they have holes."""
    size = min(len(trained.data.prepared.train), 10_000)
    rows = trained_runs.rows(trained, split="train", num_images=size)
    raw_or_drawn = np.asarray(rows)
    if trained.config.binarization == "dynamic":
        return raw_or_drawn
    return np.asarray(trained.data.prepared.value(rows))


def scores(
    truth: np.ndarray,
    hidden: np.ndarray,
    found: dict[str, Found],
    training: np.ndarray,
    quantity: str,
) -> dict[str, dict[str, Any]]:
    """The figures of each method, and of the training mean, on the hidden entries.

    Entries whose truth is not known are left out.
    """
    scored = hidden & ~np.isnan(truth)
    means = {BASELINE: _training_mean(training, truth.shape)}
    means |= {name: method.mean for name, method in found.items()}
    result = {name: _errors(mean, truth, scored) for name, mean in means.items()}
    if CHAIN in found:
        result[CHAIN]["acceptance"] = float(found[CHAIN].acceptance.mean())
    if quantity == "cross-entropy":
        return result
    for name, method in found.items():
        result[name] |= {
            "log_p_of_truth": float(method.score.mean(dtype=np.float64)),
            "log_p_of_truth_standard_error": measure.standard_error(method.score),
        }
    if quantity == "log-likelihood":
        for name, mean in means.items():
            result[name] |= _of_binary(mean, truth, scored)
    else:
        result[BASELINE] |= _coverage(training, truth, scored)
        for name, method in found.items():
            result[name] |= _coverage(np.moveaxis(method.x, 1, 0), truth, scored)
    return result


def table(result: dict[str, Any]) -> str:
    """The report as lines of text."""
    stamp = result["protocol"]
    lines = [
        f"{stamp['dataset']}, binarization {stamp['binarization']}, likelihood "
        f"{stamp['likelihood']}, trained with missing={stamp['missing']} rate "
        f"{stamp['missing_rate']:g}",
        f"{result['split']} split, {result['num_images']} images, mask "
        f"{result['mask']}: {result['share_hidden']:.1%} hidden, step {result['step']}",
        *result["notes"],
        "",
    ]
    methods = result["methods"]
    for name, meaning in SHOWN.items():
        rows = {m: f[name] for m, f in methods.items() if name in f}
        if rows:
            lines.append(f"{name}: {meaning}")
            lines.extend(f"  {m:<32}{value:12.4f}" for m, value in rows.items())
    if result["log_p_truth"]:
        lines += ["", "log p(x_mis | x_obs) = log p(x) - log p(x_obs), nats per image:"]
        for name, value in result["log_p_truth"].items():
            if name != "doubts":
                lines.append(f"  {name:<32}{value:12.4f}")
        lines.extend(f"  {doubt}" for doubt in result["log_p_truth"]["doubts"])
    if result["differences"]:
        lines += ["", "Metropolis-within-Gibbs minus pseudo-Gibbs, image by image:"]
        for name, value in result["differences"].items():
            lines.append(f"  {name:<48}{value:12.5f}")
    return "\n".join([*lines, *_calibration_lines(methods)])


def calibration(p: np.ndarray, x: np.ndarray) -> list[dict[str, float]]:
    """Bins of equal width of P(x = 1): how often x is 1 there. Empty bins are left out.

    p and x are [N], of all hidden pixels.
    """
    bins = np.minimum((p * NUM_BINS).astype(int), NUM_BINS - 1)
    rows = []
    for b in range(NUM_BINS):
        inside = bins == b
        if inside.any():
            row = {"from": b / NUM_BINS, "to": (b + 1) / NUM_BINS}
            row |= {"pixels": int(inside.sum()), "predicted": float(p[inside].mean())}
            rows.append(row | {"observed": float(x[inside].mean())})
    return rows


def expected_calibration_error(rows: list[dict[str, float]]) -> float:
    """Mean of |predicted - observed| over the pixels of all bins."""
    total = sum(row["pixels"] for row in rows)
    apart = (row["pixels"] * abs(row["predicted"] - row["observed"]) for row in rows)
    return sum(apart) / total


def _training_mean(training: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    known = ~np.isnan(training)
    total = np.where(known, training, 0.0).sum(0, dtype=np.float64)
    mean = total / np.maximum(known.sum(0), 1)
    return np.broadcast_to(mean.astype(training.dtype), shape)


def _errors(mean: np.ndarray, truth: np.ndarray, scored: np.ndarray) -> dict[str, Any]:
    apart = (mean.astype(np.float64) - truth)[scored]
    return {"rmse": float(np.sqrt((apart**2).mean()))}


def _of_binary(
    mean: np.ndarray, truth: np.ndarray, scored: np.ndarray
) -> dict[str, Any]:
    """Figures of P(pixel = 1); certainties are held off 0 and 1 by 1e-4."""
    p, x = mean[scored].astype(np.float64), truth[scored]
    rows = calibration(p, x)
    return {
        "error_rate": float(((p > 0.5) != (x > 0.5)).mean()),
        "entry_log_likelihood": float(_entries(mean, truth, scored).mean()),
        "expected_calibration_error": expected_calibration_error(rows),
        "calibration": rows,
    }


def _entries(mean: np.ndarray, truth: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Sum over hidden pixels of log P(x_i), for each image [N]."""
    p = np.clip(mean.astype(np.float64), 1e-4, 1.0 - 1e-4)
    terms = np.where(truth > 0.5, np.log(p), np.log1p(-p))
    return np.where(scored, terms, 0.0).reshape(len(truth), -1).sum(1)


def _coverage(
    draws: np.ndarray, truth: np.ndarray, scored: np.ndarray
) -> dict[str, float]:
    """How often the truth lies between quantiles of draws [S, N, *X] or [S, *X]."""
    tails = (1.0 - NOMINAL) / 2.0, (1.0 + NOMINAL) / 2.0
    low, high = (
        np.broadcast_to(end, truth.shape)
        for end in np.nanquantile(draws, tails, axis=0)
    )
    inside = (low <= truth) & (truth <= high)
    width = (high - low)[scored]
    return {
        "coverage": float(inside[scored].mean()),
        "interval_width": float(width.mean()),
    }


def differences(
    truth: np.ndarray, hidden: np.ndarray, found: dict[str, Found]
) -> dict[str, float]:
    """Metropolis-within-Gibbs minus pseudo-Gibbs over the images, in pairs.

    With standard errors; empty where one of the two was not run.
    """
    if not {CHAIN, ROUGH} <= set(found):
        return {}
    one, other, scored = found[CHAIN], found[ROUGH], hidden & ~np.isnan(truth)

    def squared(found: Found) -> np.ndarray:
        apart = np.where(scored, (found.mean - truth).astype(np.float64) ** 2, 0.0)
        counts = np.maximum(scored.reshape(len(truth), -1).sum(1), 1)
        return apart.reshape(len(truth), -1).sum(1) / counts

    pairs = {
        "mean_squared_error": squared(one) - squared(other),
        "log_p_of_truth": one.score.astype(np.float64) - other.score,
    }
    result = {}
    for name, difference in pairs.items():
        result[name] = float(difference.mean())
        result[f"{name}_standard_error"] = measure.standard_error(difference)
    return result


def _calibration_lines(methods: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for name, figures in methods.items():
        if "calibration" in figures:
            lines += ["", f"P(pixel = 1) of {name}: pixels, predicted, observed"]
            lines.extend(
                f"  {row['from']:.1f} to {row['to']:.1f}{row['pixels']:10d}"
                f"{row['predicted']:10.3f}{row['observed']:10.3f}"
                for row in figures["calibration"]
            )
    return lines
