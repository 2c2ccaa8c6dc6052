"""Scores with known values, the conformal guarantee, and curves against peers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from tests import problems
from vae_jax import posteriors
from vae_jax.evaluation import anomaly, gaps
from vae_jax.latent_models import ppca


@pytest.mark.parametrize(("rows", "rate"), [(99, 0.01), (20, 0.1), (39, 0.29)])
@pytest.mark.parametrize("ties", [False, True])
def test_exchangeable_rows_are_flagged_at_most_as_often_as_the_rate(rows, rate, ties):
    scores = np.random.default_rng(0).normal(size=(2000, rows + 1))
    if ties:
        scores = np.round(scores)
    flagged = np.zeros(2000, bool)
    for i, (own_score, *calibration) in enumerate(scores):
        p = anomaly.p_values(np.array([own_score]), np.array(calibration))
        flagged[i] = p[0] <= rate
        above = own_score > anomaly.alarm_threshold(np.array(calibration), rate=rate)
        assert flagged[i] == above
    possible = np.arange(1, rows + 2) / (rows + 1)
    exact = possible[possible <= rate].max()  # of scores without ties
    error = np.sqrt(exact * (1 - exact) / 2000)
    assert flagged.mean() < rate + 4 * error
    if not ties:
        assert abs(flagged.mean() - exact) < 4 * error


def test_the_rate_that_is_told_to_be_enough_is():
    for num_rows in range(1, 300):
        scores = np.arange(float(num_rows))
        with pytest.raises(ValueError, match="or a rate of at least") as error:
            anomaly.alarm_threshold(scores, rate=1e-6)
        enough = float(str(error.value).split()[-1])
        assert enough < 1.1 / (num_rows + 1.0)
        anomaly.alarm_threshold(scores, rate=enough)


def test_p_values_count_the_calibration_rows_that_are_as_strange():
    calibration = np.array([1.0, 2.0, 2.0, 3.0])
    p = anomaly.p_values(np.array([0.0, 2.0, 2.5, 3.0, np.inf]), calibration)
    np.testing.assert_allclose(p, [1.0, 0.8, 0.4, 0.4, 0.2])


def test_the_interval_of_a_share_is_that_of_scipy_and_holds_its_ends():
    for number, size in ((0, 7), (3, 40), (7, 7)):
        flagged = np.arange(size) < number
        result = anomaly.share(flagged, level=0.9)
        exact = stats.binomtest(number, size).proportion_ci(0.9, method="exact")
        np.testing.assert_allclose(result, [number / size, exact.low, exact.high])


@pytest.mark.parametrize("digits", [0, 8])  # with ties and without
def test_auroc_and_its_curve_are_those_of_scikit_learn(digits):
    generator = np.random.default_rng(1)
    outliers = np.round(generator.normal(0.7, 1.5, 130), digits)
    inliers = np.round(generator.normal(size=90), digits)
    labels = np.repeat([1, 0], [130, 90])
    scores = np.concatenate([outliers, inliers])
    result = anomaly.auroc(outliers, inliers)
    np.testing.assert_allclose(result.auroc, metrics.roc_auc_score(labels, scores))
    wanted = metrics.roc_curve(labels, scores, drop_intermediate=False)[:2]
    np.testing.assert_allclose(anomaly.roc_curve(outliers, inliers), wanted)
    at = np.argmax(wanted[1] >= 0.95)
    assert anomaly.false_positive_rate(outliers, inliers) == wanted[0][at]
    reverse = anomaly.auroc(-outliers, -inliers)
    np.testing.assert_allclose(reverse.auroc, 1.0 - result.auroc)


@pytest.mark.parametrize(("missed", "num_rows"), [(4, 5), (9, 10), (2, 11)])
def test_a_share_of_rows_that_is_the_rate_reaches_it(missed, num_rows):
    """1 - missed / num_rows is below it in double precision."""
    outliers, inliers = np.arange(float(num_rows)), np.array([missed - 0.5, -1.0])
    rate = (num_rows - missed) / num_rows
    assert rate in anomaly.roc_curve(outliers, inliers)[1]
    got = anomaly.false_positive_rate(outliers, inliers, true_positive_rate=rate)
    assert got == 0.0


def test_delongs_variance_is_that_of_its_definition_and_its_interval_covers():
    generator = np.random.default_rng(2)
    outliers = np.round(generator.normal(1.0, 1.0, (400, 60)), 1)
    inliers = np.round(generator.normal(size=(400, 80)), 1)
    pairs = outliers[0][:, None] - inliers[0]
    wins = (np.sign(pairs) + 1) / 2
    variance = wins.mean(1).var(ddof=1) / 60 + wins.mean(0).var(ddof=1) / 80
    results = [anomaly.auroc(*both) for both in zip(outliers, inliers, strict=True)]
    np.testing.assert_allclose(results[0].standard_error, np.sqrt(variance))
    truth = stats.norm.cdf(1.0 / np.sqrt(2.0))
    inside = [result.lower < truth < result.upper for result in results]
    assert 0.91 < np.mean(inside) < 0.99


def test_rows_that_do_not_overlap_have_an_auroc_of_one_and_an_inf_is_above_all():
    result = anomaly.auroc(np.array([3.0, np.inf]), np.array([-np.inf, 2.0]))
    assert result == (1.0, 0.0, 1.0, 1.0)


def test_a_narrow_outlier_at_the_mean_is_likelier_than_the_models_own_draws():
    generator = np.random.default_rng(3)
    factor = generator.normal(size=(3, 3))
    cov: Any = factor @ factor.T + np.eye(3)  # the stubs want an int
    p = stats.multivariate_normal([0.5, 0.0, -1.0], cov)
    own_x = p.rvs(50_000, random_state=generator)
    for scale, shift in ((0.3, 0.0), (1.0, 2.0), (1.5, 0.0)):
        outlier = stats.multivariate_normal(p.mean + shift, scale**2 * p.cov)
        exact = anomaly.expected_log_density_difference(
            p.mean, p.cov, outlier.mean, outlier.cov
        )
        x = outlier.rvs(50_000, random_state=generator)
        sampled = p.logpdf(x).mean() - p.logpdf(own_x).mean()
        np.testing.assert_allclose(sampled, exact, atol=0.1)
        assert (exact > 0) == (scale < 1)


def test_a_fitted_ppca_meets_the_paradox_as_its_closed_form_predicts(x64):
    generator = np.random.default_rng(4)
    rows = generator.normal(size=(300, 2)) @ generator.normal(size=(2, 5))
    rows += 0.5 * generator.normal(size=rows.shape) + 1.0
    params = ppca.maximum_likelihood(jnp.asarray(rows), num_latents=2)
    w = np.asarray(params.generative["decoder"]["output"]["kernel"]).T
    variance = np.exp(2.0 * float(params.generative["likelihood"]["log_std"]))
    mean, cov = rows.mean(0), w @ w.T + variance * np.eye(5)
    log_p = jax.jit(jax.vmap(ppca.log_evidence, in_axes=(None, 0)))
    scores = {}
    for name, outliers in (("near", mean + 0.2 * (rows - mean)), ("far", rows + 3.0)):
        moments = outliers.mean(0), np.cov(outliers.T, ddof=0)
        exact = anomaly.expected_log_density_difference(mean, cov, *moments)
        # log p of a normal is quadratic: its mean over rows is that of their moments.
        at_fit = anomaly.expected_log_density_difference(
            mean, cov, mean, np.cov(rows.T, ddof=0)
        )
        np.testing.assert_allclose(at_fit, 0.0, atol=1e-9)  # Tipping & Bishop's fit
        got = np.asarray(log_p(params, outliers)), np.asarray(log_p(params, rows))
        np.testing.assert_allclose(got[0].mean() - got[1].mean(), exact, rtol=1e-9)
        scores[name] = exact, anomaly.auroc(-got[0], -got[1]).auroc
    assert scores["near"][0] > 0
    assert scores["near"][1] < 0.2  # the likelihood takes them for the least strange
    assert scores["far"][0] < 0
    assert scores["far"][1] > 0.8


@pytest.fixture(scope="module")
def of_bound():
    """Scores of one example of a linear model whose terms are known."""
    problem = problems.linear_gaussian(num_latents=2, num_features=3)
    model, x = problem.model, np.array([2.0, -1.0, 0.5], np.float32)
    fit = gaps.fit_local(
        problem.generative,
        posteriors.diag_normal(2),
        num_samples=10,
        num_steps=200,
        learning_rate=0.02,
        num_evaluated=2000,
    )
    scores = anomaly.bound_scores(model, num_samples=4000)
    regret = anomaly.likelihood_regret(model, fit, num_samples=2000)
    key_scores, key_regret = jax.random.split(jax.random.key(0))
    with jax.numpy_dtype_promotion("standard"):  # optax
        return (
            problem,
            x,
            jax.jit(scores)(key_scores, problem.params, x),
            jax.jit(regret)(key_regret, problem.params, x),
        )


@pytest.mark.slow
def test_scores_of_the_bound_are_its_terms_with_the_strange_above(of_bound):
    problem, x, scores, _ = of_bound
    for name, sign in (("elbo", -1.0), ("reconstruction", -1.0), ("kl", 1.0)):
        exact = sign * getattr(problem, name)(problem.params, x)
        np.testing.assert_allclose(getattr(scores, name), exact, rtol=0.05)


@pytest.mark.slow
def test_regret_is_the_amortization_gap_in_closed_form(of_bound):
    problem, x, _, regret = of_bound
    mean, cov = problem.posterior(problem.params, x)
    precision = np.diagonal(np.linalg.inv(np.asarray(cov, np.float64)))
    # The best diagonal q has the posterior's mean and conditional variances.
    approximation = 0.5 * (np.log(precision).sum() + np.linalg.slogdet(cov)[1])
    log_p = problem.log_p(problem.params, x)
    exact = log_p - approximation - problem.elbo(problem.params, x)
    np.testing.assert_allclose(regret, exact, atol=0.15)
    assert exact > 1.0
    assert mean.shape == (2,)


def test_scores_of_log_p_are_those_of_their_definitions():
    log_p = np.array([[-3.0, -10.0, -4.0], [-5.0, -10.0, -8.0]])
    np.testing.assert_allclose(anomaly.waic(log_p), [4.0 + 2.0, 10.0, 6.0 + 8.0])
    np.testing.assert_allclose(
        anomaly.typicality(log_p[0], np.array([-4.0, -6.0])), [2.0, 5.0, 1.0]
    )
    np.testing.assert_allclose(
        anomaly.likelihood_ratio(log_p[0], log_p[1]), [-2.0, 0.0, -4.0]
    )
    bits = np.array([4.0, 16.0, 0.0])
    np.testing.assert_allclose(
        anomaly.input_complexity(log_p[0] * np.log(2.0), bits), [-1.0, -6.0, 4.0]
    )


def test_distances_of_codes_are_those_of_scikit_learns_covariance():
    from sklearn import covariance

    generator = np.random.default_rng(5)
    codes = generator.normal(size=(50, 3)) @ generator.normal(size=(3, 3)) + 2.0
    reference = anomaly.normal_of_codes(codes)
    np.testing.assert_allclose(
        reference.scale_tril @ reference.scale_tril.T, np.cov(codes.T)
    )
    peer = covariance.EmpiricalCovariance().fit(codes)
    wanted = np.sqrt(peer.mahalanobis(codes[:7]) * 49 / 50)
    np.testing.assert_allclose(anomaly.mahalanobis(codes[:7], reference), wanted)


def test_what_says_nothing_is_refused():
    some, nan = np.arange(9.0), np.array([0.0, np.nan])
    for refused, message in (
        (lambda: anomaly.p_values(some, nan), "calibration of row 1 is NaN"),
        (lambda: anomaly.p_values(some, some[:0]), "calibration must be"),
        (lambda: anomaly.alarm_threshold(some, rate=0.0), r"rate must lie in \(0, 1\)"),
        (lambda: anomaly.alarm_threshold(some, rate=0.05), "give at least 19"),
        (lambda: anomaly.auroc(some[:1], some), "two outliers .* got 1 and 9"),
        (lambda: anomaly.auroc(some, some, level=1.0), r"level must lie in \(0, 1\)"),
        (lambda: anomaly.share(np.zeros(0, bool)), "num_rows must be positive"),
        (lambda: anomaly.waic(some[None]), r"two models, got \(1, 9\)"),
        (lambda: anomaly.false_positive_rate(some, nan), "inliers of row 1 is NaN"),
        (
            lambda: anomaly.false_positive_rate(some, some, true_positive_rate=0.0),
            r"true_positive_rate must lie in \(0, 1\], got 0\.0",
        ),
        (lambda: anomaly.normal_of_codes(np.ones((9, 2))), "9 codes of 2 latents"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
