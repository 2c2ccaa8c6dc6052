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
    after, popped, _ = codec.pop(codec.push(before, symbols)[0])
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
    after, popped, _ = codec.pop(codec.push(before, symbols)[0])
    np.testing.assert_array_equal(popped, symbols)
    np.testing.assert_array_equal(rans.to_words(after), rans.to_words(before))
    assert (codec.push(before, symbols)[1] >= -1e-9).all()


def test_symbols_popped_of_random_bits_have_the_density_pushed():
    lanes, entries = 500, 40
    mean, std = np.full((lanes, entries), 0.7), np.full((lanes, entries), 0.3)
    codec = tables.normal(mean, std, num_bins=8)
    _, symbols, _ = codec.pop(_stack(lanes, spare=20_000))
    at = special.ndtri(np.arange(9) / 8)
    mass = np.diff(stats.norm(0.7, 0.3).cdf(at))
    seen = np.bincount(symbols.ravel(), minlength=8)
    likely = mass * symbols.size > 5.0
    assert seen[~likely].sum() < 20
    statistic = ((seen - mass * symbols.size) ** 2 / (mass * symbols.size))[likely]
    assert statistic.sum() < stats.chi2(likely.sum() - 1).isf(1e-6)


@pytest.mark.parametrize("std", [1e3, 1e9, 1e13])
def test_a_bin_far_narrower_than_the_normal_costs_what_its_density_says(std):
    mean, symbol, at = 3.0 * std, 5, stats.norm.ppf(np.array([5, 6]) / 16)
    codec = tables.normal(np.array([[mean]]), np.array([[std]]), num_bins=16)
    bits = codec.push(_stack(1), np.full((1, 1), symbol))[1]
    log_density = stats.norm.logpdf(0.5 * at.sum(), mean, std)
    exact = -(np.log(at[1] - at[0]) + log_density) / np.log(2.0)
    np.testing.assert_allclose(bits, exact, rtol=1e-3 if std == 1e3 else 1e-4)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_a_narrow_bin_has_the_density_at_its_middle(side):
    """To the digits at which its ends' densities are others."""
    std, at = 1e6, special.ndtri(np.array([5, 6]) / 16)
    codec = tables.normal(
        np.array([[3.0 * side * std]]), np.array([[std]]), num_bins=16
    )
    bits = codec.push(_stack(1), np.full((1, 1), 5))[1]
    z = at / std - 3.0 * side
    log_mass = np.log((at[1] - at[0]) / std) + stats.norm.logpdf(z.mean())
    np.testing.assert_allclose(bits, -log_mass / np.log(2.0), rtol=0.0, atol=1e-8)
    ends = stats.norm.logpdf(z)
    assert abs(ends[1] - ends[0]) > 1e-7


def test_the_bits_of_a_normal_are_those_of_scipys():
    mean, std = np.array([[0.3, -1.0]]), np.array([[0.5, 2.0]])
    codec = tables.normal(mean, std, num_bins=16)
    at = special.ndtri(np.arange(17) / 16)
    for symbol in range(16):
        exact = stats.norm(mean, std)
        mass = exact.cdf(at[symbol + 1]) - exact.cdf(at[symbol])
        bits = codec.push(_stack(1), np.full((1, 2), symbol))[1]
        np.testing.assert_allclose(bits, [-np.log2(mass).sum()], rtol=1e-6)


def _bits_of_all(codec, shape):
    """Those of every vector of symbols, one a lane."""
    symbols = np.array(list(np.ndindex(*shape)))
    return symbols, codec(len(symbols)).push(_stack(len(symbols)), symbols)[1]


