"""Whether stated probabilities and intervals hold; NumPy arrays on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from vae_jax import numerics


class Bin(NamedTuple):
    """The predictions of P(x = 1) between two ends.

    Attributes:
        low: the least probability in it.
        high: its upper end, which the last bin alone includes.
        num_entries: how many predictions there are, one or more.
        predicted: their mean.
        observed: the share of them where x is 1.
    """

    low: float
    high: float
    num_entries: int
    predicted: float
    observed: float


class Coverage(NamedTuple):
    """How intervals compare with what came true.

    Attributes:
        coverage: the share of entries within their interval.
        interval_width: the mean width, in the units of x.
    """

    coverage: float
    interval_width: float


class OfBits(NamedTuple):
    """How probabilities of bits compare with the bits.

    Attributes:
        error_rate: share of entries on the wrong side of P = 1/2.
        entry_log_likelihood: log p of the entries one by one, nats per image.
        expected_calibration_error: as the function of that name.
        calibration: bins of the reliability diagram.
    """

    error_rate: float
    entry_log_likelihood: float
    expected_calibration_error: float
    calibration: list[Bin]


def of_bits(
    probabilities: Float[np.ndarray, "N *X"],
    x: Float[np.ndarray, "N *X"],
    scored: Bool[np.ndarray, "N *X"],
    *,
    least: float = 1e-4,
) -> OfBits:
    """Errors and calibration of P(x = 1) on the scored entries of N images.

    Args:
        probabilities: of every entry.
        x: zeros and ones; not read where not scored.
        scored: the entries that count.
        least: the probability that no bit is denied, so that its log is finite.

    Raises:
        ValueError: as `reliability`; if no entry is scored.
    """
    if not scored.any():
        raise ValueError("errors and calibration need an entry that is scored: none is")
    p, truth = probabilities[scored], x[scored]
    bins = reliability(p, truth)
    certain = np.clip(p, least, 1.0 - least)
    log_p = np.where(truth > 0.5, np.log(certain), np.log1p(-certain))
    return OfBits(
        error_rate=float(((p > 0.5) != (truth > 0.5)).mean()),
        entry_log_likelihood=float(log_p.sum() / len(x)),
        expected_calibration_error=expected_calibration_error(bins),
        calibration=bins,
    )


def reliability(
    probabilities: Float[np.ndarray, " N"],
    x: Float[np.ndarray, " N"],
    *,
    num_bins: int = 10,
) -> list[Bin]:
    """Bins of equal width of P(x = 1), those without predictions left out.

    The points of a reliability diagram (Niculescu-Mizil & Caruana 2005, Predicting good
    probabilities with supervised learning).

    Raises:
        ValueError: for probabilities outside [0, 1], or as many of one as not of the
            other.
    """
    if probabilities.shape != x.shape:
        raise ValueError(
            f"probabilities and x must be of one shape, got {probabilities.shape} and "
            f"{x.shape}"
        )
    numerics.check_in("[0, 1]", probabilities=probabilities)
    which = np.minimum((probabilities * num_bins).astype(int), num_bins - 1)
    return [
        Bin(
            b / num_bins,
            (b + 1) / num_bins,
            int((which == b).sum()),
            float(probabilities[which == b].mean(dtype=np.float64)),
            float(x[which == b].mean(dtype=np.float64)),
        )
        for b in np.unique(which).tolist()
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean of |predicted - observed| over the predictions of all bins.

    Naeini et al. 2015, Obtaining well calibrated probabilities using Bayesian binning.

    Raises:
        ValueError: for no predictions.
    """
    total = sum(b.num_entries for b in bins)
    if not total:
        raise ValueError("bins of no predictions have no calibration error")
    return sum(b.num_entries * abs(b.predicted - b.observed) for b in bins) / total


def intervals(
    draws: Float[np.ndarray, "S *N"], *, nominal: float
) -> tuple[Float[np.ndarray, " *N"], Float[np.ndarray, " *N"]]:
    """Ends of the intervals that hold that share of the draws, with equal tails.

    Args:
        draws: S for each entry; NaN is left out.
        nominal: the share, above 0 and below 1.

    Raises:
        ValueError: for another share.
    """
    numerics.check_in("(0, 1)", nominal=nominal)
    tails = [(1.0 - nominal) / 2.0, (1.0 + nominal) / 2.0]
    low, high = np.nanquantile(draws, tails, axis=0)
    return low, high


def coverage(
    low: Float[np.ndarray, " N"],
    high: Float[np.ndarray, " N"],
    x: Float[np.ndarray, " N"],
) -> Coverage:
    """How many x lie between the ends of their intervals, and how wide these are."""
    inside, width = (low <= x) & (x <= high), high - low
    return Coverage(float(inside.mean()), float(width.mean(dtype=np.float64)))
