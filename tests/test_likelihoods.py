import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special, stats

from tests import testing
from vae_jax import likelihoods

X_SHAPE = (2, 1)
X = np.array([[0.4], [-0.9]])
LOGITS = np.array([0.3, -1.2])
NUM_DRAWS = 20_000
# name -> likelihood, its parameters, h, and the mean and std that they stand for
NORMALS = {
    "fixed": (
        likelihoods.normal(X_SHAPE, std=0.7),
        lambda: (),
        LOGITS,
        LOGITS,
        np.array([0.7, 0.7]),
    ),
    "fixed squashed": (
        likelihoods.normal(X_SHAPE, std=0.7, squash=jax.nn.sigmoid),
        lambda: (),
        LOGITS,
        special.expit(LOGITS),
        np.array([0.7, 0.7]),
    ),
    "learned": (
        likelihoods.normal_learned_std(X_SHAPE, squash=jax.nn.sigmoid),
        lambda: {"log_std": jnp.asarray(-0.4)},
        LOGITS,
        special.expit(LOGITS),
        np.exp([-0.4, -0.4]),
    ),
    "per pixel": (
        likelihoods.normal_per_pixel_std(X_SHAPE, min_std=0.2, squash=jax.nn.sigmoid),
        lambda: (),
        np.concatenate([LOGITS, [-0.6, 0.5]]),
        special.expit(LOGITS),
        # log_std = log(min_std) + log(1 + exp(h) / min_std)
        0.2 + np.exp([-0.6, 0.5]),
    ),
}
EACH_NORMAL = pytest.mark.parametrize("name", NORMALS)


def _sampled(likelihood, params, h):
    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
    sample = jax.jit(jax.vmap(likelihood.sample, in_axes=(0, None, None)))
    return np.asarray(sample(keys, params, jnp.asarray(h)))


# Bernoulli


def test_bernoulli_terms_match_scipy(x64):
    logits = np.array([-30.0, -2.0, 0.0, 0.7, 30.0])
    for x in (0.0, 1.0):
        expected = stats.bernoulli.logpmf(x, special.expit(logits))
        # SciPy forms 1 - p, which at p = sigmoid(30) has 3 digits left.
        expected = np.where((logits > 20) & (x == 0), -logits - np.exp(-30.0), expected)
        got = likelihoods.bernoulli_terms(jnp.asarray(logits), jnp.full(5, x))
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-14)


def test_bernoulli_terms_of_a_soft_target_are_minus_a_cross_entropy(x64):
    p, x = special.expit(0.7), 0.3
    expected = x * np.log(p) + (1 - x) * np.log1p(-p)
    got = likelihoods.bernoulli_terms(jnp.array([0.7]), jnp.array([x]))
    np.testing.assert_allclose(got, [expected], rtol=1e-9)


@pytest.mark.parametrize("logit", [-500.0, 500.0, -3e38, 3e38])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_bernoulli_terms_and_their_gradient_are_finite_for_any_logit(logit, x):
    value, slope = jax.value_and_grad(likelihoods.bernoulli_terms)(
        jnp.float32(logit), jnp.float32(x)
    )
    expected = -max(logit, 0.0) + x * logit
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, x - (logit > 0.0), atol=1e-6)


@pytest.mark.parametrize("logit", [-np.inf, np.inf])
def test_an_infinite_logit_is_a_certain_bit(logit):
    terms = likelihoods.bernoulli_terms

    @jax.jit
    def everything(logit, bit):
        value, slopes = jax.value_and_grad(terms, (0, 1))(logit, bit)
        others = [terms(logit, other) for other in (1.0 - bit, jnp.float32(0.5))]
        # Beside it, the other entries have the gradients that they have alone.
        logits, x = jnp.stack([0.3, logit, -1.2]), jnp.stack([1.0, bit, 0.0])
        beside = jax.grad(lambda logits: terms(logits, x).sum())(logits)
        slopes = (*slopes, jax.hessian(terms)(logit, bit))
        return value, slopes, others, (beside, x - jax.nn.sigmoid(logits))

    bit = np.float32(logit > 0.0)
    value, slopes, others, (got, expected) = everything(np.float32(logit), bit)
    assert value == 0.0
    assert slopes == (0.0, 0.0, 0.0)
    assert others == [-np.inf, -np.inf]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_bernoulli_terms_gradients_agree_with_finite_differences(x64):
    x = jnp.array([0.0, 1.0, 1.0])
    check_grads(
        lambda logits: likelihoods.bernoulli_terms(logits, x),
        (jnp.array([0.0, 0.0, -2.0]),),
        order=2,
        modes=("rev",),
    )


