"""A stack gives back what was pushed, bit for bit, at the price of its probability."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_jax.coding import rans


def _words(number, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, number, dtype=np.uint32)


def _symbols(rng, lanes, precision):
    """An interval in [0, 2^precision) for each lane."""
    starts = rng.integers(0, 2**precision, lanes)
    return starts, 1 + rng.integers(0, 2**precision - starts)


def _pushed(stack, symbols, precisions):
    for (starts, frequencies), precision in zip(symbols, precisions, strict=True):
        stack = rans.push(stack, starts, frequencies, precision=precision)
    return stack


@pytest.mark.slow
@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    lanes=st.integers(1, 9),
    precisions=st.lists(st.integers(0, rans.MAX_PRECISION), max_size=60),
)
def test_popping_undoes_pushing(seed, lanes, precisions):
    rng = np.random.default_rng(seed)
    before = rans.start(_words(2 * lanes + 3, seed), num_lanes=lanes)
    counts = rng.integers(1, lanes + 1, len(precisions))  # some leave lanes out
    symbols = [_symbols(rng, n, p) for n, p in zip(counts, precisions, strict=True)]
    stack = _pushed(before, symbols, precisions)
    stack = rans.from_words(rans.to_words(stack), num_lanes=lanes)
    for (starts, frequencies), precision in zip(
        symbols[::-1], precisions[::-1], strict=True
    ):

        def lookup(positions, starts=starts, frequencies=frequencies):
            at = positions.astype(np.int64) - starts
            assert ((at >= 0) & (at < frequencies)).all()
            return "symbol", starts, frequencies

        stack, symbol = rans.pop(
            stack, lookup, num_lanes=len(starts), precision=precision
        )
        assert symbol == "symbol"
    np.testing.assert_array_equal(rans.to_words(stack), rans.to_words(before))


@pytest.mark.parametrize("precision", [1, 12, 18, 24])
def test_a_symbol_costs_minus_log2_of_its_share(precision):
    rng, lanes, number = np.random.default_rng(1), 7, 3000
    before = rans.start(_words(2 * lanes), num_lanes=lanes)
    symbols = [_symbols(rng, lanes, precision) for _ in range(number)]
    stack = _pushed(before, symbols, [precision] * number)
    share = np.array([frequencies for _, frequencies in symbols]) / 2**precision
    paid = rans.num_bits(stack) - rans.num_bits(before)
    assert (
        abs(paid + np.log2(share).sum()) < 2.0 ** (precision - 34) * share.size + 1e-3
    )


def test_a_pop_from_an_empty_tail_is_an_error():
    rare = np.ones(2, np.int64)

    def taken(stack):  # fifteen bits of each head, which has 62 and keeps 31
        return rans.pop(stack, lambda at: (None, at, rare), num_lanes=2, precision=15)[
            0
        ]

    stack = taken(taken(rans.start(_words(4), num_lanes=2)))
    with pytest.raises(rans.Exhausted, match="out of bits"):
        taken(stack)


def test_the_words_that_start_a_stack_are_its_first_bits():
    words = _words(20)
    written = rans.to_words(rans.start(words, num_lanes=3))
    np.testing.assert_array_equal(written[6:], words[6:])
    np.testing.assert_array_equal(written[:3], words[:3])  # low halves of the heads
    np.testing.assert_array_equal(written[3:6] & (2**30 - 1), words[3:6] >> 2)


@pytest.mark.parametrize(
    ("words", "lanes", "said"),
    [
        (_words(3), 2, "need 4 words"),
        (_words(3), 0, "must be positive"),
    ],
)
def test_a_start_without_enough_words_is_refused(words, lanes, said):
    with pytest.raises(ValueError, match=said):
        rans.start(words, num_lanes=lanes)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (np.zeros(3, np.uint32), "4 words at least"),
        (np.zeros(4, np.uint32), "outside"),
        (np.full(4, 2**32 - 1, np.uint32), "outside"),
    ],
)
def test_words_that_are_no_stack_are_refused(words, said):
    with pytest.raises(ValueError, match=said):
        rans.from_words(words, num_lanes=2)
