import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from tests import testing
from vae_jax import discretized, networks, posteriors, priors, vae

NUM_DRAWS = 40_000
GRAY, COLOR = (1, 2), (1, 1, 3)


@functools.cache  # one record of each, whose programs the tests share
def _builders(num_values):
    mixture = functools.partial(
        discretized.logistic_mixture, num_values=num_values, num_components=2
    )
    return {
        "logistic": discretized.logistic(GRAY, num_values=num_values),
        "categorical": discretized.categorical(GRAY, num_values=num_values),
        "mixture": mixture(GRAY),
        "mixture in color": mixture(COLOR),
    }


EACH = pytest.mark.parametrize("name", _builders(4))


def _h(likelihood, *, scale=1.0, seed=0):
    return jnp.asarray(
        scale * np.random.default_rng(seed).normal(size=likelihood.width)
    )


def _every_x(x_shape, num_values):
    size = int(np.prod(x_shape))
    axes = np.meshgrid(*[np.arange(num_values)] * size, indexing="ij")
    flat = np.stack([axis.ravel() for axis in axes], 1) / (num_values - 1)
    return jnp.asarray(flat.reshape(-1, *x_shape))


@functools.partial(jax.jit, static_argnames="likelihood")
def _log_probs(likelihood, h, x):
    return jax.vmap(lambda x: likelihood.log_prob_terms((), h, x).sum())(x)


# Normalization


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_the_probabilities_of_all_images_sum_to_one(name, scale, x64):
    likelihood = _builders(4)[name]
    x = _every_x(COLOR if "color" in name else GRAY, 4)
    log_p = _log_probs(likelihood, _h(likelihood, scale=scale), x)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, rtol=1e-12)


@functools.partial(jax.jit, static_argnames="num_values")
def _bins(mean, log_scale, x, *, num_values):
    terms = functools.partial(discretized.logistic_terms, num_values=num_values)
    each = jax.vmap(jax.value_and_grad(terms, (0, 1)), in_axes=(None, None, 0))
    return each(mean, log_scale, x)


@pytest.mark.slow
@pytest.mark.parametrize("num_values", [2, 17, 256])
@pytest.mark.parametrize("log_scale", [-100.0, -7.0, -4.0, 0.0, 5.0, 80.0])
@pytest.mark.parametrize("mean", [0.0, 0.99, -1.0, 3.0, -50.0])
def test_bins_of_a_logistic_density_sum_to_one(mean, log_scale, num_values, x64):
    x = jnp.arange(num_values) / (num_values - 1)
    log_p, slopes = _bins(mean, log_scale, x, num_values=num_values)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, rtol=1e-12)
    assert np.isfinite(slopes).all()
    assert np.isfinite(log_p).all()


def test_scales_are_cut_off_below_the_least_without_a_gradient(x64):
    x = jnp.arange(5) / 4
    at_least, _ = _bins(0.1, discretized.MIN_LOG_SCALE, x, num_values=5)
    below, slopes = _bins(0.1, discretized.MIN_LOG_SCALE - 1.0, x, num_values=5)
    np.testing.assert_array_equal(below, at_least)
    np.testing.assert_array_equal(slopes[1], 0.0)
    _, slopes = _bins(0.1, discretized.MIN_LOG_SCALE + 1.0, x, num_values=5)
    assert (np.abs(slopes[1]) > 0.0).any()
    # Each channel of a mixture, as [logit, mean, log scale] of one component.
    mixture = discretized.logistic_mixture((1, 1), num_values=5, num_components=1)
    for log_scale in (-7.0, -8.0):
        h = jnp.array([0.0, 0.1, log_scale])
        got = mixture.log_prob_terms((), h, jnp.full((1, 1), 0.5))
        np.testing.assert_allclose(got, at_least[2], rtol=1e-12)


