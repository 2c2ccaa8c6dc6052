"""Stacks of random bits, and rows that are put on one and taken off again."""

import numpy as np

from vae_jax.coding import bits_back, rans


def start(num_words=4000, *, lanes):
    """A stack of random bits."""
    rng = np.random.default_rng(5)
    words = rng.integers(0, 2**32, 2 * lanes + num_words, dtype=np.uint32)
    return rans.start(words, num_lanes=lanes)


def pushed_at_once(codec, symbols):
    """Bits that the rows cost, and that the bound says of each; they come back too.

    With a lane for each row every z is of random bits alone.
    """
    first = start(lanes=len(symbols))
    stack, bits = codec.push(first, symbols)
    end, rows, of_pop = codec.pop(_written(stack))
    np.testing.assert_allclose(of_pop, bits, rtol=1e-9)
    return _paid(first, stack, end, rows, symbols), bits


def compressed(codec, symbols, *, lanes=40):
    """The same in batches, whose z are of what was pushed before.

    Which is random where the model and its q are right.
    """
    first = start(lanes=lanes)
    stack, bits = bits_back.encode(codec, first, symbols)
    rows, end = bits_back.decode(codec, _written(stack), num_rows=len(symbols))
    return _paid(first, stack, end, rows, symbols), bits


def _written(stack):
    return rans.from_words(rans.to_words(stack), num_lanes=len(stack.heads))


def _paid(first, stack, end, rows, symbols):
    np.testing.assert_array_equal(rows, symbols)
    np.testing.assert_array_equal(rans.to_words(end), rans.to_words(first))
    return rans.num_bits(stack) - rans.num_bits(first)
