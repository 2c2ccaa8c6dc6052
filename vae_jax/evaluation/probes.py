"""What a plain classifier reads off codes: linear probe, nearest neighbors, few labels.

scikit-learn classifies; arrays are NumPy's and live on the host.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn import exceptions, linear_model, neighbors, preprocessing

from vae_jax import numerics
from vae_jax.evaluation import clustering


class Labeled(NamedTuple):
    """Rows and the label of each.

    Attributes:
        codes: the rows.
        labels: of each.
    """

    codes: Float[np.ndarray, "N D"]
    labels: Int[np.ndarray, " N"]


class Probe(NamedTuple):
    """The result of a linear probe.

    Attributes:
        accuracy: share of the test rows.
        converged: whether the fit came to rest within its steps.
    """

    accuracy: float
    converged: bool


class Judged(NamedTuple):
    """What labels say of codes; accuracies and agreements are those on test rows.

    Attributes:
        linear_probe: accuracy.
        nearest_neighbors: accuracy.
        linear_probe_converged: 1 where the probe came to rest within its steps, else 0.
        k_means_accuracy: of clusters, as the next five; see `clustering.agreement`.
        k_means_normalized_mutual_information: in [0, 1].
        k_means_adjusted_rand: 0 by chance.
        mixture_accuracy: of the components of a mixture of normals.
        mixture_normalized_mutual_information: in [0, 1].
        mixture_adjusted_rand: 0 by chance.
    """

    linear_probe: float
    nearest_neighbors: float
    linear_probe_converged: float
    k_means_accuracy: float
    k_means_normalized_mutual_information: float
    k_means_adjusted_rand: float
    mixture_accuracy: float
    mixture_normalized_mutual_information: float
    mixture_adjusted_rand: float


def judge(
    train: Labeled,
    test: Labeled,
    *,
    num_neighbors: int,
    num_clusters: int = 0,
    random_state: int,
) -> Judged:
    """Classifiers and clusters fitted to training rows and judged on test rows.

    Args:
        train: what is fitted to; the clusters do not read its labels.
        test: what is judged on.
        num_neighbors: that vote.
        num_clusters: as many as there are labels in train for 0.
        random_state: of the starts of the clusters.

    Raises:
        ValueError: as `linear_probe`, `nearest_neighbors` and `clustering.k_means`.
    """
    probe = linear_probe(train, test)
    num_clusters = num_clusters or len(np.unique(train.labels))
    agreements = [
        clustering.agreement(
            test.labels,
            cluster(
                train.codes,
                test.codes,
                num_clusters=num_clusters,
                random_state=random_state,
            ),
        )
        for cluster in (clustering.k_means, clustering.gaussian_mixture)
    ]
    vote = nearest_neighbors(train, test, num_neighbors=num_neighbors)
    k_means, mixture = (agreement.values() for agreement in agreements)
    return Judged(probe.accuracy, vote, float(probe.converged), *k_means, *mixture)


def linear_probe(
    train: Labeled, test: Labeled, *, strength: float = 1.0, max_steps: int = 1000
) -> Probe:
    """Multinomial logistic regression on standardized codes: accuracy on test rows.

    Codes are shifted and scaled to mean 0 and variance 1 on the training rows, so that
    the penalty, |weights|^2 / (2 strength) beside the summed log-likelihood, means the
    same for codes of any scale. A feature that is constant there is left as it is.

    Raises:
        ValueError: for fewer than two classes in train, or a number that is not
            positive.
    """
    return _probe(train, test, train.codes, strength=strength, max_steps=max_steps)


def nearest_neighbors(train: Labeled, test: Labeled, *, num_neighbors: int) -> float:
    """Accuracy of the vote of the nearest training rows, in Euclidean distance.

    Codes are taken as they are: their scale is part of what is measured.

    Raises:
        ValueError: if num_neighbors is below one or above the number of training rows.
    """
    _check_neighbors(num_neighbors, len(train.codes))
    classifier = neighbors.KNeighborsClassifier(num_neighbors, algorithm="brute")
    classifier.fit(train.codes, train.labels)
    return float(classifier.score(test.codes, test.labels))


def nearest_rows(
    codes: Float[np.ndarray, "N D"],
    queries: Float[np.ndarray, "Q D"],
    *,
    num_neighbors: int,
) -> Int[np.ndarray, "Q K"]:
    """Which rows are nearest to each query, the nearest first, in Euclidean distance.

    Raises:
        ValueError: if num_neighbors is below one or above the number of rows.
    """
    _check_neighbors(num_neighbors, len(codes))
    tree = neighbors.NearestNeighbors(n_neighbors=num_neighbors, algorithm="brute")
    return np.asarray(tree.fit(codes).kneighbors(queries, return_distance=False))


def few_labels(
    train: Labeled,
    test: Labeled,
    *,
    num_labels: int,
    num_draws: int,
    random_state: int,
    strength: float = 1.0,
    max_steps: int = 1000,
) -> Float[np.ndarray, " R"]:
    """Accuracy of the linear probe from num_labels labels, for each of R draws of them.

    Every draw takes as many rows of each class, one more of some where they do not
    divide. Codes are standardized on all training rows, which takes no label.

    Raises:
        ValueError: if num_labels is below the number of classes or a class has fewer
            rows than it should give, num_draws is below one, or as `linear_probe`.
    """
    classes, counts = np.unique(train.labels, return_counts=True)
    wanted = -(-num_labels // len(classes))
    if num_labels < len(classes) or wanted > counts.min():
        raise ValueError(
            f"num_labels={num_labels} takes 1 to {counts.min()} rows of each of "
            f"{len(classes)} classes, and would take {wanted}"
        )
    numerics.check_positive(num_draws=num_draws)
    accuracies = []
    for rows in _stratified(train.labels, num_labels, num_draws, random_state):
        few = Labeled(train.codes[rows], train.labels[rows])
        probe = _probe(few, test, train.codes, strength=strength, max_steps=max_steps)
        accuracies.append(probe.accuracy)
    return np.array(accuracies)


def few_labels_curve(
    train: Labeled,
    test: Labeled,
    *,
    sizes: Sequence[int],
    num_draws: int,
    random_state: int,
) -> dict[int, Float[np.ndarray, " R"]]:
    """`few_labels` for each number of labels that train has enough of in every class.

    Raises:
        ValueError: as `few_labels`, for num_draws.
    """
    classes, counts = np.unique(train.labels, return_counts=True)
    most = len(classes) * counts.min()
    return {
        size: few_labels(
            train, test, num_labels=size, num_draws=num_draws, random_state=random_state
        )
        for size in sizes
        if len(classes) <= size <= most
    }


def _check_neighbors(num_neighbors: int, num_rows: int) -> None:
    if not 1 <= num_neighbors <= num_rows:
        raise ValueError(
            f"num_neighbors must be 1 to the {num_rows} rows, got {num_neighbors}"
        )


def _stratified(
    labels: np.ndarray, num_labels: int, num_draws: int, random_state: int
) -> Iterator[np.ndarray]:
    """Rows of each draw, as many of every class."""
    generator = np.random.default_rng(random_state)
    classes = np.unique(labels)
    for _ in range(num_draws):
        sizes = np.full(len(classes), num_labels // len(classes))
        extra = generator.permutation(len(classes))[: num_labels % len(classes)]
        sizes[extra] += 1
        yield np.concatenate(
            [
                generator.choice(np.flatnonzero(labels == label), size, replace=False)
                for label, size in zip(classes, sizes, strict=True)
            ]
        )


def _probe(
    train: Labeled,
    test: Labeled,
    scaled_on: np.ndarray,
    *,
    strength: float,
    max_steps: int,
) -> Probe:
    if len(np.unique(train.labels)) < 2:
        raise ValueError("labels must have two classes or more to be told apart")
    numerics.check_in("(0, inf]", strength=strength)
    numerics.check_positive(max_steps=max_steps)
    scaler = preprocessing.StandardScaler().fit(scaled_on)
    classifier = linear_model.LogisticRegression(C=strength, max_iter=max_steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", exceptions.ConvergenceWarning)
        classifier.fit(scaler.transform(train.codes), train.labels)
    converged = not any(
        issubclass(warning.category, exceptions.ConvergenceWarning)
        for warning in caught
    )
    accuracy = classifier.score(scaler.transform(test.codes), test.labels)
    return Probe(float(accuracy), converged)
