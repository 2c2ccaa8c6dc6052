"""Counts: laws of SciPy in double precision, limits and gradients in single."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from tests import testing
from vae_jax import counts, networks, posteriors, priors, tables, vae
from vae_jax.estimators import sgvb
from vae_jax.training import gradient, loop
from vae_jax.types import per_example

POISSON, NEGATIVE = counts.poisson_terms, counts.negative_binomial_terms
LOGIT = 0.4  # of a certain zero
KINDS: dict[str, Any] = {  # a likelihood of one entry, and the SciPy law of the same h
    "poisson": (counts.poisson((1,), log_size=0.4), [0.7], stats.poisson(np.exp(1.1))),
    "negative_binomial": (
        counts.negative_binomial((1,), dispersion="entry", log_size=-0.5),
        [1.6, 0.6],
        stats.nbinom(np.exp(0.6), 1 / (1 + np.exp(0.5))),
    ),
    "zero_inflated": (
        counts.zero_inflated_negative_binomial((1,), dispersion="entry", log_size=0.1),
        [1.0, LOGIT, 0.6],
        stats.nbinom(np.exp(0.6), 1 / (1 + np.exp(0.5))),
    ),
    "beta_binomial": (
        counts.beta_binomial((1,), num_trials=12),
        [0.3, 0.7],
        stats.betabinom(
            12, np.exp(0.7) * special.expit(0.3), np.exp(0.7) * special.expit(-0.3)
        ),
    ),
}
EACH = pytest.mark.parametrize("kind", KINDS)


def _pmf(kind, x):
    """SciPy's, with the share of certain zeros where there are any."""
    pmf = KINDS[kind][2].pmf(x)
    if kind != "zero_inflated":
        return pmf
    return special.expit(LOGIT) * (x == 0) + special.expit(-LOGIT) * pmf