def test_bernoulli_samples_have_its_mean_and_its_entropy(x64):
    likelihood = likelihoods.bernoulli(X_SHAPE)
    x = _sampled(likelihood, (), LOGITS)
    assert x.shape == (NUM_DRAWS, *X_SHAPE)
    assert set(np.unique(x)) == {0.0, 1.0}
    p = special.expit(LOGITS).reshape(X_SHAPE)
    got = likelihood.mean((), jnp.asarray(LOGITS))
    np.testing.assert_allclose(got, p, rtol=1e-9)
    testing.assert_mean_equals(x, p)
    terms = jax.vmap(lambda x: likelihood.log_prob_terms((), jnp.asarray(LOGITS), x))
    testing.assert_mean_equals(terms(jnp.asarray(x)), -stats.bernoulli.entropy(p))


def test_bernoulli_probabilities_of_all_images_sum_to_one(x64):
    likelihood = likelihoods.bernoulli((3,))
    images = jnp.asarray(np.indices((2, 2, 2)).reshape(3, 8).T, jnp.float64)
    logits = jnp.array([0.3, -1.2, 4.0])
    terms = jax.vmap(lambda x: likelihood.log_prob_terms((), logits, x))(images)
    np.testing.assert_allclose(jnp.exp(terms.sum(1)).sum(), 1.0, rtol=1e-9)


# Normal


def test_normal_terms_match_scipy(x64):
    mean, log_std, x = np.array([[0.3, -1.2, 0.0], [-0.5, 0.7, -6.0], [1.0, 4.0, 0.1]])
    got = likelihoods.normal_terms(*map(jnp.asarray, (mean, log_std, x)))
    expected = stats.norm.logpdf(x, mean, np.exp(log_std))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_normal_terms_gradients_agree_with_finite_differences(x64):
    arguments = jnp.array([0.3, -1.2]), jnp.array([-0.5, 0.7]), jnp.array([1.0, 2.0])
    check_grads(likelihoods.normal_terms, arguments, order=2, modes=("rev",))


@EACH_NORMAL
def test_normal_log_prob_terms_match_scipy(x64, name):
    likelihood, params, h, mean, std = NORMALS[name]
    got = likelihood.log_prob_terms(params(), jnp.asarray(h), jnp.asarray(X))
    expected = stats.norm.logpdf(X, mean.reshape(X_SHAPE), std.reshape(X_SHAPE))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@EACH_NORMAL
def test_normal_samples_have_the_moments_of_the_density(x64, name):
    likelihood, params, h, mean, std = NORMALS[name]
    assert likelihood.width == h.size
    x = _sampled(likelihood, params(), h)
    mean, std = mean.reshape(X_SHAPE), std.reshape(X_SHAPE)
    got = likelihood.mean(params(), jnp.asarray(h))
    np.testing.assert_allclose(got, mean, rtol=1e-9)
    testing.assert_mean_equals(x, mean)
    testing.assert_mean_equals((x - mean) ** 2, std**2)
    testing.assert_mean_equals(np.prod(x - mean, axis=(1, 2)), 0.0)  # independent


@pytest.mark.slow
@EACH_NORMAL
def test_normal_gradients_in_h_agree_with_finite_differences(x64, name):
    likelihood, params, h, _, _ = NORMALS[name]
    theta, x = params(), jnp.asarray(X)
    check_grads(
        jax.jit(lambda h: likelihood.log_prob_terms(theta, h, x).sum()),
        (jnp.asarray(h),),
        order=2,
        modes=("rev",),
    )


@pytest.mark.parametrize("h", [-1e30, -50.0, 0.0])
def test_a_per_pixel_std_never_falls_below_its_bound(h):
    likelihood = likelihoods.normal_per_pixel_std((1,), min_std=0.05)
    terms, mean = likelihood.log_prob_terms, jnp.zeros(1)
    peak = terms((), jnp.concatenate([mean, jnp.full(1, h)]), mean)
    bound = stats.norm.logpdf(0.0, 0.0, 0.05)
    assert peak[0] <= bound + 1e-6
    slope = jax.grad(lambda s: terms((), jnp.stack([mean[0], s]), mean)[0])
    assert jnp.isfinite(slope(jnp.float32(h)))


def test_a_per_pixel_log_std_is_close_to_h_well_above_its_bound(x64):
    likelihood = likelihoods.normal_per_pixel_std((1,), min_std=1e-2)
    got = likelihood.log_prob_terms((), jnp.array([0.0, 5.0]), jnp.zeros(1))
    expected = stats.norm.logpdf(0.0, 0.0, np.exp(5.0) + 1e-2)
    np.testing.assert_allclose(got, [expected], rtol=1e-9)


