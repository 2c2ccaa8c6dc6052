import itertools
import math
from typing import Any

import numpy as np
import pytest

from vae_jax.evaluation import disentanglement

Rows = disentanglement.Rows
SIZES = (3, 4, 5)
FACTORS = np.array(list(itertools.product(*map(range, SIZES))))
EVERY = Rows(FACTORS.astype(float), FACTORS)
CONSTANT = np.full((60, 1), 0.7)
VOTES: dict[str, Any] = {
    "sizes": SIZES,
    "batch_size": 16,
    "num_train": 200,
    "num_test": 100,
}
VOTES |= {"random_state": 0}


def with_constant(rows):
    """The same codes with one that is always 0.7, in front."""
    return rows._replace(codes=np.hstack([CONSTANT, rows.codes]))


def scores(rows):
    """Every metric of codes of every combination, by name."""
    of_grid = rows.codes
    narrow = np.full(of_grid.shape, math.log(0.01))
    trees = disentanglement.dci(rows, rows, num_trees=10, random_state=0)
    return {
        "mig_of_means": disentanglement.mig_of_means(rows),
        "mig_of_samples": disentanglement.mig_of_samples(
            of_grid, narrow, rows.factors, num_samples=200, random_state=0
        ),
        "modularity": disentanglement.modularity(rows),
        "explicitness": disentanglement.explicitness(rows, rows),
        "sap": disentanglement.sap(rows, rows, is_ordered=True),
        "disentanglement": trees.disentanglement,
        "completeness": trees.completeness,
        "informativeness": trees.informativeness,
        "irs": disentanglement.irs(rows),
        "factor_vae": disentanglement.factor_vae_score(of_grid, min_std=0.05, **VOTES),
        "beta_vae": disentanglement.beta_vae_score(of_grid, **VOTES),
    }


# By enumeration each is 1 exactly, but for the logistic regression's ranks.
LEAST = {"explicitness": 0.99}


@pytest.mark.slow
def test_codes_that_are_the_factors_have_one_in_each_and_a_constant_is_ignored():
    got, beside = scores(EVERY), scores(with_constant(EVERY))
    for name, value in got.items():
        assert LEAST.get(name, 1.0 - 1e-9) <= value <= 1.0 + 1e-9, name
        assert beside[name] == pytest.approx(value, abs=1e-9), name


def test_a_rotation_of_two_factors_leaves_no_gap_and_spreads_importance():
    rows = Rows(*2 * (np.array(list(itertools.product(range(8), range(8)))),))
    turned = Rows(rows.codes @ np.array([[1.0, 1.0], [-1.0, 1.0]]), rows.factors)
    narrow = np.full((64, 2), math.log(0.2))
    assert disentanglement.mig_of_means(turned) < 1e-9
    gap = disentanglement.mig_of_samples(
        turned.codes, narrow, rows.factors, num_samples=2000, random_state=0
    )
    assert gap < 0.03
    assert disentanglement.modularity(turned) < 1e-9
    assert disentanglement.sap(turned, turned, is_ordered=True) < 1e-9
    trees = disentanglement.dci(turned, turned, num_trees=10, random_state=0)
    assert trees.disentanglement < 0.1
    assert disentanglement.irs(turned) < 0.6


def test_information_is_that_of_a_table():
    """The first latent has the parity of the first of two factors, and no more."""
    factors = np.array(list(itertools.product(range(4), range(2))))
    rows = Rows(np.stack([factors[:, 0] % 2, factors[:, 1]], axis=1) * 1.0, factors)
    got = disentanglement.mutual_information(rows, num_bins=20)
    half = math.log(2.0)
    np.testing.assert_allclose(got, [[half, 0.0], [0.0, half]], atol=1e-12)
    # Log 2 of log 4, and all of log 2.
    assert disentanglement.mig_of_means(rows) == pytest.approx(0.75)


def test_the_gap_is_of_factors_that_vary():
    factors = np.array(list(itertools.product(range(4), range(2))))
    codes = np.stack([factors[:, 0] % 2, factors[:, 1]], axis=1) * 1.0
    constant = np.hstack([factors, np.zeros((8, 1), int)])
    assert disentanglement.mig_of_means(Rows(codes, constant)) == pytest.approx(0.75)
    assert math.isnan(disentanglement.mig_of_means(Rows(codes, constant[:, 2:])))


