"""Integer frequencies of the library's densities, and the codecs that read them.

A codec pushes the symbols of L rows, one row a lane, and pops them in the same form.
Frequencies are of a power of two in all, exactly, and none is below one, so that every
symbol can be coded: those are the two things that a float cannot promise.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int, Int64
from scipy import special

from vae_jax.coding import rans


class Codec(NamedTuple):
    """How the symbols [L, N] of L rows are put on a stack.

    Attributes:
        push: stack, symbols -> stack.
        pop: stack -> stack, symbols: what `push` undoes.
        num_bits: symbols -> [L], -log2 of the probability of each row's, before it was
            rounded to frequencies.
    """

    push: Callable[[rans.Stack, Int[np.ndarray, "L N"]], rans.Stack]
    pop: Callable[[rans.Stack], tuple[rans.Stack, Int[np.ndarray, "L N"]]]
    num_bits: Callable[[Int[np.ndarray, "L N"]], Float64[np.ndarray, " L"]]


def edges(
    cdf: Float[np.ndarray, "*B E"], num_symbols: int, *, precision: int
) -> Int64[np.ndarray, "*B E"]:
    r"""Where the symbols' intervals in [0, 2^precision] begin and end.

    $k + \mathrm{round}(F_k (2^p - K))$ at the k-th of E edges: each of K symbols has
    one position, and its share of those that are left; so strictly increasing wherever
    the CDF does not fall.

    Args:
        cdf: at consecutive edges, the first of which is edge 0.
        num_symbols: K.
        precision: p.

    Raises:
        ValueError: if there are more symbols than positions, or precision is beyond
            what a stack can hold.
    """
    _check(num_symbols, precision)
    shares = np.rint(cdf * float(2**precision - num_symbols)).astype(np.int64)
    return np.arange(cdf.shape[-1]) + shares


def categorical(log_probs: Float[np.ndarray, "L N K"], *, precision: int = 18) -> Codec:
    """Symbols 0..K-1 of N independent entries, each of a table of its own.

    Args:
        log_probs: nats; normalized here, in double precision.
        precision: bits of a frequency.

    Raises:
        ValueError: as `edges`; for probabilities that are not finite.
    """
    log_probs = np.asarray(log_probs, np.float64)
    num_lanes, num_entries, num_symbols = log_probs.shape
    total = special.logsumexp(log_probs, axis=-1, keepdims=True)
    if not np.isfinite(total).all():
        raise ValueError("log_probs of an entry sum to no probability")
    log_probs = log_probs - total
    inner = np.cumsum(np.exp(log_probs[..., :-1]), axis=-1).clip(0.0, 1.0)
    ends = np.zeros((*inner.shape[:-1], 1)), np.ones((*inner.shape[:-1], 1))
    at = edges(
        np.concatenate([ends[0], inner, ends[1]], axis=-1),
        num_symbols,
        precision=precision,
    )
    lanes = np.arange(num_lanes)

    def interval(entry: int, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = at[lanes, entry, symbols]
        return starts, at[lanes, entry, symbols + 1] - starts

    def lookup(entry: int, positions: np.ndarray) -> np.ndarray:
        inner = at[:, entry, 1:-1]
        return (inner <= positions[:, None].astype(np.int64)).sum(axis=1)

    def num_bits(symbols: np.ndarray) -> np.ndarray:
        of_each = np.take_along_axis(log_probs, symbols[..., None], axis=-1)
        return -of_each.sum(axis=(1, 2)) / np.log(2.0)

    return _of_entries(num_lanes, num_entries, precision, interval, lookup, num_bits)


def normal(
    mean: Float[np.ndarray, "L N"],
    std: Float[np.ndarray, "L N"],
    *,
    num_bins: int,
    precision: int = 24,
) -> Codec:
    """Normal entries in bins of equal mass under N(0, 1); a symbol is a bin's index.

    A bin that has no mass left in double precision still has its one position.

    Args:
        mean: of each entry.
        std: its standard deviation.
        num_bins: of N(0, 1); their centers are `centers`.
        precision: bits of a frequency.

    Raises:
        ValueError: as `edges`; for a mean or std that is not finite, or a std that is
            not positive.
    """
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    num_lanes, num_entries = mean.shape
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0.0).all()):
        raise ValueError("a normal has a mean or std that is not finite, or no std")
    _check(num_bins, precision)
    at, room = _normal_edges(num_bins), float(2**precision - num_bins)

    def edge(entry: int, index: np.ndarray) -> np.ndarray:
        cdf = special.ndtr((at[index] - mean[:, entry]) / std[:, entry])
        return index + np.rint(cdf * room).astype(np.int64)

    def interval(entry: int, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = edge(entry, symbols)
        return starts, edge(entry, symbols + 1) - starts

    def lookup(entry: int, positions: np.ndarray) -> np.ndarray:
        """The last bin that starts at the position or before it, by bisection."""
        positions = positions.astype(np.int64)
        low, high = np.zeros_like(positions), np.full_like(positions, num_bins)
        while (high - low).max() > 1:
            middle = (low + high) // 2
            before = edge(entry, middle) <= positions
            low, high = np.where(before, middle, low), np.where(before, high, middle)
        return low

    def num_bits(symbols: np.ndarray) -> np.ndarray:
        low, high = ((at[symbols + i] - mean) / std for i in (0, 1))
        right = low + high > 0.0  # the side where neither CDF is near one
        low, high = np.where(right, -high, low), np.where(right, -low, high)
        log_low, log_high = special.log_ndtr(low), special.log_ndtr(high)
        mass = log_high + np.log1p(-np.exp(log_low - log_high))
        return -mass.sum(axis=1) / np.log(2.0)

    return _of_entries(num_lanes, num_entries, precision, interval, lookup, num_bits)


def uniform(num_lanes: int, num_entries: int, *, num_bits: int) -> Codec:
    """Entries in [0, 2^num_bits), all alike: N(0, 1) in its own bins.

    Raises:
        ValueError: as `edges`.
    """
    _check(2**num_bits, num_bits)

    def interval(entry: int, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        del entry
        return symbols, np.ones_like(symbols)

    return _of_entries(
        num_lanes,
        num_entries,
        num_bits,
        interval,
        lambda entry, positions: positions.astype(np.int64),
        lambda symbols: np.full(num_lanes, float(num_bits * num_entries)),
    )


def centers(num_bins: int) -> Float64[np.ndarray, " K"]:
    """The median of N(0, 1) in each of its bins of equal mass."""
    return special.ndtri((np.arange(num_bins) + 0.5) / num_bins)


def _of_entries(
    num_lanes: int,
    num_entries: int,
    precision: int,
    interval: Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]],
    lookup: Callable[[int, np.ndarray], np.ndarray],
    num_bits: Callable[[np.ndarray], np.ndarray],
) -> Codec:
    """Entry after entry: pushed from the last to the first, popped from the first."""

    def push(stack: rans.Stack, symbols: np.ndarray) -> rans.Stack:
        for entry in reversed(range(num_entries)):
            starts, frequencies = interval(entry, symbols[:, entry])
            stack = rans.push(stack, starts, frequencies, precision=precision)
        return stack

    def pop(stack: rans.Stack) -> tuple[rans.Stack, np.ndarray]:
        symbols = np.zeros((num_lanes, num_entries), np.int64)

        def of_entry(
            entry: int, positions: np.ndarray
        ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            at = lookup(entry, positions)
            return at, *interval(entry, at)

        for entry in range(num_entries):
            stack, symbols[:, entry] = rans.pop(
                stack,
                functools.partial(of_entry, entry),
                num_lanes=num_lanes,
                precision=precision,
            )
        return stack, symbols

    return Codec(push, pop, num_bits)


@functools.cache
def _normal_edges(num_bins: int) -> np.ndarray:
    return special.ndtri(np.arange(num_bins + 1) / num_bins)


def _check(num_symbols: int, precision: int) -> None:
    if not 0 <= precision <= rans.MAX_PRECISION:
        raise ValueError(
            f"precision must lie in 0 to {rans.MAX_PRECISION}, got {precision}"
        )
    if num_symbols > 2**precision:
        raise ValueError(
            f"{num_symbols} symbols have no place in 2^{precision} positions: give "
            "more precision"
        )
