import itertools

import numpy as np
import pytest

from vae_jax.evaluation import clustering

CENTERS = np.array([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
LABELS = np.arange(90) % 3
ROWS = CENTERS[LABELS] + np.random.default_rng(0).normal(size=(90, 2))


def test_accuracy_is_that_of_the_best_of_all_matchings():
    generator = np.random.default_rng(1)
    labels, results = generator.integers(0, 4, 50), generator.integers(0, 4, 50)
    best = max(
        (np.array(names)[results] == labels).mean()
        for names in itertools.permutations(range(4))
    )
    got = clustering.agreement(labels, results)
    assert got["accuracy"] == pytest.approx(best, rel=1e-12)


def test_agreement_knows_no_names_and_is_none_by_chance():
    renamed = np.array([5, 0, 9])[LABELS]
    assert all(
        value == pytest.approx(1.0)
        for value in clustering.agreement(LABELS, renamed).values()
    )
    one = clustering.agreement(LABELS, np.zeros(90, int))
    assert one["accuracy"] == pytest.approx(1 / 3)
    assert one["normalized_mutual_information"] == one["adjusted_rand"] == 0.0


def test_normalized_mutual_information_is_over_the_mean_entropy():
    labels, results = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2])
    # H(labels) = log 2 = I, H(found) = 1.5 log 2.
    got = clustering.agreement(labels, results)["normalized_mutual_information"]
    assert got == pytest.approx(1.0 / 1.25)


@pytest.mark.parametrize("method", [clustering.k_means, clustering.gaussian_mixture])
def test_clusters_that_are_apart_are_found_in_rows_that_were_not_fitted(method):
    results = method(ROWS[:60], ROWS[60:], num_clusters=3, random_state=0)
    assert clustering.agreement(LABELS[60:], results)["accuracy"] == 1.0
    again = method(ROWS[:60], ROWS[60:], num_clusters=3, random_state=0)
    np.testing.assert_array_equal(results, again)


def test_a_mixture_takes_single_precision_constant_features_and_many():
    wide = np.concatenate([ROWS, np.zeros((90, 120))], axis=1).astype(np.float32)
    results = clustering.gaussian_mixture(wide, wide, num_clusters=3, random_state=0)
    assert clustering.agreement(LABELS, results)["accuracy"] == 1.0
    assert clustering.covariance_type(wide.shape[1]) == "diag"
    assert clustering.covariance_type(100) == "full"


@pytest.mark.parametrize("method", [clustering.k_means, clustering.gaussian_mixture])
def test_what_makes_no_clusters_is_refused(method):
    with pytest.raises(ValueError, match="1 to the 5 rows, got 6"):
        method(ROWS[:5], ROWS, num_clusters=6, random_state=0)
    with pytest.raises(ValueError, match="num_starts must be positive, got 0"):
        method(ROWS, ROWS, num_clusters=3, num_starts=0, random_state=0)


def test_clusters_of_other_rows_are_refused():
    with pytest.raises(ValueError, match=r"\(90,\) and \(3,\)"):
        clustering.agreement(LABELS, LABELS[:3])


@pytest.mark.parametrize("method", [clustering.k_means, clustering.gaussian_mixture])
def test_rows_of_one_cluster_are_of_one_wherever_the_origin_is(method):
    far = ROWS + np.array([0.0, 3000.0])
    results = method(far[:60], far[60:], num_clusters=3, random_state=0)
    assert clustering.agreement(LABELS[60:], results)["accuracy"] == 1.0
    alone = method(far[:60], far[60::3], num_clusters=3, random_state=0)
    np.testing.assert_array_equal(alone, results[::3])
