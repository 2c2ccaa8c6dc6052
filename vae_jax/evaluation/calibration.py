"""Whether stated probabilities and intervals hold; NumPy arrays on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


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
    if not ((probabilities >= 0.0) & (probabilities <= 1.0)).all():
        raise ValueError("probabilities must lie in [0, 1]")
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
    """
    total = sum(b.num_entries for b in bins)
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
    if not 0.0 < nominal < 1.0:
        raise ValueError(f"nominal must lie between 0 and 1, got {nominal}")
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