def test_modularity_is_lost_by_the_squares_of_what_else_is_known():
    """A latent that knows two of three bits: 1 - (1 + 0) / 2."""
    factors = np.array(list(itertools.product(range(2), repeat=3)))
    rows = Rows(2.0 * factors[:, :1] + factors[:, 1:2], factors)
    assert disentanglement.modularity(rows) == pytest.approx(0.5)


def test_the_gap_of_samples_refuses_point_masses():
    mean, log_std = np.zeros((4, 1)), np.array([[0.0], [0.0], [-np.inf], [0.0]])
    with pytest.raises(ValueError, match="log_std must be finite"):
        disentanglement.mig_of_samples(
            mean, log_std, np.zeros((4, 1)), num_samples=3, random_state=0
        )


def test_the_gap_of_samples_is_that_of_two_normals_by_quadrature():
    """Two values of two rows each, z of N(-1, 1) and N(1, 1/4); a share of log 2."""
    mean, std = np.array([[-1.0], [1.0]]), np.array([[1.0], [0.5]])
    twice = [np.repeat(rows, 2, axis=0) for rows in (mean, np.log(std))]
    got = disentanglement.mig_of_samples(
        twice[0],
        twice[1],
        np.array([[0], [0], [1], [1]]),
        num_samples=40_000,
        random_state=0,
    )
    z = np.linspace(-9.0, 9.0, 2001)
    p = np.exp(-0.5 * ((z - mean) / std) ** 2) / std
    p /= p.sum(axis=1, keepdims=True)
    ratio = np.log((p + 1e-300) / p.mean(axis=0)) / math.log(2.0)
    exact = (p * ratio).sum() / 2.0
    spread = math.sqrt((p * ratio**2).sum() / 2.0 - exact**2)
    assert abs(got - exact) < 5.0 * spread / 200.0


def test_the_robustness_of_a_table_is_its_definition():
    """z = 2 a + b of bits: held at a, b moves it by 1/2 of 3/2 at most."""
    factors = np.array(list(itertools.product(range(2), range(2))))
    rows = Rows((2.0 * factors[:, :1] + factors[:, 1:]), factors)
    assert disentanglement.irs(rows) == pytest.approx(1.0 - 0.5 / 1.5)


def test_importances_have_the_entropies_of_their_definition():
    matrix = np.array([[0.5, 0.0], [0.5, 1.0]])
    pure, mixed = 1.0, 1.0 - (3 * math.log(3) - 2 * math.log(2)) / 3 / math.log(2)
    expected = (0.5 * pure + 1.5 * mixed) / 2.0
    got = disentanglement._concentration(matrix)
    assert got == pytest.approx(expected)


def test_sampled_rows_give_what_all_rows_do_within_their_spread():
    """Noisy codes of a grid: the mean over draws of rows within five errors."""
    random = np.random.default_rng(0)
    noisy = EVERY._replace(codes=EVERY.codes + random.normal(size=(60, 3)) * 0.4)
    exact = {
        "irs": disentanglement.irs(noisy, quantile=0.5),
        "sap": disentanglement.sap(noisy, noisy, is_ordered=True),
    }
    results = {name: [] for name in exact}
    for _ in range(30):
        index = random.integers(60, size=3000)
        rows = Rows(noisy.codes[index], noisy.factors[index])
        results["irs"].append(disentanglement.irs(rows, quantile=0.5))
        results["sap"].append(disentanglement.sap(rows, rows, is_ordered=True))
    for name, values in results.items():
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        assert abs(np.mean(values) - exact[name]) < 5.0 * error + 0.005, name


def test_a_factor_without_a_latent_loses_its_votes_but_not_its_place_in_pairs():
    """Its votes go to latents of other factors; its distances are those of no other.

    Kim & Mnih 2018 hold the second against the metric of Higgins et al.
    """
    two = EVERY.codes[:, :2]
    numbers: dict[str, Any] = VOTES | {"num_test": 3000}
    got = disentanglement.factor_vae_score(two, min_std=0.05, **numbers)
    assert abs(got - 2.0 / 3.0) < 5.0 * math.sqrt(2.0 / 9.0 / 3000)
    assert disentanglement.beta_vae_score(two, **VOTES) > 0.95
    none = disentanglement.factor_vae_score(0.01 * two, min_std=0.05, **VOTES)
    assert none == 0.0


