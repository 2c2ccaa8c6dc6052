"""Frequencies are what a coder needs of them, and near to the density."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from vae_jax.coding import rans, tables


def _stack(lanes, spare=400):
    rng = np.random.default_rng(7)
    words = rng.integers(0, 2**32, 2 * lanes + spare, dtype=np.uint32)
    return rans.start(words, num_lanes=lanes)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_symbols=st.integers(1, 300),
    spare_bits=st.integers(0, 10),
    spread=st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
)
def test_frequencies_are_positive_and_sum_to_the_precision(
    seed, num_symbols, spare_bits, spread
):
    rng = np.random.default_rng(seed)
    precision = int(np.ceil(np.log2(num_symbols))) + spare_bits
    shares = special.softmax(spread * rng.normal(size=(4, num_symbols)), axis=-1)
    cdf = np.concatenate([np.zeros((4, 1)), shares.cumsum(-1).clip(0, 1)], axis=-1)
    cdf[:, -1] = 1.0
    at = tables.edges(cdf, num_symbols, precision=precision)
    frequencies = np.diff(at)
    assert (frequencies >= 1).all()
    assert (at[:, 0] == 0).all()
    assert (at[:, -1] == 2**precision).all()
    room = 2**precision - num_symbols
    assert (np.abs(frequencies - 1 - shares * room) < 1.0 + 1e-6 * room).all()


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 5), st.integers(0, 6), st.integers(1, 9)),
)
def test_a_categorical_gives_its_symbols_back(seed, shape):
    rng = np.random.default_rng(seed)
    codec = tables.categorical(20.0 * rng.normal(size=shape), precision=14)
    symbols = rng.integers(0, shape[2], shape[:2])
    before = _stack(shape[0])
    after, popped = codec.pop(codec.push(before, symbols))
    np.testing.assert_array_equal(popped, symbols)
    np.testing.assert_array_equal(rans.to_words(after), rans.to_words(before))


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_bits=st.integers(1, 12),
    log_std=st.floats(-12.0, 3.0),
    scale=st.sampled_from([0.0, 1.0, 40.0]),
)
def test_a_normal_gives_its_bins_back_also_where_they_have_no_mass(
    seed, num_bits, log_std, scale
):
    rng = np.random.default_rng(seed)
    mean, std = scale * rng.normal(size=(3, 4)), np.full((3, 4), np.exp(log_std))
    codec = tables.normal(mean, std, num_bins=2**num_bits, precision=20)
    symbols = rng.integers(0, 2**num_bits, (3, 4))
    before = _stack(3)
    after, popped = codec.pop(codec.push(before, symbols))
    np.testing.assert_array_equal(popped, symbols)
    np.testing.assert_array_equal(rans.to_words(after), rans.to_words(before))
    assert (codec.num_bits(symbols) >= -1e-9).all()


def test_symbols_popped_of_random_bits_have_the_density_pushed():
    lanes, entries = 500, 40
    mean, std = np.full((lanes, entries), 0.7), np.full((lanes, entries), 0.3)
    codec = tables.normal(mean, std, num_bins=8)
    _, symbols = codec.pop(_stack(lanes, spare=20_000))
    at = special.ndtri(np.arange(9) / 8)
    mass = np.diff(stats.norm(0.7, 0.3).cdf(at))
    seen = np.bincount(symbols.ravel(), minlength=8)
    likely = mass * symbols.size > 5.0
    assert seen[~likely].sum() < 20
    statistic = ((seen - mass * symbols.size) ** 2 / (mass * symbols.size))[likely]
    assert statistic.sum() < stats.chi2(likely.sum() - 1).isf(1e-6)


def test_the_bits_of_a_normal_are_those_of_scipys():
    mean, std = np.array([[0.3, -1.0]]), np.array([[0.5, 2.0]])
    codec = tables.normal(mean, std, num_bins=16)
    at = special.ndtri(np.arange(17) / 16)
    for symbol in range(16):
        exact = stats.norm(mean, std)
        mass = exact.cdf(at[symbol + 1]) - exact.cdf(at[symbol])
        bits = codec.num_bits(np.full((1, 2), symbol))
        np.testing.assert_allclose(bits, [-np.log2(mass).sum()], rtol=1e-6)


def test_the_bits_of_a_far_bin_are_finite():
    codec = tables.normal(np.array([[60.0]]), np.array([[0.1]]), num_bins=16)
    assert np.isfinite(codec.num_bits(np.array([[0]])))


def test_centers_are_the_medians_of_bins_of_equal_mass():
    middle = stats.norm.cdf(tables.centers(8))
    np.testing.assert_allclose(middle, np.arange(1, 16, 2) / 16, rtol=1e-12)


@pytest.mark.parametrize(
    "codec",
    [
        tables.categorical(2.0 * np.random.default_rng(3).normal(size=(20, 50, 5))),
        tables.normal(np.full((20, 50), 0.4), np.full((20, 50), 0.8), num_bins=16),
        tables.uniform(20, 50, num_bits=4),
    ],
    ids=["categorical", "normal", "uniform"],
)
def test_symbols_of_the_density_cost_the_bits_that_it_says(codec):
    before = _stack(20, spare=1000)
    _, symbols = codec.pop(before)
    paid = rans.num_bits(codec.push(before, symbols)) - rans.num_bits(before)
    assert abs(paid - codec.num_bits(symbols).sum()) < 0.05
    assert 500.0 < paid < 4001.0


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: tables.edges(np.zeros(9), 8, precision=2), "no place in 2"),
        (lambda: tables.edges(np.zeros(9), 8, precision=29), "precision must lie"),
        (lambda: tables.uniform(1, 1, num_bits=29), "precision must lie"),
        (
            lambda: tables.categorical(np.full((1, 1, 2), -np.inf)),
            "sum to no probability",
        ),
        (
            lambda: tables.normal(np.zeros((1, 1)), np.zeros((1, 1)), num_bins=4),
            "no std",
        ),
        (
            lambda: tables.normal(np.full((1, 1), np.nan), np.ones((1, 1)), num_bins=4),
            "not finite",
        ),
    ],
)
def test_what_has_no_frequencies_is_refused(build, said):
    with pytest.raises(ValueError, match=said):
        build()
