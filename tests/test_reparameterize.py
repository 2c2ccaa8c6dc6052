import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from tests import testing
from vae_jax import reparameterize

NUM_DRAWS = 20_000
FIVE_SIGMA = 5.7e-7  # two-sided normal tail beyond five standard errors
LOCATION, LOG_SCALE = np.array([0.3, -1.2]), np.array([-0.5, 0.7])
CHOLESKY = np.array([[0.8, 0.0, 0.0], [-0.5, 1.1, 0.0], [0.9, 0.4, 0.3]])
MEAN3 = np.array([0.3, -1.2, 2.0])
U = np.array([0.19, 0.6])


def _erlang(key, log_rate):
    return reparameterize.erlang(key, log_rate, num_exponentials=3)


# Sampler, parameters, SciPy's frozen density of each entry of the sample.
SAMPLERS = [
    (
        reparameterize.location_scale,
        (LOCATION, LOG_SCALE),
        stats.norm(LOCATION, np.exp(LOG_SCALE)),
    ),
    (
        reparameterize.location_cholesky,
        (MEAN3, CHOLESKY),
        stats.norm(MEAN3, np.sqrt(np.diag(CHOLESKY @ CHOLESKY.T))),
    ),
    (
        reparameterize.exponential,
        (LOG_SCALE,),
        stats.expon(scale=np.exp(-LOG_SCALE)),
    ),
    (
        reparameterize.logistic,
        (LOCATION, LOG_SCALE),
        stats.logistic(LOCATION, np.exp(LOG_SCALE)),
    ),
    (
        reparameterize.cauchy,
        (LOCATION, LOG_SCALE),
        stats.cauchy(LOCATION, np.exp(LOG_SCALE)),
    ),
    (
        reparameterize.log_normal,
        (LOCATION, LOG_SCALE),
        stats.lognorm(np.exp(LOG_SCALE), scale=np.exp(LOCATION)),
    ),
    (_erlang, (LOG_SCALE,), stats.gamma(3, scale=np.exp(-LOG_SCALE))),
    (
        reparameterize.dirichlet,
        (MEAN3,),
        stats.beta(np.exp(MEAN3), np.exp(MEAN3).sum() - np.exp(MEAN3)),
    ),
]
INDEPENDENT = [
    case[:2]
    for case in SAMPLERS
    if case[0] not in (reparameterize.location_cholesky, reparameterize.dirichlet)
]
# Deterministic half, noise, parameters.
HALVES = [
    (reparameterize.location_scale_from_noise, (MEAN3[:2], LOCATION, LOG_SCALE)),
    (reparameterize.location_cholesky_from_noise, (-MEAN3, MEAN3, CHOLESKY)),
    (reparameterize.exponential_from_uniform, (U, LOG_SCALE)),
    (reparameterize.logistic_from_uniform, (U, LOCATION, LOG_SCALE)),
    (reparameterize.cauchy_from_uniform, (U, LOCATION, LOG_SCALE)),
    (reparameterize.log_normal_from_noise, (MEAN3[:2], LOCATION, LOG_SCALE)),
    (reparameterize.erlang_from_uniform, (np.stack([U, U[::-1], U]), LOG_SCALE)),
    (reparameterize.dirichlet_from_log_gammas, (MEAN3,)),
]
INVERSE_CDFS = [
    (reparameterize.exponential_from_uniform, 1, stats.expon),
    (reparameterize.logistic_from_uniform, 2, stats.logistic),
    (reparameterize.cauchy_from_uniform, 2, stats.cauchy),
]


@functools.cache
def _repeated(sampler):
    """The sampler over many keys, compiled once for all the tests."""
    return jax.jit(
        lambda keys, parameters: jax.vmap(lambda key: sampler(key, *parameters))(keys)
    )


def _draws(sampler, parameters):
    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
    return _repeated(sampler)(keys, tuple(jnp.asarray(p) for p in parameters))


# Oracle


@pytest.mark.parametrize(("half", "num_parameters", "density"), INVERSE_CDFS)
def test_inverse_cdfs_match_scipy(x64, half, num_parameters, density):
    tails = np.logspace(-12, -2, 11)
    u = np.concatenate([tails, np.linspace(0.03, 0.98, 96), 1 - tails[4:]])
    location, log_scale = np.full_like(u, 0.3), np.full_like(u, -0.7)
    if num_parameters == 1:
        got, expected = half(u, -log_scale), density.ppf(u, scale=np.exp(-0.7))
    else:
        got = half(u, location, log_scale)
        expected = density.ppf(u, 0.3, np.exp(-0.7))
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_normal_quantiles_go_through_location_and_scale(x64):
    u = np.linspace(0.01, 0.99, 99)
    eps = jnp.asarray(stats.norm.ppf(u))
    mean, log_std = jnp.full(99, 0.3), jnp.full(99, -0.7)
    got = reparameterize.location_scale_from_noise(eps, mean, log_std)
    np.testing.assert_allclose(got, stats.norm.ppf(u, 0.3, np.exp(-0.7)), rtol=1e-9)
    got = reparameterize.log_normal_from_noise(eps, mean, log_std)
    expected = stats.lognorm.ppf(u, np.exp(-0.7), scale=np.exp(0.3))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_compositions_are_what_their_parts_give(x64):
    u, log_rate = jnp.asarray([U, U[::-1], U]), jnp.asarray(LOG_SCALE)
    parts = [reparameterize.exponential_from_uniform(row, log_rate) for row in u]
    got = reparameterize.erlang_from_uniform(u, log_rate)
    np.testing.assert_allclose(got, sum(parts), rtol=1e-12)
    got = reparameterize.dirichlet_from_log_gammas(jnp.asarray(MEAN3))
    np.testing.assert_allclose(got, np.exp(MEAN3) / np.exp(MEAN3).sum(), rtol=1e-12)