def test_a_learned_std_starts_where_asked_and_stops_at_its_bound(x64):
    likelihood = likelihoods.normal_learned_std((1,), initial_std=0.5, min_std=0.1)
    params = likelihood.init(jax.random.key(0))
    np.testing.assert_allclose(jnp.exp(params["log_std"]), 0.5, rtol=1e-9)
    assert params["log_std"].dtype == jnp.float64

    def log_p(log_std):
        params = {"log_std": log_std}
        return likelihood.log_prob_terms(params, jnp.zeros(1), jnp.zeros(1))[0]

    bound = stats.norm.logpdf(0.0, 0.0, 0.1)
    value, slope = jax.value_and_grad(log_p)(jnp.asarray(-20.0))
    np.testing.assert_allclose(value, bound, rtol=1e-9)
    assert slope == 0.0
    check_grads(log_p, (jnp.asarray(-0.3),), order=2, modes=("rev",))


# All


ALL = {name: entry[:3] for name, entry in NORMALS.items()} | {
    "bernoulli": (likelihoods.bernoulli(X_SHAPE), lambda: (), LOGITS)
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "per pixel" else [pytest.mark.slow])
        for name in ALL
    ],
)
def test_jit_and_vmap_agree_with_a_loop(x64, name):
    likelihood, params, h = ALL[name]
    theta = params()
    hs = jnp.asarray(h)[None] * jnp.array([[0.5], [1.0], [-2.0]])
    xs = jnp.stack([jnp.zeros(X_SHAPE), jnp.ones(X_SHAPE), jnp.ones(X_SHAPE)])
    keys = jax.random.split(jax.random.key(0), 3)

    def all_of(key, h, x):
        terms = likelihood.log_prob_terms(theta, h, x)
        return likelihood.sample(key, theta, h), likelihood.mean(theta, h), terms

    got = jax.jit(jax.vmap(all_of))(jax.random.clone(keys), hs, xs)
    for i in range(3):
        for a, b in zip(got, all_of(keys[i], hs[i], xs[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_every_result_has_the_dtype_of_h(x64, name):
    likelihood, params, h = ALL[name]
    theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params())
    h = jnp.asarray(h, jnp.float32)
    x = likelihood.sample(jax.random.key(0), theta, h)
    assert x.dtype == jnp.float32
    assert likelihood.mean(theta, h).dtype == jnp.float32
    assert likelihood.log_prob_terms(theta, h, x).dtype == jnp.float32


@pytest.mark.parametrize("std", [0.0, -1.0, float("inf"), float("nan")])
def test_a_std_that_is_not_positive_and_finite_is_refused(std):
    with pytest.raises(ValueError, match=f"^std .*{std}"):
        likelihoods.normal((2,), std=std)
    with pytest.raises(ValueError, match=f"min_std .*{std}"):
        likelihoods.normal_learned_std((2,), min_std=std)
    with pytest.raises(ValueError, match=f"initial_std .*{std}"):
        likelihoods.normal_learned_std((2,), initial_std=std)
    with pytest.raises(ValueError, match=f"min_std .*{std}"):
        likelihoods.normal_per_pixel_std((2,), min_std=std)


def test_an_initial_std_below_the_bound_is_refused():
    with pytest.raises(ValueError, match=r"initial_std 0\.1 .* min_std 0\.2"):
        likelihoods.normal_learned_std((2,), initial_std=0.1, min_std=0.2)


@pytest.mark.parametrize(
    "build",
    [
        likelihoods.bernoulli,
        lambda x_shape: likelihoods.normal(x_shape, std=1.0),
        likelihoods.normal_learned_std,
        likelihoods.normal_per_pixel_std,
    ],
)
def test_an_observation_without_entries_is_refused(build):
    with pytest.raises(ValueError, match=r"x_shape .*\(2, 0\)"):
        build((2, 0))


# What the number is


NAN, INF = float("nan"), float("inf")
BINARY, SOFT, OUTSIDE = [0.0, 1.0, 1.0], [0.0, 0.3, 1.0], [-0.5, 2.0, 1.0]
OF_NORMALS = [name for name in ALL if name != "bernoulli"]


def _rows(entries):
    """Two images of X_SHAPE and of these entries, over and over."""
    return np.resize(np.asarray(entries), (3, *X_SHAPE))


@pytest.mark.parametrize(
    ("entries", "quantity"),
    [
        (BINARY, "log-likelihood"),
        ([0, 1], "log-likelihood"),
        ([False, True], "log-likelihood"),
        ([0.0, 0.0], "log-likelihood"),
        ([*BINARY, NAN], "log-likelihood"),
        ([NAN, NAN], "log-likelihood"),  # no entry contradicts it
        (SOFT, "cross-entropy"),
        ([*SOFT, NAN], "cross-entropy"),
        ([0.0, 1.0, 1.0, 1.0 - 1e-7], "cross-entropy"),
    ],
)
def test_a_bernoullis_number_is_a_likelihood_of_bits_alone(entries, quantity):
    likelihood = likelihoods.bernoulli(X_SHAPE)
    assert likelihood.quantity(_rows(entries)) == quantity
    assert likelihood.quantity(jnp.asarray(_rows(entries))) == quantity


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (OUTSIDE, r"got -0\.5 to 2\.0"),
        ([*OUTSIDE, NAN], r"got -0\.5 to 2\.0"),
        ([0, 255], "got 0 to 255"),
        ([0.0, 1.0 + 1e-6], r"got 0\.0 to 1\.0"),
        ([-1e-6, 1.0], "got -1e-06 to 1"),
        ([0.0, INF], r"got 0\.0 to inf"),
        ([-INF, NAN], "got -inf to -inf"),
    ],
)
def test_a_bernoulli_has_no_number_for_data_outside_the_unit_interval(entries, message):
    named = rf"Bernoulli likelihood needs x in \[0, 1\], {message}"
    with pytest.raises(ValueError, match=named):
        likelihoods.bernoulli(X_SHAPE).quantity(_rows(entries))


