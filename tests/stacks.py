"""Stacks of random bits, and rows that are put on one and taken off again."""

import numpy as np

from vae_jax.coding import bits_back, rans

LANES = 40


def start(num_words=4000, *, lanes=LANES):
    """A stack of random bits."""
    rng = np.random.default_rng(5)
    words = rng.integers(0, 2**32, 2 * lanes + num_words, dtype=np.uint32)
    return rans.start(words, num_lanes=lanes)


def compressed(build, symbols, *, lanes=LANES):
    """Bits that the rows cost, and that the bound says of each; they come back too.

    With a lane for each row every z is of random bits alone. Later ones are of what was
    pushed before, which is random where the model and its q are right.
    """
    first = start(lanes=lanes)
    stack, bits = bits_back.encode(build, first, symbols, num_lanes=lanes)
    paid = rans.num_bits(stack) - rans.num_bits(first)
    stack = rans.from_words(rans.to_words(stack), num_lanes=lanes)
    rows, end = bits_back.decode(build, stack, num_rows=len(symbols), num_lanes=lanes)
    np.testing.assert_array_equal(rows, symbols)
    np.testing.assert_array_equal(rans.to_words(end), rans.to_words(first))
    return paid, bits