@pytest.mark.parametrize("log_scale", [3.0, 40.0, 80.0])
def test_bins_of_a_wide_density_are_as_wide_as_one_over_its_scale_in_float32(log_scale):
    x = jnp.arange(1, 255) / 255
    _, slopes = _bins(jnp.zeros(()), jnp.float32(log_scale), x, num_values=256)
    np.testing.assert_allclose(slopes[1], -1.0, rtol=2e-3)


def test_a_bin_as_wide_as_its_scale_has_its_whole_gradient():
    slope = jax.grad(functools.partial(discretized.logistic_terms, num_values=3), 1)
    got = slope(jnp.float32(0.0), jnp.float32(0.0), jnp.float32(0.5))
    # Of 2 sigmoid(w / 2s) - 1, in log s.
    p, half = 2 * special.expit(0.5) - 1, special.expit(0.5) * special.expit(-0.5)
    np.testing.assert_allclose(got, -half / p, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("log_scale", [-7.0, -4.0, 0.0, 5.0])
def test_bins_sum_to_one_in_float32(log_scale):
    x = jnp.arange(256) / 255
    for mean in np.linspace(-1.2, 1.2, 9):
        log_p = discretized.logistic_terms(
            jnp.float32(mean), jnp.float32(log_scale), x, num_values=256
        )
        np.testing.assert_allclose(np.exp(log_p).sum(dtype=np.float64), 1.0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("x_shape", [(2, 2), (2, 2, 3)])
def test_a_mixture_around_a_mean_has_it_and_room_for_each_value(x_shape):
    mean = jnp.linspace(0.3, 0.7, math.prod(x_shape)).reshape(x_shape)
    of = discretized.logistic_mixture(x_shape, num_values=256, num_components=5)
    first = discretized.mixture_around(mean, num_components=5)
    h = jnp.pad(first, (0, of.width - first.size))
    np.testing.assert_allclose(of.mean((), h), mean, atol=0.03)

    def of_value(k):
        return of.log_prob_terms((), h, jnp.full(x_shape, k / 255)).mean()

    nats = jax.jit(jax.vmap(of_value))(jnp.arange(256.0))
    assert float(nats.min()) > math.prod(x_shape[2:]) * -8.5


# Against SciPy


@pytest.mark.slow
def test_an_ordinal_is_a_logistic_density_cut_at_its_edges(x64):
    likelihood = discretized.ordinal((2,), num_values=4)
    start = likelihood.init(jax.random.key(0))
    edges = np.array([[-1.0, 0.2], [-0.3, 0.3], [2.5, 0.4]])
    parts = np.concatenate([edges[:1], np.log(np.diff(edges, axis=0))])
    params, h = {"edges": jnp.asarray(parts)}, jnp.array([0.4, -3.0])
    inner = special.expit(edges - np.asarray(h))
    cdf = np.concatenate([np.zeros((1, 2)), inner, np.ones((1, 2))])
    x, exact = jnp.arange(4.0) / 3.0, np.diff(cdf, axis=0)
    terms = jax.vmap(likelihood.log_prob_terms, (None, None, 0))
    each = jnp.broadcast_to(x[:, None], (4, 2))
    np.testing.assert_allclose(np.exp(terms(params, h, each)), exact, rtol=1e-9)
    np.testing.assert_allclose(np.exp(terms(start, 0.0 * h, each)), 0.25, rtol=1e-9)
    mean = likelihood.mean(params, h)
    np.testing.assert_allclose(mean, np.asarray(x) @ exact, rtol=1e-9)
    keys = jax.random.split(jax.random.key(1), NUM_DRAWS)
    sample = jax.jit(jax.vmap(likelihood.sample, (0, None, None)))
    draws = np.asarray(sample(keys, params, jnp.asarray(h)))
    testing.assert_mean_equals(draws[..., None] == np.asarray(x), exact.T)


@pytest.mark.slow
@pytest.mark.parametrize("log_scale", [-6.5, -2.0, 1.0])
def test_bins_are_differences_of_the_logistic_distribution_function(log_scale, x64):
    k, mean = np.arange(256), 0.3
    scale = np.exp(log_scale)
    above = (((2 * k + 1) / 255 - 1) - mean) / scale
    below = (((2 * k - 1) / 255 - 1) - mean) / scale
    cdf, sf = stats.logistic.cdf, stats.logistic.sf
    expected = np.where(below < 0, cdf(above) - cdf(below), sf(below) - sf(above))
    expected[0], expected[-1] = cdf(above[0]), sf(below[-1])
    means, log_scales = jnp.full(256, mean), jnp.full(256, log_scale)
    got = discretized.logistic_terms(
        means, log_scales, jnp.asarray(k / 255), num_values=256
    )
    np.testing.assert_allclose(np.exp(got), expected, rtol=1e-9, atol=1e-300)


def test_a_categorical_is_the_softmax_of_its_planes(x64):
    likelihood = discretized.categorical(GRAY, num_values=3)
    logits = np.array([[[0.1, -1.0]], [[2.0, 0.3]], [[-0.5, 0.7]]])
    got = likelihood.log_prob_terms(
        (), jnp.asarray(logits.ravel()), jnp.array([[0.5, 1.0]])
    )
    expected = np.log(
        [
            np.exp(logits[1, 0, 0]) / np.exp(logits[:, 0, 0]).sum(),
            np.exp(logits[2, 0, 1]) / np.exp(logits[:, 0, 1]).sum(),
        ]
    )
    np.testing.assert_allclose(got, [expected], rtol=1e-9)


def test_one_component_of_one_channel_is_a_logistic_density(x64):
    mixture = discretized.logistic_mixture(GRAY, num_values=9, num_components=1)
    alone = discretized.logistic(GRAY, num_values=9)
    h = np.array([0.3, -0.7, -1.0, 0.2])
    x = _every_x(GRAY, 9)
    got = _log_probs(mixture, jnp.concatenate([jnp.ones(2), h]), x)
    np.testing.assert_allclose(got, _log_probs(alone, jnp.asarray(h), x), rtol=1e-9)


def test_channels_of_a_color_mixture_follow_the_paper(x64):
    """Red, then green given red, then blue given both, written out for one pixel."""
    num_values, num_components = 8, 2
    mixture = discretized.logistic_mixture(
        COLOR, num_values=num_values, num_components=num_components
    )
    rng = np.random.default_rng(3)
    logits = rng.normal(size=2)
    means, log_scales, raw = rng.normal(size=(3, 3, 2))
    h = np.concatenate([logits, means.ravel(), log_scales.ravel(), raw.ravel()])
    x = np.array([2, 7, 3]) / 7
    u, c = 2 * x - 1, np.tanh(raw)
    of_channel = jax.jit(
        functools.partial(discretized.logistic_terms, num_values=num_values)
    )
    expected = 0.0
    for m in range(num_components):
        at = [
            means[0, m],
            means[1, m] + c[0, m] * u[0],
            means[2, m] + c[1, m] * u[0] + c[2, m] * u[1],
        ]
        p = np.exp(logits[m]) / np.exp(logits).sum()
        for channel in range(3):
            p *= np.exp(
                of_channel(at[channel], log_scales[channel, m], jnp.asarray(x[channel]))
            )
        expected += p
    x = jnp.asarray(x.reshape(COLOR))
    got = jax.jit(mixture.log_prob_terms)((), jnp.asarray(h), x)
    assert got.shape == (1, 1)
    np.testing.assert_allclose(np.exp(got), expected, rtol=1e-9)


# Samples and means


@pytest.mark.slow
@EACH
def test_samples_are_of_the_distribution_that_is_scored(name):
    likelihood, shape = _builders(3)[name], COLOR if "color" in name else GRAY
    h = _h(likelihood, scale=0.7, seed=1)
    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
    x = np.asarray(jax.jit(jax.vmap(likelihood.sample, (0, None, None)))(keys, (), h))
    assert x.dtype == h.dtype
    every = _every_x(shape, 3)
    weight = 3 ** np.arange(int(np.prod(shape)))[::-1]
    row = np.round(x.reshape(NUM_DRAWS, -1) * 2).astype(int) @ weight
    np.testing.assert_array_equal(np.round(x * 2), x * 2)  # on the grid
    counts = np.bincount(row, minlength=len(every))
    p = np.exp(np.asarray(_log_probs(likelihood, h, every), np.float64))
    keep = p * NUM_DRAWS > 5
    observed = np.append(counts[keep], counts[~keep].sum())
    expected = np.append(p[keep], p[~keep].sum()) * NUM_DRAWS
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    statistic = ((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    assert statistic < stats.chi2.isf(1e-4, len(expected) - 1)


@pytest.mark.slow
@EACH
def test_the_mean_is_the_sum_over_all_images(name, x64):
    likelihood = _builders(4)[name]
    x = _every_x(COLOR if "color" in name else GRAY, 4)
    h = _h(likelihood, seed=2)
    p = np.exp(_log_probs(likelihood, h, x))
    expected = np.tensordot(p, x, axes=1)
    # The lattice of green's and blue's mean has some hundreds of points.
    tolerance = 5e-3 if "color" in name else 1e-9
    np.testing.assert_allclose(likelihood.mean((), h), expected, atol=tolerance)


# Transformations, holes and refusals


@pytest.mark.slow
@EACH
def test_the_gradient_is_that_of_finite_differences(name, x64):
    likelihood, shape = _builders(5)[name], COLOR if "color" in name else GRAY
    x = _every_x(shape, 5)[7]
    total = jax.jit(lambda h: likelihood.log_prob_terms((), h, x).sum())
    chex.assert_numerical_grads(
        total, (_h(likelihood, scale=0.8),), order=1, rtol=1e-6, atol=1e-6
    )


def test_holes_in_single_channels_are_refused():
    likelihood = discretized.logistic_mixture(COLOR, num_values=4, num_components=2)
    posterior = posteriors.diag_normal(2)
    model = vae.model(
        vae.decoder_model(
            networks.linear(2, likelihood.width), priors.standard_normal(2), likelihood
        ),
        vae.encoder_model(networks.linear(3, posterior.width), posterior),
    )
    terms = vae.masked(model).generative.log_likelihood_terms
    params = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ValueError, match="only one that factorizes over the entries"):
        jax.eval_shape(terms, params, jnp.zeros(COLOR), jnp.zeros(2))


@EACH
def test_its_number_is_a_log_likelihood_on_the_grid_and_none_beside_it(name):
    likelihood, shape = _builders(256)[name], COLOR if "color" in name else GRAY
    x = np.random.default_rng(0).integers(256, size=(5, *shape)) / np.float32(255)
    assert likelihood.quantity(x) == "log-likelihood"
    for wrong in (x + 0.3 / 255, x * 255, x - 1.0):
        with pytest.raises(ValueError, match="256 values needs x = k / 255"):
            likelihood.quantity(wrong)


def test_sixteen_bits_of_float32_lie_on_their_grid():
    likelihood = discretized.logistic((1 << 16,), num_values=1 << 16)
    k = np.arange(1 << 16, dtype=np.float32)
    for x in (k / np.float32(65535), np.nextafter(k / np.float32(65535), 0.5)):
        assert likelihood.quantity(x) == "log-likelihood"
    with pytest.raises(ValueError, match="65536 values needs"):
        likelihood.quantity((k[:-1] + np.float32(0.1)) / np.float32(65535))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: discretized.logistic(GRAY, num_values=1), "num_values"),
        (lambda: discretized.categorical(GRAY, num_values=0), "num_values"),
        (
            lambda: discretized.logistic_mixture(GRAY, num_values=4, num_components=0),
            "num_components",
        ),
        (
            lambda: discretized.logistic_mixture(
                (2, 2, 2), num_values=4, num_components=1
            ),
            r"\[H, W\] or \[H, W, 3\], got a shape of \(2, 2, 2\)",
        ),
    ],
)
def test_what_no_likelihood_can_be_made_of_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
