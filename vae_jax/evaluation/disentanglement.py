"""How well latents stand for factors: the metrics of the field, as published.

Codes [N, D] are beside the factors [N, F] of the same rows, whole numbers from 0; where
they are of every combination of a grid, what is counted is exact. Most protocols are
those of Locatello et al. 2019 (arXiv:1811.12359). scikit-learn fits; arrays are
NumPy's, on the host.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special
from sklearn import ensemble, linear_model, metrics, preprocessing, svm

from vae_jax import numerics


class Rows(NamedTuple):
    """Codes and the factors that they are of.

    Attributes:
        codes: mostly the means of q(z | x).
        factors: whole numbers from 0.
    """

    codes: Float[np.ndarray, "N D"]
    factors: Int[np.ndarray, "N F"]


class DCI(NamedTuple):
    """Eastwood & Williams 2018, each in [0, 1].

    Attributes:
        disentanglement: how far each latent is important to one factor alone.
        completeness: how far one latent alone is important to each factor.
        informativeness: accuracy on the test rows, mean over factors.
        importance: of each latent to each factor; a factor's sum to one, or to zero
            where no latent tells of it.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importance: Float[np.ndarray, "D F"]


def mutual_information(rows: Rows, *, num_bins: int) -> Float[np.ndarray, "D F"]:
    """I(z_d; v_f) in nats of each latent, in bins of equal width, and each factor."""
    numerics.check_positive(num_bins=num_bins)
    binned = [_binned(column, num_bins) for column in rows.codes.T]
    return np.array(
        [
            [metrics.mutual_info_score(factor, column) for factor in rows.factors.T]
            for column in binned
        ]
    )


def mig_of_means(rows: Rows, *, num_bins: int = 20) -> float:
    """The mutual information gap of binned codes, as Locatello et al. 2019 have it.

    Of each factor the information of the best latent less that of the next, as a share
    of the factor's entropy; the mean over factors. `mig_of_samples` is of q(z) itself,
    and another number.

    Raises:
        ValueError: if num_bins is below one.
    """
    return _mean_gap(mutual_information(rows, num_bins=num_bins), rows.factors)