@pytest.mark.parametrize("name", OF_NORMALS)
@pytest.mark.parametrize(
    "entries", [BINARY, SOFT, OUTSIDE, [*OUTSIDE, NAN], [NAN], [0, 255], [1e30]]
)
def test_a_normals_number_is_a_density_whatever_the_data(name, entries):
    assert ALL[name][0].quantity(_rows(entries)) == "log-density"


@pytest.mark.parametrize("name", OF_NORMALS)
@pytest.mark.parametrize("entries", [[0.0, INF], [-INF, NAN]])
def test_a_normal_has_no_number_for_infinite_data(name, entries):
    with pytest.raises(ValueError, match="normal likelihood needs finite x"):
        ALL[name][0].quantity(_rows(entries))


def test_a_likelihood_of_ones_own_sees_the_entries_that_are_there():
    seen = []
    likelihood = likelihoods.likelihood(
        (2,),
        width=2,
        sample=lambda key, params, h: h,
        mean=lambda params, h: h,
        log_prob_terms=lambda params, h, x: h,
        quantity=lambda x: seen.append(x.tolist()) or "log-density",
    )
    assert likelihood.quantity(np.array([[0.5, NAN], [NAN, 2.0]])) == "log-density"
    assert seen == [[0.5, 2.0]]


# Densities of real entries beside the normal: laws of SciPy, integrals, samples

REALS = {
    "continuous Bernoulli": (
        lambda: likelihoods.continuous_bernoulli((3,)),
        np.array([-3.0, 0.02, 8.0]),
    ),
    "laplace": (
        lambda: likelihoods.laplace((3,), min_scale=0.05),
        np.array([0.3, -1.0, 2.0, -5.0, 0.2, 1.0]),
    ),
    "student t": (
        lambda: likelihoods.student_t((3,), degrees=4.5, min_scale=0.05),
        np.array([0.3, -1.0, 2.0, -5.0, 0.2, 1.0]),
    ),
    "log-normal": (
        lambda: likelihoods.log_normal((3,), min_std=0.05),
        np.array([0.3, -1.0, 2.0, -2.0, -1.5, -0.9]),
    ),
}
EACH_REAL = pytest.mark.parametrize("name", REALS)


def _of_scipy(name, h):
    if name == "continuous Bernoulli":
        # Truncated exponentials of either sign.
        size = np.abs(h)
        falling: Any = stats.truncexpon(size, scale=1 / size)
        rising = np.where(h > 0, 1.0, 0.0)
        mean = np.where(rising, 1 - falling.mean(), falling.mean())
        log_pdf = lambda x: falling.logpdf(np.where(rising, 1 - x, x))  # noqa: E731
        return log_pdf, mean, falling.std()
    mean, scale = h[:3], 0.05 + np.exp(h[3:])
    if name == "log-normal":
        law = stats.lognorm(scale, scale=np.exp(mean))
        return law.logpdf, law.mean(), law.std()
    of_t = name == "student t"
    law: Any = stats.t(4.5, mean, scale) if of_t else stats.laplace(mean, scale)
    return law.logpdf, law.mean(), law.std()