# Statistical


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "parameters", "density"), SAMPLERS)
def test_samples_follow_the_density_of_scipy(sampler, parameters, density):
    z = np.asarray(_draws(sampler, parameters), np.float64)
    for column in density.cdf(z).T:
        assert stats.kstest(column, stats.uniform.cdf).pvalue > FIVE_SIGMA
    if sampler is not reparameterize.cauchy:
        testing.assert_mean_equals(z, density.mean())
    if sampler not in (reparameterize.cauchy, reparameterize.log_normal):
        # A log-normal has too heavy a tail for an error bar on its variance.
        testing.assert_mean_equals((z - density.mean()) ** 2, density.var())


@pytest.mark.slow
def test_the_covariance_is_the_factor_times_its_transpose():
    z = _draws(reparameterize.location_cholesky, (MEAN3, CHOLESKY))
    centered = np.asarray(z, np.float64) - MEAN3
    products = centered[:, :, None] * centered[:, None, :]
    testing.assert_mean_equals(products, CHOLESKY @ CHOLESKY.T)


@pytest.mark.parametrize(("sampler", "parameters"), INDEPENDENT)
def test_entries_of_a_sample_are_independent(sampler, parameters):
    z = np.asarray(_draws(sampler, parameters), np.float64)
    ranks = stats.rankdata(z, axis=0)
    correlation = np.corrcoef(ranks.T)[0, 1]
    assert abs(correlation) < 5 / np.sqrt(NUM_DRAWS)


def test_pathwise_gradient_of_the_mean_square_has_variance_four_s_squared():
    mean, log_std = jnp.array([0.7]), jnp.log(jnp.array([1.3]))

    def square(key, mean):
        return reparameterize.location_scale(key, mean, log_std)[0] ** 2

    keys = jax.random.split(jax.random.key(0), 100_000)
    slopes = jax.jit(jax.vmap(jax.grad(square, 1), (0, None)))(keys, mean)
    slopes = np.asarray(slopes, np.float64)
    testing.assert_mean_equals(slopes, 2 * np.array([0.7]))
    variance = 4 * np.array([1.3]) ** 2
    testing.assert_mean_equals((slopes - 1.4) ** 2, variance)


@pytest.mark.parametrize(
    ("sampler", "parameters", "mean"),
    [
        (reparameterize.location_scale, (LOCATION, LOG_SCALE), lambda m, s: m),
        (reparameterize.exponential, (LOG_SCALE,), lambda r: jnp.exp(-r)),
        (reparameterize.logistic, (LOCATION, LOG_SCALE), lambda m, s: m),
        (
            reparameterize.log_normal,
            (LOCATION, LOG_SCALE - 0.5),
            lambda m, s: jnp.exp(m + 0.5 * jnp.exp(2.0 * s)),
        ),
        (_erlang, (LOG_SCALE,), lambda r: 3.0 * jnp.exp(-r)),
        (reparameterize.dirichlet, (MEAN3,), jax.nn.softmax),
    ],
)
@pytest.mark.slow
def test_pathwise_gradients_average_to_the_gradient_of_the_mean(
    sampler, parameters, mean
):
    weights = jnp.array([1.0, -2.0, 0.5])[: parameters[0].size]
    slope = jax.grad(lambda h, key: weights @ sampler(key, *h))
    slopes = _draws(lambda key, *h: slope(h, key), parameters)
    h = tuple(jnp.asarray(p) for p in parameters)
    expected = jax.grad(lambda h: weights @ mean(*h))(h)
    testing.assert_mean_equals(slopes, expected)


# Gradient


@pytest.mark.slow
def test_gradients_agree_with_finite_differences_to_second_order(x64):
    @jax.jit  # one program for all, as compilation is the cost of this test
    def everything(arguments):
        return [half(*row) for (half, _), row in zip(HALVES, arguments, strict=True)]

    arguments = [list(case[1]) for case in HALVES]
    check_grads(everything, (arguments,), order=2, modes=("rev",))