def test_a_full_normal_is_each_entry_given_those_before_it():
    mean, factor = np.array([0.3, -0.4]), np.array([[0.7, 0.4], [-0.2, 0.5]])

    def codec(lanes):
        repeated = np.tile(mean, (lanes, 1)), np.tile(factor, (lanes, 1, 1))
        return tables.full_normal(*repeated, num_bins=16)

    symbols, bits = _bits_of_all(codec, (16, 16))
    first = np.sqrt((factor[0] ** 2).sum())
    ratio = factor[0] @ factor[1] / first**2
    std = abs(np.linalg.det(factor)) / first
    gap = tables.centers(16)[symbols[:, 0]] - mean[0]
    at = special.ndtri(np.arange(17) / 16)
    mass = np.ones(len(symbols))
    for i, normal in enumerate(
        (stats.norm(mean[0], first), stats.norm(mean[1] + ratio * gap, std))
    ):
        mass *= normal.cdf(at[symbols[:, i] + 1]) - normal.cdf(at[symbols[:, i]])
    np.testing.assert_allclose(2.0**-bits, mass, rtol=1e-6)


def test_a_mixture_is_that_of_its_components_bins():
    weights, mean = np.array([0.2, 0.5, 0.3]), np.array([[-2.0, 1], [0, 0.1], [4, -9]])
    std = np.array([[0.1, 0.5], [1.0, 2.0], [0.02, 0.5]])

    def codec(lanes):
        return tables.normal_mixture(weights, mean, std, num_lanes=lanes, num_bins=8)

    symbols, bits = _bits_of_all(codec, (8, 8))
    at = special.ndtri(np.arange(9) / 8)
    each = np.diff(stats.norm(mean, std).cdf(at[:, None, None]), axis=0)
    mass = (weights * each[symbols[:, 0], :, 0] * each[symbols[:, 1], :, 1]).sum(axis=1)
    np.testing.assert_allclose(mass.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(2.0**-bits, mass, rtol=1e-6, atol=1e-12)


def _mixture(weights, mean, std):
    return lambda lanes: tables.normal_mixture(
        weights, mean, std, num_lanes=lanes, num_bins=16
    )


def test_a_mixture_of_one_is_its_normal_in_both_tails():
    mean, std = np.array([[0.3, -1.2]]), np.array([[0.05, 0.04]])
    symbols, bits = _bits_of_all(_mixture(np.ones(1), mean, std), (16, 16))
    repeated = [np.tile(row, (len(symbols), 1)) for row in (mean, std)]
    normal = tables.normal(*repeated, num_bins=16)
    alone = normal.push(_stack(len(symbols)), symbols)[1]
    assert alone.max() > 1000.0
    np.testing.assert_allclose(bits, alone, rtol=1e-12)


def test_a_mixture_seen_in_a_mirror_costs_the_same():
    """Also where only the first entry's far tail says which component it is."""
    weights = np.array([0.4, 0.6])
    mean, std = np.array([[-0.2, -1.0], [-0.3, 1.0]]), np.array([[0.1, 0.3]] * 2)
    symbols, bits = _bits_of_all(_mixture(weights, mean, std), (16, 16))
    reverse, mirrored = _bits_of_all(_mixture(weights, -mean, std), (16, 16))
    np.testing.assert_array_equal(symbols, 15 - reverse[::-1])
    np.testing.assert_allclose(bits, mirrored[::-1], rtol=1e-9)


def test_a_mixtures_frequencies_are_those_that_archives_were_written_with():
    """Bit for bit: a stack of the words that differences of its CDFs have given."""
    weights = np.array([0.4, 0.6])
    mean, std = np.array([[-0.2, -1.0], [-0.3, 1.0]]), np.array([[0.1, 0.3]] * 2)
    at = special.ndtri(np.arange(17) / 16)[:, None]
    cdf = [special.ndtr((at - m) / s) for m, s in zip(mean.T, std.T, strict=True)]
    mass = np.maximum(np.diff(cdf, axis=1), np.finfo(float).tiny)
    symbols = np.array(list(np.ndindex(16, 16)))
    lanes, room = len(symbols), float(2**24 - 16)
    stack = _stack(lanes)
    for entry in (1, 0):
        seen = np.log(mass[np.arange(entry), symbols[:, :entry]]).sum(axis=1)
        w = special.softmax(np.log(weights) + seen, axis=1)
        starts, ends = (
            index + np.rint((w * cdf[entry][index]).sum(axis=1) * room).astype(int)
            for index in (symbols[:, entry], symbols[:, entry] + 1)
        )
        stack = rans.push(stack, starts, ends - starts, precision=24)
    pushed = _mixture(weights, mean, std)(lanes).push(_stack(lanes), symbols)[0]
    np.testing.assert_array_equal(rans.to_words(pushed), rans.to_words(stack))


def test_groups_in_turn_read_those_before_them_alone():
    """Their order is that of popping; the last group has the first entries."""
    tables_of = np.random.default_rng(4).normal(size=(5, 3, 4))

    def codec(i, symbols):
        if i == 0:
            return tables.categorical(np.tile(tables_of[0], (20, 1, 1)))
        assert symbols[:, 3:].any()
        return tables.categorical(tables_of[symbols[:, 3:]].sum(axis=1))

    in_turn = tables.in_turn(20, [slice(3, 6), slice(0, 3)], codec)
    before = _stack(20)
    _, symbols, _ = in_turn.pop(before)
    after, bits = in_turn.push(before, symbols)
    paid = rans.num_bits(after) - rans.num_bits(before)
    np.testing.assert_allclose(paid, bits.sum(), atol=0.05)
    end, popped, _ = in_turn.pop(after)
    np.testing.assert_array_equal(popped, symbols)
    np.testing.assert_array_equal(rans.to_words(end), rans.to_words(before))


def test_the_bits_of_a_far_bin_are_finite():
    codec = tables.normal(np.array([[60.0]]), np.array([[0.1]]), num_bins=16)
    assert np.isfinite(codec.push(_stack(1), np.array([[0]]))[1])


def test_centers_are_the_medians_of_bins_of_equal_mass():
    middle = stats.norm.cdf(tables.centers(8))
    np.testing.assert_allclose(middle, np.arange(1, 16, 2) / 16, rtol=1e-12)


@pytest.mark.parametrize(
    "codec",
    [
        tables.categorical(2.0 * np.random.default_rng(3).normal(size=(20, 50, 5))),
        tables.normal(np.full((20, 50), 0.4), np.full((20, 50), 0.8), num_bins=16),
        tables.uniform(20, 50, num_bits=4),
        tables.full_normal(
            np.full((20, 50), 0.4), np.tile(0.8 * np.eye(50), (20, 1, 1)), num_bins=16
        ),
        tables.normal_mixture(
            np.array([0.3, 0.7]),
            np.array([[-1.0], [0.5]]) * np.ones(50),
            np.array([[0.4], [0.9]]) * np.ones(50),
            num_lanes=20,
            num_bins=16,
        ),
    ],
    ids=["categorical", "normal", "uniform", "full normal", "mixture"],
)
def test_symbols_of_the_density_cost_the_bits_that_it_says(codec):
    before = _stack(20, spare=1000)
    _, symbols, of_pop = codec.pop(before)
    after, bits = codec.push(before, symbols)
    paid = rans.num_bits(after) - rans.num_bits(before)
    np.testing.assert_allclose(of_pop, bits, rtol=1e-12)
    assert abs(paid - bits.sum()) < 0.05
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
        (
            lambda: tables.full_normal(
                np.zeros((1, 2)), np.ones((1, 2, 2)) * [1.0, 0.0], num_bins=4
            ),
            "without full rank",
        ),
        (
            lambda: tables.full_normal(
                np.zeros((1, 1)), np.full((1, 1, 1), np.inf), num_bins=4
            ),
            "covariance is not finite",
        ),
    ],
)
def test_what_has_no_frequencies_is_refused(build, said):
    with pytest.raises(ValueError, match=said):
        build()
