"""Moments, signal and bias of draws whose distribution is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.evaluation import gradient_noise
from vae_jax.types import Params

MEAN = np.array([0.0, 0.5, -2.0])
STD = np.array([1.0, 0.1, 3.0])


def draw(key):
    """A tree of two leaves, normal with MEAN and STD."""
    dtype = jnp.result_type(float)
    eps = jax.random.normal(key, (3,), dtype)
    values = jnp.asarray(MEAN, dtype) + jnp.asarray(STD, dtype) * eps
    return {"a": values[:1], "b": values[1:]}


@functools.cache
def compiled(num_draws, groups):
    """key -> moments of draws, of groups of them unless that is 0."""
    run = gradient_noise.moments(draw, num_draws=num_draws)
    if not groups:
        return jax.jit(run)
    return jax.jit(lambda key: jax.lax.map(run, jax.random.split(key, groups)))


def sampled(num_draws, *, seed=0, groups=0):
    return compiled(num_draws, groups)(jax.random.key(seed))


def exact(mean, variance, num_draws):
    return gradient_noise.Moments(np.array(mean), np.array(variance), num_draws)


@pytest.mark.slow
def test_moments_are_those_of_the_draws_that_were_not_kept(x64):
    got = sampled(50)
    draws = jax.vmap(draw)(jax.random.split(jax.random.key(0), 50))
    for leaf, mean, variance in zip(
        *map(jax.tree.leaves, (draws, got.mean, got.variance)), strict=True
    ):
        np.testing.assert_allclose(mean, leaf.mean(0), rtol=1e-9)
        np.testing.assert_allclose(variance, leaf.var(0, ddof=1), rtol=1e-9)
    assert got.num_draws == 50


@pytest.mark.slow
def test_draws_side_by_side_are_the_same_draws(x64):
    alone = sampled(12)
    for batch_size in (3, 12):
        run = gradient_noise.moments(draw, num_draws=12, batch_size=batch_size)
        got = jax.jit(run)(jax.random.key(0))
        for a, b in zip(*map(jax.tree.leaves, (got, alone)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)


def test_the_variance_of_draws_far_from_zero_does_not_cancel():
    run = gradient_noise.moments(
        lambda key, shift: shift + jax.random.normal(key), num_draws=2000
    )
    got = jax.jit(run)(jax.random.key(0), jnp.float32(1e4))
    # The sum of squares less the square of the sum would be off by ten.
    np.testing.assert_allclose(got.variance, 1.0, atol=5 * np.sqrt(2 / 2000))


def test_the_gradient_of_a_batch_has_the_variance_of_one_example_over_its_size():
    def objective(key, params, x):
        eps = jax.random.normal(key, x.shape)
        return params.generative @ (x + eps) + (2.0 * eps * params.recognition).sum()

    params = Params(jnp.zeros(4), jnp.zeros(()))
    x = jnp.ones((5, 4)) * jnp.arange(5.0)[:, None]
    run = gradient_noise.moments(gradient_noise.of_batch(objective), num_draws=4000)
    got = jax.jit(run)(jax.random.key(0), params, x)
    theta, phi = (
        gradient_noise.part(got, name) for name in ("generative", "recognition")
    )
    spread = 5 * np.sqrt(2 / 4000)
    np.testing.assert_allclose(theta.mean, 2.0, atol=5 * np.sqrt(0.2 / 4000))
    np.testing.assert_allclose(theta.variance, np.full(4, 0.2), rtol=spread)
    total = gradient_noise.total_variance(theta)
    np.testing.assert_allclose(total, 4 * 0.2, rtol=spread)
    np.testing.assert_allclose(phi.variance, 4.0 * 4 / 5, rtol=spread)
    assert total + gradient_noise.total_variance(phi) == pytest.approx(
        gradient_noise.total_variance(got)
    )


@pytest.mark.slow
def test_groups_that_are_pooled_are_one_group(x64):
    groups = sampled(6, groups=5)
    keys = jax.random.split(jax.random.key(0), 5)
    every = jax.vmap(lambda key: jax.vmap(draw)(jax.random.split(key, 6)))(keys)
    got = gradient_noise.pool(groups)
    for leaf, mean, variance in zip(
        *map(jax.tree.leaves, (every, got.mean, got.variance)), strict=True
    ):
        leaf = leaf.reshape(30, -1)
        np.testing.assert_allclose(mean, leaf.mean(0), rtol=1e-9)
        np.testing.assert_allclose(variance, leaf.var(0, ddof=1), rtol=1e-9)
    assert got.num_draws == 30


def test_groups_of_unlike_size_are_pooled_by_their_size():
    draws = [np.array([1.0, 2.0, 6.0]), np.array([4.0, -3.0])]
    groups = gradient_noise.Moments(
        np.array([d.mean() for d in draws]),
        np.array([d.var(ddof=1) for d in draws]),
        np.array([3, 2]),
    )
    got, every = gradient_noise.pool(groups), np.concatenate(draws)
    np.testing.assert_allclose(got.mean, every.mean(), rtol=1e-12)
    np.testing.assert_allclose(got.variance, every.var(ddof=1), rtol=1e-12)


def test_the_signal_to_noise_ratios_are_the_formulas():
    got = exact([3.0, 4.0], [4.0, 9.0], 1e12)
    np.testing.assert_allclose(gradient_noise.snr(got), np.sqrt(25 / 13))
    expected = 0.5 * np.log((9 / 4 + 16 / 9) / 2)
    np.testing.assert_allclose(gradient_noise.log_snr(got), expected)


def test_no_ratio_has_a_floor_where_there_is_no_signal():
    # 500 draws of 4,000 entries with a mean of 0.01 standard deviations: uncorrected,
    # both would read 0.045 or more.
    draws = np.random.default_rng(0).normal(size=(500, 4000)) + 0.01
    got = exact(draws.mean(0), draws.var(0, ddof=1), 500)
    np.testing.assert_allclose(np.exp(gradient_noise.log_snr(got)), 0.01, rtol=0.3)
    np.testing.assert_allclose(gradient_noise.snr(got), 0.01, rtol=0.3)
    zero = exact(np.zeros(3), np.ones(3), 10)
    assert gradient_noise.snr(zero) == 0.0
    assert np.isnan(gradient_noise.log_snr(zero))


def test_an_entry_that_does_not_vary_has_no_part_in_the_mean_of_ratios():
    varying = gradient_noise.log_snr(exact([3.0, 4.0], [4.0, 9.0], 100))
    for still in (0.0, 5.0):
        got = exact([3.0, still, 4.0], [4.0, 0.0, 9.0], 100)
        assert gradient_noise.log_snr(got) == varying
    assert np.isnan(gradient_noise.log_snr(exact(np.zeros(2), np.zeros(2), 9)))


def test_ratios_to_no_variance_are_infinite_or_not_a_number():
    none, signal = exact([0.0], [0.0], 9), exact([2.0], [0.0], 9)
    noisy = exact([0.0], [4.0], 9)
    assert np.isnan(gradient_noise.snr(none))
    assert gradient_noise.snr(signal) == np.inf
    got = gradient_noise.noise(noisy, relative_to=none, expected=None)
    assert got.relative_variance == np.inf
    got = gradient_noise.noise(signal, relative_to=none, expected=None)
    assert np.isnan(got.relative_variance)


def test_the_bias_is_the_distance_in_units_of_what_is_expected():
    got = exact([3.0, 4.0], [1.0, 3.0], 1e12)
    terms = [(0.5, exact([4.0, 0.0], [1.0, 1.0], 1e12))]
    terms += [(2.0, exact([0.0, 2.0], [1.0, 1.0], 1e12))]
    results = gradient_noise.bias(got, terms)  # [3, 4] less [2, 4]
    np.testing.assert_allclose(results.value, 1.0 / np.sqrt(20.0))
    few = [(0.5, exact([4.0, 0.0], [1.0, 1.0], 4)), terms[1]]
    noise = gradient_noise.bias(got, few).noise
    np.testing.assert_allclose(noise, np.sqrt(0.25 * 2 / 4) / np.sqrt(20.0))


def test_the_bias_relative_to_nothing_is_infinite_or_not_a_number():
    nothing = exact([0.0, 0.0], [0.0, 0.0], 10)
    got = gradient_noise.bias(exact([3.0, 4.0], [1.0, 1.0], 1e12), [(1.0, nothing)])
    assert got == (np.inf, np.inf)
    assert np.isnan(gradient_noise.bias(nothing, [(1.0, nothing)])).all()


def test_two_samples_of_one_distribution_have_no_bias_beyond_their_noise():
    results = [
        gradient_noise.bias(sampled(100, seed=i), [(1.0, sampled(100, seed=100 + i))])
        for i in range(20)
    ]
    assert np.mean([b.value == 0.0 for b in results]) > 0.3  # half, were it symmetric
    squares = [b.value**2 for b in results]
    assert np.mean(squares) < 2.0 * results[0].noise ** 2


def test_the_jackknife_error_of_a_mean_is_its_standard_error():
    means = np.array([1.0, 4.0, -2.0, 0.5])
    groups = gradient_noise.Moments(means, np.ones(4), np.full(4, 3))
    got = gradient_noise.jackknife(lambda m: m[0].mean.item(), [groups])
    np.testing.assert_allclose(got.value, means.mean())
    np.testing.assert_allclose(got.standard_error, means.std(ddof=1) / 2.0)


@pytest.mark.slow
def test_the_jackknife_error_of_a_known_log_snr_is_its_spread():
    estimates = [
        gradient_noise.jackknife(
            lambda m: gradient_noise.log_snr(m[0]), [sampled(100, seed=i, groups=20)]
        )
        for i in range(40)
    ]
    pooled = gradient_noise.pool(sampled(100, seed=0, groups=20))
    assert estimates[0].value == gradient_noise.log_snr(pooled)
    values, errors = np.array(estimates).T
    true = 0.5 * np.log(np.mean((MEAN / STD) ** 2))
    assert abs(values.mean() - true) < 5 * values.std(ddof=1) / np.sqrt(40)
    # Forty values know their spread to a ninth of it.
    np.testing.assert_allclose(errors.mean(), values.std(ddof=1), rtol=0.4)


def test_several_moments_are_left_out_of_together():
    # The slope of three means on 0, 1, 2 is half the last less the first.
    means = np.random.default_rng(0).normal(size=(3, 6))
    groups = [gradient_noise.Moments(m, np.ones(6), np.full(6, 2)) for m in means]

    def slope(pooled):
        return np.polyfit([0.0, 1.0, 2.0], [m.mean for m in pooled], 1)[0]

    got = gradient_noise.jackknife(slope, groups)
    each = (means[2] - means[0]) / 2
    np.testing.assert_allclose(got.value, each.mean(), rtol=1e-9)
    error = each.std(ddof=1) / np.sqrt(6)
    np.testing.assert_allclose(got.standard_error, error, rtol=1e-9)


def test_too_few_draws_or_groups_are_refused():
    for num_draws, batch_size in ((1, 1), (10, 4)):
        with pytest.raises(ValueError, match=rf"={batch_size}, got {num_draws}"):
            gradient_noise.moments(draw, num_draws=num_draws, batch_size=batch_size)
    one = gradient_noise.Moments(np.ones(1), np.ones(1), np.ones(1))
    two = gradient_noise.Moments(np.ones(2), np.ones(2), np.ones(2))
    for groups in ([one], [one, two]):
        with pytest.raises(ValueError, match=r"same G >= 2 groups, got \{1"):
            gradient_noise.jackknife(lambda m: 0.0, groups)


def test_the_time_of_a_draw_is_the_median_round_without_compilation(monkeypatch):
    clock = iter([0.0, 50.0, 60.0, 69.0, 70.0, 72.0, 80.0, 84.0])  # 50, then 9, 2, 4
    monkeypatch.setattr(gradient_noise.time, "perf_counter", lambda: next(clock))
    measure = gradient_noise.seconds_per_draw(draw, num_draws=8, num_rounds=3)
    assert measure(jax.random.key(0)) == 4.0 / 8.0
    with pytest.raises(ValueError, match="num_draws must be positive, got 0"):
        gradient_noise.seconds_per_draw(draw, num_draws=0)


def test_the_noise_is_the_figures_of_the_moments_beside_another_variance():
    moments, other = sampled(400), sampled(400, seed=1)
    got = gradient_noise.noise(moments, relative_to=other, expected=[(1.0, other)])
    variance = gradient_noise.total_variance(moments)
    ratio = variance / gradient_noise.total_variance(other)
    assert (got.variance, got.relative_variance) == (variance, ratio)
    assert got.snr == gradient_noise.snr(moments)
    assert got[3:] == gradient_noise.bias(moments, [(1.0, other)])
    unknown = gradient_noise.noise(moments, relative_to=other, expected=None)
    assert (unknown.bias, unknown.noise_of_bias) == (None, None)