# Transformation and dtype


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "parameters"), [case[:2] for case in SAMPLERS])
def test_jit_equals_eager_and_vmap_equals_a_loop(sampler, parameters):
    got = _draws(sampler, parameters)
    arrays = [jnp.asarray(p) for p in parameters]
    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
    expected = [sampler(key, *arrays) for key in keys[:3]]
    np.testing.assert_allclose(got[:3], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(("sampler", "parameters"), [case[:2] for case in SAMPLERS])
def test_dtype_and_shape_follow_the_parameters(x64, sampler, parameters, dtype):
    arrays = [jnp.asarray(p, dtype) for p in parameters]
    got = jax.eval_shape(sampler, jax.random.key(0), *arrays)
    assert (got.dtype, got.shape) == (dtype, arrays[0].shape)


# Edge


@pytest.mark.parametrize(("dtype", "bits"), [(np.float32, 23), (np.float64, 52)])
def test_uniforms_are_midpoints_of_cells_and_so_never_zero_or_one(x64, dtype, bits):
    u = reparameterize.open_uniform(jax.random.key(0), (NUM_DRAWS,), dtype)
    assert u.dtype == dtype
    halves = np.asarray(u, np.float64) * 2.0 ** (bits + 1)
    assert (halves % 2 == 1).all()
    assert stats.kstest(u, stats.uniform.cdf).pvalue > FIVE_SIGMA


@pytest.mark.parametrize(("half", "num_parameters", "density"), INVERSE_CDFS)
def test_inverse_cdfs_keep_their_digits_in_the_tails(half, num_parameters, density):
    u = np.array([1e-30, 1e-8, 2.0**-24, 0.2, 0.8, 1 - 2.0**-24], np.float32)
    zeros = np.zeros((num_parameters, u.size), np.float32)
    expected = density.ppf(u.astype(np.float64))
    np.testing.assert_allclose(half(u, *zeros), expected, rtol=1e-6)


def test_cauchy_is_zero_at_its_median_and_odd_around_it():
    u = jnp.array([0.5, 2.0**-24, 0.1, 0.25, 0.4])
    zeros = jnp.zeros_like(u)
    lower = reparameterize.cauchy_from_uniform(u, zeros, zeros)
    upper = reparameterize.cauchy_from_uniform(1.0 - u, zeros, zeros)
    assert lower[0] == 0.0
    np.testing.assert_allclose(lower, -upper, rtol=1e-6)
    slope = jax.grad(reparameterize.cauchy_from_uniform)
    slopes = jax.jit(jax.vmap(slope))(u, zeros, zeros)
    exact = np.pi / np.sin(np.pi * np.asarray(u, np.float64)) ** 2
    np.testing.assert_allclose(slopes, exact, rtol=1e-5)


@pytest.mark.slow
def test_small_concentrations_stay_on_the_simplex():
    z = np.asarray(_draws(reparameterize.dirichlet, (np.full(3, -7.0),)))
    assert np.isfinite(z).all()
    np.testing.assert_allclose(z.sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("log_concentration", [-1e4, -200.0, -90.0, 89.0, 1e4])
def test_concentrations_beyond_the_floats_stay_on_the_simplex(log_concentration):
    logs = jnp.full(3, log_concentration, jnp.float32)
    z = np.asarray(reparameterize.dirichlet(jax.random.key(0), logs))
    assert np.isfinite(z).all()
    np.testing.assert_allclose(z.sum(), 1.0, rtol=1e-5)


def test_entries_above_the_diagonal_are_not_read():
    eps, mean = jnp.array([0.5, -1.0]), jnp.zeros(2)
    full = jnp.array([[1.0, 7.0], [0.5, 2.0]])
    got = reparameterize.location_cholesky_from_noise(eps, mean, full)
    np.testing.assert_allclose(got, [0.5, -1.75], rtol=1e-6)


@pytest.mark.parametrize(("half", "arguments"), HALVES[:-1])
def test_halves_reject_arguments_of_different_shapes(half, arguments):
    for i in range(len(arguments)):
        changed = [jnp.asarray(a) for a in arguments]
        changed[i] = changed[i][..., :-1]
        with pytest.raises(ValueError, match=r"shape|\[D, D\]"):
            half(*changed)


@pytest.mark.parametrize(
    "sampler",
    [
        reparameterize.location_scale,
        reparameterize.location_cholesky,
        reparameterize.logistic,
        reparameterize.cauchy,
        reparameterize.log_normal,
    ],
)
def test_samplers_reject_parameters_of_different_shapes(sampler):
    with pytest.raises(ValueError, match=r"one shape|\[D, D\]"):
        sampler(jax.random.key(0), jnp.zeros(2), jnp.zeros(3))


def test_counts_and_axes_are_checked():
    with pytest.raises(ValueError, match="num_exponentials must be positive, got 0"):
        reparameterize.erlang(jax.random.key(0), jnp.zeros(2), num_exponentials=0)
    with pytest.raises(ValueError, match="log_rate's shape"):
        reparameterize.erlang_from_uniform(jnp.zeros((0, 2)), jnp.zeros(2))
    for shape in [(), (0,), (2, 3)]:
        with pytest.raises(ValueError, match="log_concentration"):
            reparameterize.dirichlet(jax.random.key(0), jnp.zeros(shape))
