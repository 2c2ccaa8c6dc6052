"""Integer frequencies of the library's densities, and the codecs that read them.

A codec pushes the symbols of L rows, one row a lane, and pops them in the same form.
Frequencies are of a power of two in all, exactly, and none is below one, so that every
symbol can be coded: those are the two things that a float cannot promise.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Float64, Int, Int64
from scipy import special

from vae_jax.coding import rans

_BLOCK = 2**17  # entries of tables that are made at a time
Symbols: TypeAlias = Int[np.ndarray, "L N"]
Bits: TypeAlias = Float64[np.ndarray, " L"]
"""-log2 of the probability of each row's symbols, before it was rounded."""


class Codec(NamedTuple):
    """How the symbols of L rows are put on a stack.

    Attributes:
        push: stack, symbols -> stack, bits.
        pop: stack -> stack, symbols, bits: what `push` undoes.
    """

    push: Callable[[rans.Stack, Symbols], tuple[rans.Stack, Bits]]
    pop: Callable[[rans.Stack], tuple[rans.Stack, Symbols, Bits]]


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
    num_lanes, num_entries, num_symbols = log_probs.shape
    at = np.zeros((num_lanes, num_entries, num_symbols + 1), np.int64)
    log_total = np.zeros((num_lanes, num_entries))
    some = max(1, _BLOCK // max(1, num_entries * num_symbols))  # rows that stay cached
    for first in range(0, num_lanes, some):
        rows = slice(first, first + some)
        block = np.array(log_probs[rows], np.float64)
        highest = block.max(axis=-1, keepdims=True)
        if not np.isfinite(highest).all():
            raise ValueError("log_probs of an entry sum to no probability")
        cdf = np.cumsum(np.exp(block - highest), axis=-1)
        total = cdf[..., -1].copy()
        cdf /= total[..., None]
        start = np.zeros((*total.shape, 1))
        at[rows] = edges(
            np.concatenate([start, cdf], axis=-1), num_symbols, precision=precision
        )
        log_total[rows] = highest[..., 0] + np.log(total)
    lanes = np.arange(num_lanes)

    def interval(entry: int, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = at[lanes, entry, symbols]
        return starts, at[lanes, entry, symbols + 1] - starts

    def lookup(entry: int, positions: np.ndarray) -> np.ndarray:
        inner = at[:, entry, 1:-1]
        return (inner <= positions[:, None].astype(np.int64)).sum(axis=1)

    def num_bits(symbols: np.ndarray) -> np.ndarray:
        of_each = np.take_along_axis(log_probs, symbols[..., None], axis=-1)[..., 0]
        return (log_total - of_each).sum(axis=1) / np.log(2.0)

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

    def num_bits(symbols: np.ndarray) -> np.ndarray:
        mass = _log_mass(at[symbols], at[symbols + 1], mean, std)
        return -mass.sum(axis=1) / np.log(2.0)

    return _of_bins(num_lanes, num_entries, num_bins, precision, edge, num_bits)


def full_normal(
    mean: Float[np.ndarray, "L N"],
    factor: Float[np.ndarray, "L N N"],
    *,
    num_bins: int,
    precision: int = 24,
) -> Codec:
    """N(mean, A A^T) in the bins of `normal`, each entry given those before it.

    Args:
        mean: of each entry.
        factor: A, of full rank.
        num_bins: as in `normal`.
        precision: as in `normal`.

    Raises:
        ValueError: as `normal`.
    """
    mean, factor = np.asarray(mean, np.float64), np.asarray(factor, np.float64)
    if not np.isfinite(factor).all():
        raise ValueError("the factor of a normal's covariance is not finite")
    # A^T = Q R, so that A A^T = R^T R: W = R^-T makes white noise of the entries.
    root = np.swapaxes(np.linalg.qr(factor.swapaxes(1, 2)).R, 1, 2)
    if not np.diagonal(root, axis1=1, axis2=2).all():
        raise ValueError("a normal has a covariance without full rank")
    white, values = np.linalg.inv(root), centers(num_bins)

    def of_entry(entry: int, symbols: np.ndarray) -> Codec:
        rows = white[:, entry, :entry] / white[:, entry, entry, None]
        gaps = values[symbols[:, :entry]] - mean[:, :entry]
        return normal(
            (mean[:, entry] - (rows * gaps).sum(axis=1))[:, None],
            np.abs(1.0 / white[:, entry, entry])[:, None],
            num_bins=num_bins,
            precision=precision,
        )

    groups = [slice(i, i + 1) for i in range(mean.shape[1])]
    return in_turn(len(mean), groups, of_entry)


def normal_mixture(
    weights: Float[np.ndarray, " C"],
    mean: Float[np.ndarray, "C N"],
    std: Float[np.ndarray, "C N"],
    *,
    num_lanes: int,
    num_bins: int,
    precision: int = 24,
) -> Codec:
    r"""A mixture of normals in the bins of `normal`, each entry given those before it.

    $P(k_i | k_{<i}) = \sum_c w_c P_c(k_i)$ with $w_c \propto \pi_c \prod_{j<i}
    P_c(k_j)$: exact for the bins, by the components' CDFs. The frequencies' w_c do not
    see what of a component's right tail is lost between CDFs near one; the bits do.

    Args:
        weights: pi, positive; they sum to one.
        mean: of each component's entries.
        std: their standard deviations.
        num_lanes: rows at a time.
        num_bins: as in `normal`.
        precision: as in `normal`.

    Raises:
        ValueError: as `edges`.
    """
    _check(num_bins, precision)
    room = float(2**precision - num_bins)
    at = _normal_edges(num_bins)[:, None]
    cdf = [special.ndtr((at - m) / s) for m, s in zip(mean.T, std.T, strict=True)]
    cdf = np.maximum.accumulate(cdf, axis=1)  # [N, K + 1, C]
    bins = at[:-1], at[1:]
    log_mass = [_log_mass(*bins, m, s) for m, s in zip(mean.T, std.T, strict=True)]
    log_mass = np.array(log_mass)  # [N, K, C]

    def of_entry(entry: int, symbols: np.ndarray) -> Codec:
        before = np.arange(entry), symbols[:, :entry]
        # Differences of CDFs for good: archives are read with these weights.
        mass = cdf[before[0], before[1] + 1] - cdf[before]
        seen = np.log(np.maximum(mass, np.finfo(float).tiny)).sum(axis=1)
        w = special.softmax(np.log(weights) + seen, axis=1)

        def edge(_: int, index: np.ndarray) -> np.ndarray:
            # A sum of terms that do not fall, in one order, does not fall either.
            shares = (w * cdf[entry, index]).sum(axis=1)
            return index + np.rint(shares * room).astype(np.int64)

        def num_bits(symbols: np.ndarray) -> np.ndarray:
            log_w = np.log(weights) + log_mass[before].sum(axis=1)
            log_joint = log_w + log_mass[entry, symbols[:, 0]]
            of_each = special.logsumexp(log_w, axis=1)
            return (of_each - special.logsumexp(log_joint, axis=1)) / np.log(2.0)

        return _of_bins(num_lanes, 1, num_bins, precision, edge, num_bits)

    groups = [slice(i, i + 1) for i in range(mean.shape[1])]
    return in_turn(num_lanes, groups, of_entry)


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


def known(symbols: Symbols) -> Codec:
    """Symbols that both sides know: they are put nowhere, and cost nothing."""
    free = np.zeros(len(symbols))
    return Codec(lambda stack, _: (stack, free), lambda stack: (stack, symbols, free))


def centers(num_bins: int) -> Float64[np.ndarray, " K"]:
    """The median of N(0, 1) in each of its bins of equal mass."""
    return special.ndtri((np.arange(num_bins) + 0.5) / num_bins)


def in_turn(
    num_lanes: int,
    groups: Sequence[slice],
    codec: Callable[[int, Symbols], Codec],
) -> Codec:
    """Groups of entries, each of a codec that may read those before it.

    Popped from the first group to the last, and so pushed from the last to the first.

    Args:
        num_lanes: rows at a time.
        groups: every entry is in one.
        codec: a group's number, symbols -> that of its entries. It must not read the
            symbols of the group itself nor of later ones, which are not known when it
            is popped.
    """
    num_entries = max(at.stop for at in groups)

    def push(stack: rans.Stack, symbols: np.ndarray) -> tuple[rans.Stack, np.ndarray]:
        bits = np.zeros(num_lanes)
        for i, at in reversed(list(enumerate(groups))):
            stack, of_group = codec(i, symbols).push(stack, symbols[:, at])
            bits += of_group
        return stack, bits

    def pop(stack: rans.Stack) -> tuple[rans.Stack, np.ndarray, np.ndarray]:
        bits, symbols = np.zeros(num_lanes), np.zeros((num_lanes, num_entries), int)
        for i, at in enumerate(groups):
            stack, symbols[:, at], of_group = codec(i, symbols).pop(stack)
            bits += of_group
        return stack, symbols, bits

    return Codec(push, pop)


def _of_bins(
    num_lanes: int,
    num_entries: int,
    num_bins: int,
    precision: int,
    edge: Callable[[int, np.ndarray], np.ndarray],
    num_bits: Callable[[np.ndarray], np.ndarray],
) -> Codec:
    """Entries whose intervals lie between the edges (entry, index [L]) -> [L]."""

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

    return _of_entries(num_lanes, num_entries, precision, interval, lookup, num_bits)


def _of_entries(
    num_lanes: int,
    num_entries: int,
    precision: int,
    interval: Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]],
    lookup: Callable[[int, np.ndarray], np.ndarray],
    num_bits: Callable[[np.ndarray], np.ndarray],
) -> Codec:
    """Entry after entry: pushed from the last to the first, popped from the first."""

    def push(stack: rans.Stack, symbols: np.ndarray) -> tuple[rans.Stack, np.ndarray]:
        for entry in reversed(range(num_entries)):
            starts, frequencies = interval(entry, symbols[:, entry])
            stack = rans.push(stack, starts, frequencies, precision=precision)
        return stack, num_bits(symbols)

    def pop(stack: rans.Stack) -> tuple[rans.Stack, np.ndarray, np.ndarray]:
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
        return stack, symbols, num_bits(symbols)

    return Codec(push, pop)


def _log_mass(
    low: np.ndarray, high: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> np.ndarray:
    """Nats of normals between two edges."""
    width = (high - low) / std
    low, high = (low - mean) / std, (high - mean) / std
    right = low > -high  # the side where neither CDF is near one
    low, high = np.where(right, -high, low), np.where(right, -low, high)
    log_low, log_high = special.log_ndtr(low), special.log_ndtr(high)
    fall = log_low - log_high
    narrow = fall > -1e-6  # the density's, as the difference has lost its digits
    wide = log_high + np.log(-np.expm1(np.where(narrow, -1.0, fall)))
    middle = 0.5 * (np.where(narrow, low, 0.0) + np.where(narrow, high, 0.0))
    width = np.where(narrow, width, 1.0)
    of_density = np.log(width) - 0.5 * (middle**2 + np.log(2.0 * np.pi))
    return np.where(narrow, of_density, wide)


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