@pytest.mark.slow
@EACH
def test_a_pmf_is_scipys_sums_to_one_and_has_its_mean(x64, kind):
    likelihood, h, _ = KINDS[kind]
    h, x = jnp.asarray(h), np.arange(13.0 if kind == "beta_binomial" else 400.0)
    terms = jax.vmap(lambda x: likelihood.log_prob_terms((), h, x[None]))
    pmf = np.exp(terms(jnp.asarray(x))[:, 0])
    np.testing.assert_allclose(pmf, _pmf(kind, x), rtol=1e-9)
    np.testing.assert_allclose(pmf.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(likelihood.mean((), h)[0], pmf @ x, rtol=1e-9)


@EACH
@pytest.mark.slow
def test_samples_have_their_pmf(kind):
    likelihood, h, _ = KINDS[kind]
    keys = jax.random.split(jax.random.key(0), 100_000)
    sample = jax.jit(jax.vmap(lambda key: likelihood.sample(key, (), jnp.asarray(h))))
    x = np.asarray(sample(keys))[:, 0]
    assert x.dtype == np.float32
    assert likelihood.quantity(x) == "log-likelihood"
    cells = np.arange(12.0)
    seen = np.array([*((x == k).sum() for k in cells), (x >= 12).sum()])
    p = _pmf(kind, cells)
    expected = len(x) * np.append(p, 1 - p.sum())
    assert stats.chisquare(seen, expected).pvalue > 1e-3


MEANS, DISPERSIONS = np.geomspace(1e-6, 1e6, 13), np.geomspace(1e-3, 1e8, 12)
COUNTS = np.array([0.0, 1.0, 2.0, 9.0, 130.0, 20_000.0, 1e6])


def _exact_negative_binomial(mean, dispersion, x):
    """As a sum over k < x, without gamma functions of the dispersion."""
    k = np.arange(x)
    urn = np.log1p(k / dispersion).sum() + x * np.log(mean) - special.gammaln(x + 1)
    return urn - (x + dispersion) * np.log1p(mean / dispersion)


@functools.cache
def _everywhere():
    """All means, dispersions and counts, and there the exact log-probability."""
    grid = np.stack(np.meshgrid(MEANS, DISPERSIONS, COUNTS, indexing="ij"), -1)
    grid = grid.reshape(-1, 3)
    return grid, np.array([_exact_negative_binomial(*row) for row in grid])


@pytest.mark.slow
def test_a_negative_binomial_is_exact_over_its_whole_range(x64):
    grid, exact = _everywhere()
    mean, dispersion, x = grid.T
    got = NEGATIVE(jnp.log(mean), jnp.log(dispersion), jnp.asarray(x))
    np.testing.assert_allclose(got, exact, rtol=2e-8, atol=1e-9)


@pytest.mark.slow
def test_in_single_precision_a_count_costs_its_nats_to_a_few_digits():
    grid, exact = _everywhere()
    log_mean, log_r = (np.log(n).astype(np.float32) for n in grid.T[:2])
    x = grid.T[2].astype(np.float32)
    got = NEGATIVE(*map(jnp.asarray, (log_mean, log_r, x)))
    # What the logarithms themselves are rounded by stays: 1e-6 times the slope in them.
    slope = np.abs(x - grid.T[0]) * grid.T[1] / (grid.T[0] + grid.T[1])
    assert np.all(np.abs(got - exact) <= 3e-6 * (1 + np.abs(exact) + slope))


def test_in_single_precision_counts_of_millions_lose_no_nats_to_two_logarithms():
    rng = np.random.default_rng(0)
    log_mean = np.append(17.330709, rng.uniform(14, 17, 400)).astype(np.float32)
    log_r = np.append(19.0, rng.uniform(14, 17, 400)).astype(np.float32)
    mean, r = np.exp(np.float64(log_mean)), np.exp(np.float64(log_r))
    x = np.float32(np.append(24210464, rng.uniform(0.4, 2.5, 400).round(1) * 1e7))
    x64 = np.float64(x)
    log_mean, log_r, x = map(jnp.asarray, (log_mean, log_r, x))
    for got, exact, slope in (
        (POISSON(log_mean, x), stats.poisson.logpmf(x64, mean), x64 - mean),
        (
            NEGATIVE(log_mean, log_r, x),
            stats.nbinom.logpmf(x64, r, r / (r + mean)),
            (x64 - mean) * r / (r + mean),
        ),
    ):
        assert np.all(np.abs(got - exact) <= 1e-6 * (1 + np.abs(exact) + np.abs(slope)))


@pytest.mark.slow
def test_gradients_are_finite_and_right_over_the_whole_range():
    grid, _ = _everywhere()
    log_mean, log_r = np.log(grid.T[0]), np.log(grid.T[1])
    each = jax.jit(jax.vmap(jax.grad(NEGATIVE, (0, 1))))

    def slopes(dtype):
        args = (jnp.asarray(n, dtype) for n in (log_mean, log_r, grid.T[2]))
        return [np.asarray(slope, np.float64) for slope in each(*args)]

    single = slopes(np.float32)
    with jax.enable_x64(True):
        in_mean, in_dispersion = slopes(np.float64)
        exact = (grid.T[2] - grid.T[0]) * grid.T[1] / (grid.T[0] + grid.T[1])
    np.testing.assert_allclose(in_mean, exact, rtol=1e-9, atol=1e-9)
    # The rounding of its logarithm moves the mean itself.
    allowed = 1e-5 + 3e-7 * grid.T[0], 2e-3
    for got, want, most in zip(single, (in_mean, in_dispersion), allowed, strict=True):
        assert np.all(np.abs(got - want) <= most * np.maximum(1.0, np.abs(want)))


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.01, 3.0, 50.0, 40_000.0])
def test_a_great_dispersion_is_a_poisson_in_single_precision(mean):
    x = np.unique(np.round(mean + np.sqrt(mean) * np.linspace(-4, 4, 9)).clip(0))
    log_mean, x32 = jnp.float32(np.log(mean)), jnp.asarray(x, jnp.float32)
    poisson = POISSON(log_mean, x32)
    # The mean that float32 has, so that its rounding is left out.
    exact = stats.poisson.logpmf(x, np.exp(np.float64(log_mean)))
    np.testing.assert_allclose(poisson, exact, atol=1e-6, rtol=2e-5)
    got = NEGATIVE(log_mean, jnp.float32(np.log(1e8)), x32)
    # What is left of them at this dispersion is no error.
    between = ((x - mean) ** 2 - x) / 2e8
    np.testing.assert_allclose(got - between, poisson, atol=1e-5, rtol=2e-6)


