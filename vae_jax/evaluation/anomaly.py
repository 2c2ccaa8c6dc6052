r"""How strange a row is to a model, and alarms whose false-alarm rate is guaranteed.

Every score is larger for a stranger row. Scores of one example are functions
(key, params, x) -> nats; what is made of the log p(x) of many rows, and what is said of
scores, is NumPy in double precision.

A likelihood is no measure of strangeness by itself: rows of another distribution that
is narrower and near the mean have a greater log p(x) than the model's own (Nalisnick et
al. 2019, arXiv:1810.09136; `expected_log_density_difference` says by how much for
normals). So no score is claimed to find any outlier. What holds for every score is the
conformal guarantee: `p_values` of rows that are exchangeable with the calibration rows
are at most alpha with a probability of at most alpha.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import special, stats

from vae_jax import numerics
from vae_jax.estimators import sgvb
from vae_jax.evaluation import gaps
from vae_jax.types import Model, Params, PRNGKey, Scalar


class BoundScores(NamedTuple):
    """Scores of one example from one estimate of the bound, nats.

    Attributes:
        elbo: minus the ELBO.
        reconstruction: minus E_q[log p(x | z)].
        kl: KL(q(z | x) || p(z)).
    """

    elbo: Scalar
    reconstruction: Scalar
    kl: Scalar


class NormalOfCodes(NamedTuple):
    """A normal fitted to codes.

    Attributes:
        mean: of the codes.
        scale_tril: Cholesky factor of their covariance.
    """

    mean: Float[np.ndarray, " D"]
    scale_tril: Float[np.ndarray, "D D"]


class Share(NamedTuple):
    """A share of rows, and the interval of the probability behind it.

    Attributes:
        share: the rows counted, of all.
        lower: end of the interval.
        upper: its other end.
    """

    share: float
    lower: float
    upper: float


class Auroc(NamedTuple):
    """P(an outlier's score is above an inlier's), ties counted as halves.

    Attributes:
        auroc: the estimate; 1 tells them apart, 1/2 is chance, 0 the wrong way round.
        standard_error: by DeLong.
        lower: end of the interval, not below 0.
        upper: its other end, not above 1.
    """

    auroc: float
    standard_error: float
    lower: float
    upper: float


def bound_scores(
    model: Model, *, num_samples: int
) -> Callable[[PRNGKey, Params, Array], BoundScores]:
    """(key, params, x) -> minus the ELBO, minus the reconstruction, and the KL.

    Raises:
        ValueError: if num_samples is below one.
    """
    terms = sgvb.elbo_terms(model, num_samples=num_samples)

    def scores(key: PRNGKey, params: Params, x: Array) -> BoundScores:
        reconstruction, kl = terms(key, params, x)
        return BoundScores(kl - reconstruction, -reconstruction, kl)

    return scores


def likelihood_regret(
    model: Model,
    fit: Callable[[PRNGKey, Params, Array, Array], gaps.LocalFit],
    *,
    num_samples: int,
) -> Callable[[PRNGKey, Params, Array], Scalar]:
    """(key, params, x) -> max over q of the ELBO less that of the encoder's q, nats.

    Xiao et al. 2020 (arXiv:2003.02977): the amortization gap of one example, by which
    the encoder is worse on x than a q of x alone. Below zero by noise only.

    Args:
        model: p and q.
        fit: of `gaps.fit_local`, of the encoder's own family.
        num_samples: of the encoder's bound.

    Raises:
        ValueError: if num_samples is below one.
    """
    bound = sgvb.sgvb_a(model, num_samples=num_samples)

    def score(key: PRNGKey, params: Params, x: Array) -> Scalar:
        key_fit, key_bound = jax.random.split(key)
        best = fit(key_fit, params, x, model.recognition.encode(params, x))
        return best.bound - bound(key_bound, params, x)

    return score


def likelihood_ratio(
    log_p: Float[np.ndarray, " N"], background_log_p: Float[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """log p_background(x) - log p(x), nats: Ren et al. 2019 (arXiv:1906.02845).

    Args:
        log_p: of the model.
        background_log_p: of a model of what all rows share, such as one that was
            trained on rows of which a part of the entries was drawn again.
    """
    return np.asarray(background_log_p, np.float64) - np.asarray(log_p, np.float64)


def input_complexity(
    log_p: Float[np.ndarray, " N"], compressed_bits: Float[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """-log2 p(x) less the bits of a generic compressor: Serra et al. 2020.

    arXiv:1909.11480. In bits; log p(x) must be of the values that are compressed.

    Args:
        log_p: nats.
        compressed_bits: of each row by itself.
    """
    return -np.asarray(log_p, np.float64) / math.log(2.0) - compressed_bits


def waic(log_p: Float[np.ndarray, "S N"]) -> Float[np.ndarray, " N"]:
    """Var log p(x) - E log p(x) over S models: Choi et al. 2018 (arXiv:1810.01392).

    Args:
        log_p: of the same rows under models that differ in their seed, nats.

    Raises:
        ValueError: for fewer than two models.
    """
    log_p = np.asarray(log_p, np.float64)
    if log_p.ndim != 2 or len(log_p) < 2:
        raise ValueError(
            f"waic needs log_p [S, N] of at least two models, got {log_p.shape}"
        )
    return log_p.var(axis=0, ddof=1) - log_p.mean(axis=0)


def typicality(
    log_p: Float[np.ndarray, " N"], reference_log_p: Float[np.ndarray, " M"]
) -> Float[np.ndarray, " N"]:
    """|-log p(x) - H|, H the mean of -log p over the reference rows, nats.

    Nalisnick et al. 2019 (arXiv:1906.02994), for single rows. The reference rows must
    not be those that the scores are calibrated on: these would know H, and the rows to
    be judged not.
    """
    entropy = -np.mean(reference_log_p, dtype=np.float64)
    return np.abs(-np.asarray(log_p, np.float64) - entropy)


def normal_of_codes(codes: Float[np.ndarray, "N D"]) -> NormalOfCodes:
    """Mean and covariance (over N - 1) of codes.

    Raises:
        ValueError: for a covariance that is singular, as it is for N <= D.
    """
    codes = np.asarray(codes, np.float64)
    mean = codes.mean(axis=0)
    scaled = (codes - mean) / math.sqrt(max(len(codes) - 1, 1))
    triangle = np.asarray(np.linalg.qr(scaled, mode="r"))
    diagonal = np.abs(np.diagonal(triangle))
    least = np.finfo(np.float64).eps * len(codes) * diagonal.max(initial=0.0)
    if len(codes) <= codes.shape[1] or not diagonal.min() > least:
        raise ValueError(
            f"the covariance of {len(codes)} codes of {codes.shape[1]} latents is "
            "singular: give more rows, or leave out latents that do not vary"
        )
    signs = np.sign(np.diagonal(triangle))
    return NormalOfCodes(mean, np.transpose(triangle * signs[:, None]))


def mahalanobis(
    codes: Float[np.ndarray, "N D"], reference: NormalOfCodes
) -> Float[np.ndarray, " N"]:
    """Distance of codes from the mean, in standard deviations: Lee et al. 2018.

    arXiv:1807.03888, with the one normal of `normal_of_codes`.
    """
    deviation = np.asarray(codes, np.float64) - reference.mean
    return np.linalg.norm(np.linalg.solve(reference.scale_tril, deviation.T), axis=0)


def expected_log_density_difference(
    mean: Float[np.ndarray, " P"],
    covariance: Float[np.ndarray, "P P"],
    outlier_mean: Float[np.ndarray, " P"],
    outlier_covariance: Float[np.ndarray, "P P"],
) -> float:
    r"""E_outliers log p(x) - E_p log p(x) in nats, for the normal p = N(m, S).

    $-\frac12\mathrm{tr}(S^{-1}(S_o - S)) - \frac12 (m_o - m)^TS^{-1}(m_o - m)$,
    whatever the outliers' distribution is, of which only the mean m_o and covariance
    S_o count. Above zero where they are narrower than the model and near its mean: then
    log p(x) takes them for less strange than its own draws (Nalisnick et al. 2019,
    arXiv:1810.09136, section 5).
    """
    shift = np.asarray(outlier_mean) - mean
    wider = np.linalg.solve(covariance, np.asarray(outlier_covariance) - covariance)
    return float(-0.5 * (np.trace(wider) + shift @ np.linalg.solve(covariance, shift)))


def p_values(
    scores: Float[np.ndarray, " N"], calibration: Float[np.ndarray, " M"]
) -> Float[np.ndarray, " N"]:
    r"""Split-conformal p-values, (1 + #{calibration >= score}) / (M + 1).

    Vovk et al. 2005 (Algorithmic Learning in a Random World); Bates et al. 2023
    (arXiv:2104.08279). For a row that is exchangeable with the calibration rows,
    P(p <= alpha) <= alpha for every alpha, exactly, at any M and whatever the score
    and its ties. The probability is over the calibration rows too: given them, the
    rate varies with about sqrt(alpha (1 - alpha) / M). Rows of one set share the
    calibration rows, so their p-values depend on each other.

    Raises:
        ValueError: for NaN, or no calibration rows.
    """
    scores = _checked("scores", scores)
    ordered = np.sort(_checked("calibration", calibration))
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1.0 + at_least) / (len(ordered) + 1.0)


def alarm_threshold(calibration: Float[np.ndarray, " M"], *, rate: float) -> float:
    """The score above which a row's p-value is at most the rate.

    `scores > alarm_threshold(calibration, rate=rate)` flags the same rows as
    `p_values(scores, calibration) <= rate`.

    Args:
        calibration: scores of rows that neither trained the model nor are judged.
        rate: of false alarms, between 0 and 1.

    Raises:
        ValueError: for NaN, a rate that is not between 0 and 1, or fewer than
            1 / rate - 1 calibration rows, with which no row could ever be flagged.
    """
    ordered = np.sort(_checked("calibration", calibration))[::-1]
    numerics.check_in("(0, 1)", rate=rate)
    possible = np.arange(1.0, len(ordered) + 1.0) / (len(ordered) + 1.0)
    allowed = int((possible <= rate).sum())  # 1 + #{calibration >= score} at most
    if not allowed:
        least = 1.0 / (len(ordered) + 1.0)
        scale = 10.0 ** (1 - math.floor(math.log10(least)))
        raise ValueError(
            f"no row can be flagged at a rate of {rate:g} by {len(ordered)} "
            f"calibration rows: give at least {math.ceil(1.0 / rate) - 1}, or a rate "
            f"of at least {math.ceil(least * scale) / scale:.2g}"
        )
    return float(ordered[allowed - 1])


def share(flagged: Bool[np.ndarray, " N"], *, level: float = 0.95) -> Share:
    """The share of flagged rows, with the exact interval of Clopper & Pearson 1934.

    It holds the probability of a flag with at least the level, for independent rows.

    Raises:
        ValueError: for no rows, or a level that is not between 0 and 1.
    """
    num_rows, number = len(flagged), int(np.sum(flagged))
    numerics.check_positive(num_rows=num_rows)
    numerics.check_in("(0, 1)", level=level)
    tail, others = 0.5 * (1.0 - level), num_rows - number
    lower = special.betaincinv(number, others + 1.0, tail) if number else 0.0
    upper = special.betaincinv(number + 1.0, others, 1.0 - tail) if others else 1.0
    return Share(number / num_rows, float(lower), float(upper))


def auroc(
    outliers: Float[np.ndarray, " N"],
    inliers: Float[np.ndarray, " M"],
    *,
    level: float = 0.95,
) -> Auroc:
    """The area under the ROC curve, with DeLong's interval.

    DeLong et al. 1988 (Comparing the areas under two or more correlated receiver
    operating characteristic curves), by mid-ranks: with the placement of each row
    among those of the other kind, the variance is the sum of the placements' variances
    over their numbers. The interval is normal and cut at 0 and 1: where the two kinds
    do not overlap it has no width, which is too little.

    Raises:
        ValueError: for NaN, fewer than two rows of a kind, or a level that is not
            between 0 and 1.
    """
    outliers, inliers = _checked("outliers", outliers), _checked("inliers", inliers)
    numerics.check_in("(0, 1)", level=level)
    sizes = num_outliers, num_inliers = len(outliers), len(inliers)
    if min(sizes) < 2:
        raise ValueError(
            f"AUROC needs two outliers and two inliers at least, got {num_outliers} "
            f"and {num_inliers}"
        )
    together = stats.rankdata(np.concatenate([outliers, inliers]))
    above = (together[:num_outliers] - stats.rankdata(outliers)) / num_inliers
    below = (together[num_outliers:] - stats.rankdata(inliers)) / num_outliers
    value = float(above.mean())
    variance = above.var(ddof=1) / num_outliers + below.var(ddof=1) / num_inliers
    error = float(np.sqrt(variance))
    half = float(special.ndtri(0.5 * (1.0 + level))) * error
    return Auroc(value, error, max(value - half, 0.0), min(value + half, 1.0))


def roc_curve(
    outliers: Float[np.ndarray, " N"], inliers: Float[np.ndarray, " M"]
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Shares of inliers and of outliers at or above each threshold, from none to all.

    Raises:
        ValueError: for NaN, or no rows of a kind.
    """
    outliers, inliers = _checked("outliers", outliers), _checked("inliers", inliers)
    thresholds = np.unique(np.concatenate([outliers, inliers]))[::-1]
    shares = []
    for scores in (inliers, outliers):
        below = np.searchsorted(np.sort(scores), thresholds, side="left")
        shares.append(np.concatenate([[0.0], (len(scores) - below) / len(scores)]))
    return shares[0], shares[1]


def false_positive_rate(
    outliers: Float[np.ndarray, " N"],
    inliers: Float[np.ndarray, " M"],
    *,
    true_positive_rate: float = 0.95,
) -> float:
    """The share of inliers at or above a threshold that as many outliers reach.

    The highest such threshold. It is chosen by the outliers, which an alarm does not
    know: for comparison with papers only.

    Raises:
        ValueError: for NaN, no rows of a kind, or a rate outside (0, 1].
    """
    numerics.check_in("(0, 1]", true_positive_rate=true_positive_rate)
    of_inliers, of_outliers = roc_curve(outliers, inliers)
    return float(of_inliers[np.argmax(of_outliers >= true_positive_rate)])


def _checked(name: str, scores: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Scores in double precision; infinity is a score.

    Raises:
        ValueError: for NaN, or none.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"{name} must be [N] with at least one row: {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError(
            f"{name} of row {int(np.isnan(scores).argmax())} is NaN, and "
            f"{int(np.isnan(scores).sum())} of {len(scores)} are: no order holds them"
        )
    return scores