@EACH_REAL
def test_densities_of_reals_are_those_of_scipy(name, x64):
    build, h = REALS[name]
    log_pdf, mean, _ = _of_scipy(name, h)
    x = np.array([0.9, 0.2, 0.6])
    got = build().log_prob_terms((), jnp.asarray(h), jnp.asarray(x))
    np.testing.assert_allclose(got, log_pdf(x), rtol=1e-9)
    np.testing.assert_allclose(build().mean((), jnp.asarray(h)), mean, rtol=1e-7)


@pytest.mark.slow
@EACH_REAL
def test_samples_of_reals_have_their_mean_and_spread(name):
    build, h = REALS[name]
    _, mean, std = _of_scipy(name, h)
    x = _sampled(build(), (), h)
    testing.assert_mean_equals(x, mean)
    testing.assert_mean_equals((x - mean) ** 2, std**2, max_z=6.0)


@pytest.mark.slow
@EACH_REAL
def test_gradients_of_densities_of_reals_are_those_of_finite_differences(name, x64):
    build, h = REALS[name]
    x = jnp.array([0.9, 0.2, 0.6])
    total = jax.jit(lambda h: build().log_prob_terms((), h, x).sum())
    check_grads(total, (jnp.asarray(h),), 2)


@EACH_REAL
def test_the_number_of_reals_is_a_log_density(name):
    likelihood = REALS[name][0]()
    assert likelihood.quantity(np.array([1e-3, 0.5, 1.0])) == "log-density"
    with pytest.raises(ValueError, match=r"needs (finite x|x in \[0, 1\]|x > 0)"):
        likelihood.quantity(np.array([0.5, np.inf]))


LOGITS_OF_EVERY_SIZE = [0.0, 1e-6, -1e-3, 0.05, 0.0999, 0.1001, -0.5, 3.0, -40.0, 500.0]


@functools.cache  # eigenvalues of a matrix of 400 rows
def _gauss():
    return np.polynomial.legendre.leggauss(400)


@pytest.mark.slow
@pytest.mark.parametrize("logit", LOGITS_OF_EVERY_SIZE)
def test_a_continuous_bernoulli_integrates_to_one_at_any_logit(logit, x64):
    nodes, weights = _gauss()
    x = jnp.asarray(0.5 * (nodes + 1.0))
    h = jnp.full_like(x, logit)
    log_p = jax.jit(likelihoods.continuous_bernoulli_terms)(h, x)
    np.testing.assert_allclose(np.exp(log_p) @ weights / 2, 1.0, rtol=1e-9)
    mean = likelihoods.continuous_bernoulli((1,)).mean((), h[:1])
    np.testing.assert_allclose(mean, (np.exp(log_p) * x) @ weights / 2, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("logit", [*LOGITS_OF_EVERY_SIZE, 1e5, -1e6])
def test_a_continuous_bernoulli_in_float32_keeps_its_digits(logit):
    exact = likelihoods.continuous_bernoulli_terms
    x = np.array([0.0, 0.3, 1.0])
    with jax.enable_x64(True):
        expected = exact(jnp.full(3, logit, jnp.float64), jnp.asarray(x))
    got = exact(jnp.full(3, logit, jnp.float32), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)
    keys = jax.random.split(jax.random.key(0), 1000)
    likelihood = likelihoods.continuous_bernoulli((1,))
    x_sampled = jax.vmap(likelihood.sample, (0, None, None))(
        keys, (), jnp.array([logit], jnp.float32)
    )
    assert np.isfinite(x_sampled).all()
    assert x_sampled.min() >= 0.0
    assert x_sampled.max() <= 1.0


@pytest.mark.parametrize("degrees", [1.5, 40.0, 1e8, 1e12, 1e16])
def test_a_student_t_keeps_its_digits_at_many_degrees(degrees, x64):
    x = jnp.array([0.0, 0.7, -3.0])
    got = likelihoods.student_t_terms(jnp.zeros(3), jnp.zeros(3), x, degrees=degrees)
    # SciPy loses them too: there it is a normal density, to one over the degrees.
    few = degrees < 1e6
    expected = stats.t.logpdf(x, degrees) if few else stats.norm.logpdf(x)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("degrees", [1.0, 0.5, float("inf"), float("nan")])
def test_degrees_without_a_mean_are_refused(degrees):
    with pytest.raises(ValueError, match=r"degrees must lie in \(1, inf\)"):
        likelihoods.student_t((2,), degrees=degrees)