def test_a_constant_latent_has_no_vote_whatever_the_least_deviation():
    """Also one whose mean is off by rounding, and with it its deviation from zero."""
    codes = EVERY.codes
    alone = disentanglement.factor_vae_score(codes, min_std=0.0, **VOTES)
    for constant in (0.0, 0.1):
        beside = np.column_stack([np.full(len(codes), constant), codes])
        got = disentanglement.factor_vae_score(beside, min_std=0.0, **VOTES)
        assert got == alone


def test_a_support_vector_machine_judges_values_without_an_order():
    factors = np.array(list(itertools.product(range(2), range(2))) * 50)
    constant = np.full((len(factors), 1), 0.7)
    rows = Rows(np.hstack([constant, factors * 2.0 - 1.0]), factors)
    got = disentanglement.sap(rows, rows, is_ordered=False)
    assert got == pytest.approx(0.5)  # of two values the other latent has half


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"num_train": 0}, "num_train must be positive, got 0"),
        (
            {"sizes": (3, 4)},
            r"codes must be of all 12 combinations of \(3, 4\), got 60",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        disentanglement.beta_vae_score(EVERY.codes, **VOTES | changes)


def test_a_quantile_outside_of_its_range_is_refused():
    with pytest.raises(ValueError, match=r"quantile must lie in \(0, 1\], got 0"):
        disentanglement.irs(EVERY, quantile=0.0)


def test_a_bin_of_the_greatest_code_holds_what_is_near_it():
    codes = np.array([[0.0], [0.0], [0.75], [1.0]])
    rows = Rows(codes, np.array([[0], [1], [0], [1]]))
    got = disentanglement.mutual_information(rows, num_bins=2)
    np.testing.assert_allclose(got, 0.0, atol=1e-12)


def test_what_was_fitted_is_judged_on_the_test_rows():
    """A latent that is the factor in train, and its opposite in test."""
    factors = np.array([[0], [1]] * 20)
    train = Rows(factors * 2.0 - 1.0, factors)
    turned = train._replace(factors=1 - factors)
    for test, share in ((train, 1.0), (turned, 0.0)):
        trees = disentanglement.dci(train, test, num_trees=5, random_state=0)
        assert trees.informativeness == share
        assert disentanglement.explicitness(train, test) == share
        for is_ordered in (True, False):
            got = disentanglement.sap(train, test, is_ordered=is_ordered)
            assert got == pytest.approx(share)


def test_test_codes_are_standardized_as_those_of_training():
    """Values 0, 1 and 2, of which the test rows have the first two."""
    known, asked = np.arange(60)[:, None] % 3, np.repeat([0, 1], [30, 10])[:, None]
    train, test = Rows(known * 1.0, known), Rows(asked * 1.0, asked)
    assert disentanglement.explicitness(train, test) == 1.0


def test_robustness_weighs_values_by_their_rows_and_latents_by_their_variance():
    factor = np.array([0, 0, 0, 0, 1, 1])
    moved = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 3.0])  # by 1 in a third of the rows
    rows = Rows(np.stack([moved, 10.0 * factor], axis=1), factor[:, None])
    variance = rows.codes.var(axis=0)
    scores = [1.0 - (1.0 / 3.0) / (3.0 - 2.0 / 3.0), 1.0]
    got = disentanglement.irs(rows, quantile=1.0)
    assert got == pytest.approx(np.average(scores, weights=variance), rel=1e-12)


def test_the_unit_of_a_latent_changes_no_vote():
    noise = np.random.default_rng(0).normal(size=(60, 3))
    codes = EVERY.codes + 0.4 * noise
    got = disentanglement.factor_vae_score(
        codes * np.array([1.0, 64.0, 1.0 / 64.0]), min_std=0.0, **VOTES
    )
    assert got == disentanglement.factor_vae_score(codes, min_std=0.0, **VOTES)
    assert got > 0.6