@pytest.mark.slow
def test_a_negative_binomial_is_a_gamma_mixture_of_poissons(x64):
    mean, r, x = 2.3, 0.8, np.arange(6.0)
    # Gauss-Laguerre with the weight rate^(r - 1) exp(-rate).
    nodes, weights = special.roots_genlaguerre(120, r - 1.0)
    rates = mean / r * nodes
    pmf = np.exp(POISSON(jnp.log(rates)[:, None], jnp.asarray(x)[None]))
    mixed = weights @ pmf / special.gamma(r)
    got = np.exp(NEGATIVE(jnp.log(mean), jnp.log(r), jnp.asarray(x)))
    np.testing.assert_allclose(got, mixed, rtol=1e-9)


@pytest.mark.slow
def test_a_beta_binomial_of_great_concentration_is_a_binomial():
    terms = functools.partial(counts.beta_binomial_terms, num_trials=20)
    x = jnp.arange(21.0)
    for logit in (-3.0, 0.7):
        got = terms(jnp.full(21, logit), jnp.full(21, 18.0), x)
        exact = stats.binom.logpmf(np.arange(21), 20, special.expit(logit))
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)
    assert terms(jnp.float32(0.7), jnp.float32(18.0), jnp.float32(21.0)) == -np.inf
    slopes = jax.vmap(jax.grad(terms, (0, 1)), (None, None, 0))
    for ends in ((-90.0, -10.0), (90.0, 20.0)):
        assert np.all(np.isfinite(slopes(*map(jnp.float32, ends), x)))


@pytest.mark.parametrize("num_trials", [10, 1000, 10_000])
def test_a_beta_binomial_of_many_draws_keeps_its_digits(num_trials):
    for logit, log_s in itertools.product((-3.0, 0.0, 1.0), (0.0, 3.0, 8.0)):
        p, s = special.expit(logit), np.exp(log_s)
        exact: Any = stats.betabinom(num_trials, s * p, s * (1.0 - p))
        x = np.unique(np.round([0, num_trials * p, *exact.interval(0.9), num_trials]))
        terms = counts.beta_binomial_terms(
            jnp.full(x.shape, logit),
            jnp.full(x.shape, log_s),
            jnp.asarray(x, jnp.float32),
            num_trials=num_trials,
        )
        seen = (expected := exact.logpmf(x)) > -50.0
        np.testing.assert_allclose(
            terms[seen], expected[seen], rtol=0.0, atol=4e-7 * num_trials
        )