def mig_of_samples(
    mean: Float[np.ndarray, "N D"],
    log_std: Float[np.ndarray, "N D"],
    factors: Int[np.ndarray, "N F"],
    *,
    num_samples: int,
    random_state: int,
) -> float:
    r"""The mutual information gap of z drawn from q, as Chen et al. 2018 define it.

    $I(z_d; v_f) = E[\log q(z_d|v_f) - \log q(z_d)]$, both densities mixtures of the
    rows' normals, all of them and those of one value (arXiv:1802.04942, section 4).
    Nothing is binned. z is drawn for num_samples rows, and the mixtures are exact.

    Args:
        mean: of the normal q(z | x) of each row, rows being all there are.
        log_std: likewise, finite.
        factors: of the rows.
        num_samples: draws of z, a row each, rows drawn with replacement.
        random_state: of the draws.

    Raises:
        ValueError: if num_samples is below one or a log_std not finite.
    """
    numerics.check_positive(num_samples=num_samples)
    if not np.isfinite(log_std).all():
        raise ValueError("log_std must be finite: a point mass has no density to draw")
    random = np.random.default_rng(random_state)
    index = random.integers(len(mean), size=num_samples)
    eps = random.normal(size=(num_samples, mean.shape[1]))
    z = mean[index] + np.exp(log_std[index]) * eps
    has_value = [factor[:, None] == np.unique(factor) for factor in factors.T]
    information = np.zeros((mean.shape[1], factors.shape[1]))
    for d in range(mean.shape[1]):
        for part in np.array_split(np.arange(num_samples), -(-num_samples // 256)):
            scaled = (z[part, d, None] - mean[:, d]) * np.exp(-log_std[:, d])
            log_q = -0.5 * scaled**2 - log_std[:, d]
            top = log_q.max(axis=1, keepdims=True)
            q = np.exp(log_q - top)  # [S, N]
            every = np.log(q.mean(axis=1))
            for f, of_value in enumerate(has_value):
                means = q @ (of_value / of_value.sum(axis=0))  # [S, V]
                its = of_value[index[part]].argmax(axis=1)
                of_its = np.log(means[np.arange(len(part)), its])
                information[d, f] += (of_its - every).sum() / num_samples
    return _mean_gap(information, factors)


def modularity(rows: Rows, *, num_bins: int = 20) -> float:
    """How far each latent has information about one factor alone, in [0, 1].

    1 less the squares of the rest over those of as many of the greatest: Ridgeway &
    Mozer 2018 (arXiv:1802.05312). The mean over latents that have any information.

    Raises:
        ValueError: if num_bins is below one.
    """
    information = mutual_information(rows, num_bins=num_bins)
    greatest = information.max(axis=1)
    informed = greatest > 1e-9
    if not informed.any():
        return 0.0
    squares = (information[informed] / greatest[informed, None]) ** 2
    rest = (squares.sum(axis=1) - 1.0) / max(information.shape[1] - 1, 1)
    return float((1.0 - rest).mean())


def explicitness(train: Rows, test: Rows) -> float:
    """How well a linear classifier of all latents ranks each value: mean AUC.

    1 is perfect, 0.5 chance, of which noise may fall short.

    Multinomial logistic regression for each factor, of standardized codes; the AUC of
    each value against the rest on the test rows (Ridgeway & Mozer 2018).
    """
    scaler = preprocessing.StandardScaler().fit(train.codes)
    areas = []
    for known, asked in zip(train.factors.T, test.factors.T, strict=True):
        model = linear_model.LogisticRegression(C=100.0, max_iter=1000)
        model.fit(scaler.transform(train.codes), known)
        chances = model.predict_proba(scaler.transform(test.codes))
        areas += [
            metrics.roc_auc_score(asked == value, chances[:, i])
            for i, value in enumerate(model.classes_)
            if 0 < (asked == value).sum() < len(asked)
        ]
    return float(np.mean(areas))


def sap(train: Rows, test: Rows, *, is_ordered: bool) -> float:
    """Separated attribute predictability: the gap of the two best latents.

    Of each factor the score of the best latent alone less that of the next, the mean
    over factors (Kumar et al. 2018, arXiv:1711.00848). The score is R^2 of a line where
    factors are ordered, on the test rows too, else the accuracy of a linear support
    vector machine, which of one latent cannot single out a value in the middle.

    Args:
        train: rows that are fitted to.
        test: rows that are judged on.
        is_ordered: whether factors are taken for numbers.
    """
    size = train.codes.shape[1]
    scores = np.zeros((size, train.factors.shape[1]))
    for f, (known, asked) in enumerate(
        zip(train.factors.T, test.factors.T, strict=True)
    ):
        for d in range(size):
            column, other = train.codes[:, d : d + 1], test.codes[:, d : d + 1]
            if is_ordered:
                model = linear_model.LinearRegression().fit(column, known)
                scores[d, f] = max(model.score(other, asked), 0.0)
            elif np.ptp(column) > 0.0:
                machine = svm.LinearSVC(C=0.01, class_weight="balanced", max_iter=5000)
                scores[d, f] = machine.fit(column, known).score(other, asked)
    return float(_gap(scores).mean())


def dci(train: Rows, test: Rows, *, num_trees: int, random_state: int) -> DCI:
    """Disentanglement, completeness and informativeness by gradient-boosted trees.

    Eastwood & Williams 2018: 1 less the entropy of a latent's importances to the
    factors, in units of the greatest, latents weighed by their importance to all; the
    same of each factor's over latents.

    Args:
        train: rows that are fitted to.
        test: rows whose factors are predicted.
        num_trees: of each value of each factor.
        random_state: of the trees.

    Raises:
        ValueError: if num_trees is below one.
    """
    numerics.check_positive(num_trees=num_trees)
    importance, accuracies = [], []
    for known, asked in zip(train.factors.T, test.factors.T, strict=True):
        trees = ensemble.GradientBoostingClassifier(
            n_estimators=num_trees, random_state=random_state
        )
        trees.fit(train.codes, known)
        importance.append(trees.feature_importances_)
        accuracies.append(trees.score(test.codes, asked))
    matrix = np.array(importance).T
    return DCI(
        _concentration(matrix),
        _concentration(matrix.T),
        float(np.mean(accuracies)),
        matrix,
    )


def irs(rows: Rows, *, quantile: float = 0.99) -> float:
    """The interventional robustness score of Suter et al. 2019 (arXiv:1811.00007).

    Of each latent 1 less how far the other factors move it, at most over the factor
    that holds it best: the quantile of the distances from its mean at one value of the
    factor, over its greatest distance from its mean. Latents weigh by their variance,
    so that a constant one has none.

    Raises:
        ValueError: if quantile is not in (0, 1].
    """
    numerics.check_in("(0, 1]", quantile=quantile)
    codes = rows.codes
    variance = codes.var(axis=0)
    moves = variance > 0.0
    if not moves.any():
        return 0.0
    codes = codes[:, moves]
    greatest = np.abs(codes - codes.mean(axis=0)).max(axis=0)
    scores = []
    for factor in rows.factors.T:
        moved = np.zeros(codes.shape[1])
        for value in np.unique(factor):
            same = codes[factor == value]
            distances = np.abs(same - same.mean(axis=0))
            share = len(same) / len(codes)
            moved += share * np.quantile(distances, quantile, axis=0)
        scores.append(1.0 - moved / greatest)
    return float(np.average(np.max(scores, axis=0), weights=variance[moves]))


def factor_vae_score(
    codes: Float[np.ndarray, "N D"],
    *,
    sizes: tuple[int, ...],
    batch_size: int,
    num_train: int,
    num_test: int,
    min_std: float,
    random_state: int,
) -> float:
    """Accuracy of a majority vote for the factor that a batch has in common.

    Of batches that share the value of one factor, the latent of the least variance, in
    units of its variance over all rows, votes for the factor (Kim & Mnih 2018,
    arXiv:1802.05983, section 4).

    Args:
        codes: of every combination of factors, the last varying fastest.
        sizes: values of each factor.
        batch_size: rows of a batch.
        num_train: batches that choose what each latent votes for.
        num_test: batches that are judged.
        min_std: latents of a smaller deviation have no vote, nor has a constant.
        random_state: of the batches.

    Raises:
        ValueError: if a count is below one, or codes are not as many as combinations.
    """
    _check(codes, sizes, batch_size, num_train, num_test)
    random = np.random.default_rng(random_state)
    std = codes.std(axis=0)
    active = (std >= min_std) & (np.ptp(codes, axis=0) > 0.0)
    if not active.any():
        return 0.0
    scaled = codes[:, active] / std[active]

    def votes(number: int) -> tuple[np.ndarray, np.ndarray]:
        factor = random.integers(len(sizes), size=number)
        index = _sharing(random, sizes, factor, batch_size)
        variances = [scaled[rows].var(axis=0) for rows in index]
        return factor, np.argmin(variances, axis=1)

    factor, latent = votes(num_train)
    counts = np.zeros((scaled.shape[1], len(sizes)))
    np.add.at(counts, (latent, factor), 1)
    factor, latent = votes(num_test)
    return float((counts.argmax(axis=1)[latent] == factor).mean())


def beta_vae_score(
    codes: Float[np.ndarray, "N D"],
    *,
    sizes: tuple[int, ...],
    batch_size: int,
    num_train: int,
    num_test: int,
    random_state: int,
) -> float:
    """Accuracy of a linear classifier for the factor that pairs have in common.

    Its input is the mean over a batch of |z - z'|, pairs of rows that share the value
    of one factor, the same for the batch (Higgins et al. 2017).

    Args:
        codes: of every combination of factors, the last varying fastest.
        sizes: values of each factor.
        batch_size: pairs of a batch.
        num_train: batches that are fitted to.
        num_test: batches that are judged.
        random_state: of the pairs.

    Raises:
        ValueError: as `factor_vae_score`.
    """
    _check(codes, sizes, batch_size, num_train, num_test)
    random = np.random.default_rng(random_state)

    def points(number: int) -> tuple[np.ndarray, np.ndarray]:
        factor = random.integers(len(sizes), size=number)
        pairs = np.repeat(factor[:, None], batch_size, axis=1)
        index = _sharing(random, sizes, pairs, 2)
        distances = [
            np.abs(codes[one] - codes[other]).mean(axis=0)
            for one, other in np.moveaxis(index, 2, 1)
        ]
        return np.array(distances), factor

    model = linear_model.LogisticRegression(max_iter=1000)
    scaler = preprocessing.StandardScaler()
    inputs, factor = points(num_train)
    model.fit(scaler.fit_transform(inputs), factor)
    inputs, factor = points(num_test)
    return float(model.score(scaler.transform(inputs), factor))


def _sharing(
    random: np.random.Generator,
    sizes: tuple[int, ...],
    factor: Int[np.ndarray, "*S"],
    num_rows: int,
) -> Int[np.ndarray, "*S K"]:
    """Numbers of rows of which each K share the value of that factor."""
    num_factors = len(sizes)
    values = random.integers(0, sizes, size=(*factor.shape, num_rows, num_factors))
    is_shared = np.arange(num_factors) == factor[..., None, None]
    values = np.where(is_shared, values[..., :1, :], values)
    return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(values, -1, 0)), sizes))


