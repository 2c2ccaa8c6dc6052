"""What a plain classifier reads off codes: linear probe, nearest neighbors, few labels.

scikit-learn classifies; arrays are NumPy's and live on the host.
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn import exceptions, linear_model, neighbors, preprocessing


class Labeled(NamedTuple):
    """Rows and the label of each."""

    codes: Float[np.ndarray, "N D"]
    labels: Int[np.ndarray, " N"]


class Probe(NamedTuple):
    """The result of a linear probe."""

    accuracy: float  # share of the test rows
    converged: bool  # whether the fit came to rest within its steps


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
            f"{len(classes)} classes, and would take {wanted}."
        )
    if num_draws < 1:
        raise ValueError(f"num_draws must be positive, got {num_draws}.")
    accuracies = []
    for rows in _stratified(train.labels, num_labels, num_draws, random_state):
        few = Labeled(train.codes[rows], train.labels[rows])
        probe = _probe(few, test, train.codes, strength=strength, max_steps=max_steps)
        accuracies.append(probe.accuracy)
    return np.array(accuracies)


def _check_neighbors(num_neighbors: int, num_rows: int) -> None:
    if not 1 <= num_neighbors <= num_rows:
        raise ValueError(
            f"num_neighbors must be 1 to the {num_rows} rows, got {num_neighbors}."
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
        raise ValueError("labels must have two classes or more to be told apart.")
    if not strength > 0.0 or max_steps < 1:
        raise ValueError(
            f"strength and max_steps must be positive, got {strength} and {max_steps}."
        )
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
