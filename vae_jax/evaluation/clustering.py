"""Clusters found without labels, and how far they agree with them.

scikit-learn clusters; arrays are NumPy's and live on the host. Its starts are drawn
from the integer random_state.
"""

import warnings

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize
from sklearn import cluster, exceptions, metrics, mixture

from vae_jax import numerics

FULL_UP_TO = 100  # features: above, 10 full covariances have more entries than rows do


def agreement(
    labels: Int[np.ndarray, " N"], clusters: Int[np.ndarray, " N"]
) -> dict[str, float]:
    """Accuracy, normalized mutual information and adjusted Rand index of clusters.

    `accuracy` is the share of rows whose cluster is matched with their label, in the
    one-to-one matching for which it is greatest (Kuhn's Hungarian method): clusters
    beyond the number of labels, or labels beyond that of clusters, match nothing. The
    mutual information is divided by the mean of the two entropies. 0 is chance for the
    adjusted Rand index (Hubert & Arabie 1985, Comparing partitions), and 1 agreement
    for all three.

    Raises:
        ValueError: for no rows, or as many of one as not of the other.
    """
    if labels.shape != clusters.shape or not len(labels):
        raise ValueError(
            "labels and clusters must be one for each of N rows, got "
            f"{labels.shape} and {clusters.shape}"
        )
    table = metrics.cluster.contingency_matrix(labels, clusters)
    matched = table[optimize.linear_sum_assignment(-table)].sum()
    return {
        "accuracy": float(matched / len(labels)),
        "normalized_mutual_information": float(
            metrics.normalized_mutual_info_score(labels, clusters)
        ),
        "adjusted_rand": float(metrics.adjusted_rand_score(labels, clusters)),
    }


def k_means(
    train: Float[np.ndarray, "N D"],
    test: Float[np.ndarray, "M D"],
    *,
    num_clusters: int,
    num_starts: int = 10,
    random_state: int,
) -> Int[np.ndarray, " M"]:
    """The nearest of the means of k-means for each test row; fitted to train alone.

    The best of num_starts k-means++ starts, by the squared distances in train.

    Raises:
        ValueError: as `check_clusters`.
    """
    check_clusters(train, num_clusters=num_clusters, num_starts=num_starts)
    fitted = cluster.KMeans(
        num_clusters,
        n_init=num_starts,  # pyright: ignore[reportArgumentType]
        random_state=random_state,
    ).fit(train)
    return np.asarray(fitted.predict(test))


def gaussian_mixture(
    train: Float[np.ndarray, "N D"],
    test: Float[np.ndarray, "M D"],
    *,
    num_clusters: int,
    num_starts: int = 1,
    random_state: int,
) -> Int[np.ndarray, " M"]:
    """The most probable component of a normal mixture for each test row.

    Fitted to train alone by EM from k-means, with the covariance of `covariance_type`
    and 1e-3 of the mean variance of a feature added to every variance.

    Raises:
        ValueError: as `check_clusters`.
    """
    check_clusters(train, num_clusters=num_clusters, num_starts=num_starts)
    added = 1e-3 * float(np.var(train, axis=0, dtype=np.float64).mean())
    fitted = mixture.GaussianMixture(
        num_clusters,
        covariance_type=covariance_type(train.shape[1]),
        reg_covar=max(added, 1e-30),
        n_init=num_starts,
        random_state=random_state,
    )
    with warnings.catch_warnings():
        # A hundred iterations are what is asked for, converged or not.
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        return fitted.fit(train.astype(np.float64)).predict(test.astype(np.float64))


def covariance_type(num_features: int) -> str:
    """What `gaussian_mixture` fits: full up to 100 features, else diag."""
    return "full" if num_features <= FULL_UP_TO else "diag"


def check_clusters(
    train: Float[np.ndarray, "N D"], *, num_clusters: int, num_starts: int
) -> None:
    """Refuses numbers that make no clusters.

    Raises:
        ValueError: if num_clusters is below one or above the number of rows, or
            num_starts below one.
    """
    if not 1 <= num_clusters <= len(train):
        raise ValueError(
            f"num_clusters must be 1 to the {len(train)} rows, got {num_clusters}"
        )
    numerics.check_positive(num_starts=num_starts)