def _check(codes: np.ndarray, sizes: tuple[int, ...], *counts: int) -> None:
    names = ("batch_size", "num_train", "num_test")
    numerics.check_positive(**dict(zip(names, counts, strict=True)))
    if len(codes) != math.prod(sizes):
        raise ValueError(
            f"codes must be of all {math.prod(sizes)} combinations of {sizes}, got "
            f"{len(codes)}"
        )


def _binned(column: Float[np.ndarray, " N"], num_bins: int) -> np.ndarray:
    edges = np.histogram_bin_edges(column, num_bins)
    return np.digitize(column, edges[:-1])


def _gap(scores: Float[np.ndarray, "D F"]) -> Float[np.ndarray, " F"]:
    """The greatest of each factor less the next, which is 0 of a single latent."""
    ordered = np.sort(np.vstack([scores, np.zeros(scores.shape[1])]), axis=0)
    return ordered[-1] - ordered[-2]


def _mean_gap(
    information: Float[np.ndarray, "D F"], factors: Int[np.ndarray, "N F"]
) -> float:
    shares = [np.unique(column, return_counts=True)[1] for column in factors.T]
    entropy = [special.entr(counts / counts.sum()).sum() for counts in shares]
    varies = np.array([len(counts) > 1 for counts in shares])
    if not varies.any():
        return float("nan")
    return float((_gap(information)[varies] / np.array(entropy)[varies]).mean())


def _concentration(importance: Float[np.ndarray, "A B"]) -> float:
    """1 less the entropy of each row in units of log B, rows weighed by their sums."""
    totals = importance.sum(axis=1)
    if importance.shape[1] == 1 or not totals.any():
        return float(totals.any())
    shares = importance[totals > 0.0] / totals[totals > 0.0, None]
    entropy = special.entr(shares).sum(axis=1) / math.log(importance.shape[1])
    return float(np.average(1.0 - entropy, weights=totals[totals > 0.0]))