def test_the_rate_of_zeros_has_the_slope_of_its_log_probability(x64):
    def log_p(logit, x):
        terms = NEGATIVE(jnp.asarray(1.1), jnp.asarray(0.6), x)
        return counts.zero_inflated_terms(logit, terms, x)

    none = KINDS["zero_inflated"][2].pmf(0)
    p = special.expit(LOGIT)
    slopes = [jax.grad(log_p)(LOGIT, x) for x in (0.0, 2.0)]
    exact = p * (1 - p) * (1 - none) / (p + (1 - p) * none)
    np.testing.assert_allclose(slopes, [exact, -p], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", counts.DISPERSIONS)
def test_a_dispersion_is_of_all_of_each_or_of_h(kind):
    likelihood = counts.negative_binomial((2, 3), dispersion=kind)
    params = likelihood.init(jax.random.key(0))
    shapes = {"shared": [()], "column": [(2, 3)], "entry": []}
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == shapes[kind]
    h = jnp.linspace(-1.0, 1.0, likelihood.width)
    assert likelihood.width == 6 * likelihood.planes == 6 * (1 + (kind == "entry"))
    x = jnp.arange(6.0).reshape(2, 3)
    log_r = h[6:].reshape(2, 3) if kind == "entry" else jnp.zeros((2, 3))
    expected = NEGATIVE(h[:6].reshape(2, 3), log_r, x)
    got = likelihood.log_prob_terms(params, h, x)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.slow
def test_moments_of_samples_are_those_of_mean_and_dispersion():
    likelihood = counts.negative_binomial((1,), dispersion="entry")
    keys, h = jax.random.split(jax.random.key(1), 20_000), jnp.log(jnp.array([40.0, 5]))
    sample = jax.jit(jax.vmap(lambda key: likelihood.sample(key, (), h)))
    x = np.asarray(sample(keys), np.float64)
    testing.assert_mean_equals(x, [40.0])
    testing.assert_mean_equals((x - 40.0) ** 2, [40.0 + 40.0**2 / 5])


def test_what_is_no_count_is_refused():
    likelihood = counts.poisson((2,))
    assert likelihood.quantity(np.array([[0.0, 3.0], [np.nan, 1.0]])) == (
        "log-likelihood"
    )
    for bad in (-1.0, 0.5, np.inf):
        with pytest.raises(ValueError, match=f"Poisson .* counts 0, 1, 2, .*{bad:g}"):
            likelihood.quantity(np.array([[0.0, bad]]))
    with pytest.raises(
        ValueError, match="12 trials needs x of at most as many, got 13"
    ):
        counts.beta_binomial((1,), num_trials=12).quantity(np.array([[13.0]]))
    with pytest.raises(ValueError, match=r"dispersion must be one of shared.*'gene'"):
        counts.negative_binomial((2,), dispersion="gene")
    with pytest.raises(ValueError, match="num_trials must be positive, got 0"):
        counts.beta_binomial((2,), num_trials=0)


def _log_p_of_factors(x, eta, r):
    """Nats of rows [N, D] whose log means are eta [G, D] at the nodes of `_nodes`."""
    _, log_weight = _nodes()
    log_total = np.log(r + np.exp(eta))
    given_z = x @ (eta - log_total).T + (r * (np.log(r) - log_total)).sum(1)
    ways = special.gammaln(x + r) - special.gammaln(r) - special.gammaln(x + 1.0)
    return special.logsumexp(given_z + log_weight, axis=1) + ways.sum(1)


@functools.cache
def _nodes():
    """Two standard normal factors: a fine grid, and the logarithms of its weights."""
    axis = np.linspace(-5.0, 5.0, 101)
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    log_weight = -0.5 * (z**2).sum(1)
    return z, log_weight - special.logsumexp(log_weight)


@pytest.mark.slow
@pytest.mark.uses_optax
def test_a_model_trained_on_counts_is_within_a_twentieth_of_a_nat_of_the_truth():
    """10,000 rows of 50 overdispersed columns; both log p(x) are by quadrature."""
    rng, num_train = np.random.default_rng(0), 10_000
    slopes, r = 0.5 * rng.normal(size=(2, 50)), np.exp(rng.uniform(0.0, 2.0, 50))
    base, z = np.log(rng.uniform(1.0, 5.0, 50)), rng.normal(size=(12_000, 2))
    mean = np.exp(base + z @ slopes)
    x = rng.poisson(mean * rng.gamma(r, 1.0 / r, size=mean.shape)).astype(np.float32)

    decoder, q = networks.linear(2, 50), posteriors.diag_normal(2)
    observed = counts.negative_binomial((50,), dispersion="column")
    model = vae.model(
        vae.decoder_model(decoder, priors.standard_normal(2), observed),
        vae.encoder_model(networks.mlp(50, (64,), q.width), q),
    )
    model = vae.with_reading(model, tables.log1p_reading)
    objective = per_example(sgvb.sgvb_b(model, num_samples=1))
    algorithm = gradient.ascent(objective, gradient.adam(3e-3))
    state = loop.start(
        jax.random.key(1), algorithm, jax.jit(model.init)(jax.random.key(0))
    )
    epochs = [rng.permutation(num_train).reshape(-1, 100) for _ in range(60)]
    run = loop.scan(algorithm, loop.take_rows)
    state, _ = run(
        state, jnp.asarray(x[:num_train]), jnp.asarray(np.concatenate(epochs))
    )

    theta, nodes = state.inner.params.generative, _nodes()[0]
    decode = jax.vmap(decoder.apply, in_axes=(None, 0))
    eta = decode(theta["decoder"], jnp.asarray(nodes, jnp.float32))
    learned_r = np.exp(np.asarray(theta["likelihood"]["log_dispersion"], float))
    held_out = x[num_train:].astype(float)
    learned = _log_p_of_factors(held_out, np.asarray(eta, float), learned_r)
    truth = _log_p_of_factors(held_out, base + nodes @ slopes, r)
    assert -0.01 < (truth - learned).mean() < 0.05


def test_a_sample_of_any_rate_is_a_count_that_an_int32_holds():
    observed = counts.poisson((3,))
    x = observed.sample(jax.random.key(0), (), jnp.array([21.0, 25.0, 1e3]))
    np.testing.assert_allclose(x, 1e9, rtol=1e-3)
