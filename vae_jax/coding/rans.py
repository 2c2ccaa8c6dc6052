"""Asymmetric numeral systems: a stack of bits that symbols are pushed to and popped of.

Duda 2013 (arXiv:1311.2540), the range variant, for many lanes at once as in Giesen 2014
(arXiv:1402.3392). A symbol of integer frequency f out of 2^precision costs
log2(2^precision / f) bits when it is pushed, and popping undoes pushing exactly, in the
opposite order; so popping turns bits into symbols of any distribution, which bits-back
coding lives on.

Each lane has a head of 64 bits; full heads give 32-bit words to one tail that all lanes
share. Everything is integers on the host: no rounding, no order of threads.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import UInt32, UInt64

from vae_jax import numerics

Heads: TypeAlias = UInt64[np.ndarray, " L"]
Words: TypeAlias = UInt32[np.ndarray, " M"]
Lookup: TypeAlias = Callable[[Heads], tuple[Any, Heads, Heads]]
"""Positions in [0, 2^precision) -> the symbols there, their starts, frequencies."""

MAX_PRECISION = 28
"""Bits of a frequency: beyond, a head is too short for its rounding to be nothing."""
_WORD = np.uint64(32)
_LEAST = np.uint64(1) << np.uint64(31)  # a head between two operations: 2^31 to 2^63
_SEEDED = np.uint64(1) << np.uint64(62)


class Exhausted(ValueError):
    """More bits were popped than the stack holds."""


class Stack(NamedTuple):
    """Bits, the last pushed on top.

    Attributes:
        heads: of each lane, in [2^31, 2^63).
        tail: () or (words, the tail below them).
        num_active: the first lanes, which symbols are put on and taken off; those of
            the others are not looked at, and what is taken off them means nothing.
    """

    heads: Heads
    tail: tuple[Any, ...]
    num_active: int


def narrowed(stack: Stack, num_active: int) -> Stack:
    """The stack with its first lanes alone active, or more of them than before."""
    return Stack(stack.heads, stack.tail, num_active)


def start(words: Words, *, num_lanes: int) -> Stack:
    """A stack of seed words, which decoding gives back: two in each head, then a tail.

    Popped first, they decide the first symbols: they should be random.

    Raises:
        ValueError: if num_lanes is not positive, or there are fewer than two words a
            lane.
    """
    numerics.check_positive(num_lanes=num_lanes)
    if len(words) < 2 * num_lanes:
        raise ValueError(
            f"{num_lanes} lanes need {2 * num_lanes} words to start with, got "
            f"{len(words)}"
        )
    low, high = words[: 2 * num_lanes].astype(np.uint64).reshape(2, num_lanes)
    heads = _SEEDED | (high >> np.uint64(2)) << _WORD | low
    return Stack(heads, _above((), words[2 * num_lanes :]), num_lanes)


def push(stack: Stack, starts: Heads, frequencies: Heads, *, precision: int) -> Stack:
    """Puts one symbol on each active lane.

    Args:
        stack: the bits so far.
        starts: of each symbol's interval in [0, 2^precision), of the first lanes.
        frequencies: its length, one at least.
        precision: bits; at most MAX_PRECISION.
    """
    bits, heads = np.uint64(precision), stack.heads.copy()
    starts, frequencies = (
        of_lanes[: stack.num_active].astype(np.uint64)
        for of_lanes in (starts, frequencies)
    )
    active = heads[: len(starts)]
    full = active >= ((_LEAST >> bits) << _WORD) * frequencies
    tail = _above(stack.tail, active[full].astype(np.uint32))
    active = np.where(full, active >> _WORD, active)
    quotients, remainders = np.divmod(active, frequencies)
    heads[: len(starts)] = (quotients << bits) + remainders + starts
    return Stack(heads, tail, stack.num_active)


def pop(
    stack: Stack, lookup: Lookup, *, num_lanes: int, precision: int
) -> tuple[Stack, Any]:
    """Takes one symbol of each of the first lanes, as `push` put it there.

    Active lanes lose it; the others stay as they are, whatever it is.

    Raises:
        Exhausted: if the tail holds fewer words than that takes.
    """
    bits, heads = np.uint64(precision), stack.heads.copy()
    positions = heads[:num_lanes] & ((np.uint64(1) << bits) - np.uint64(1))
    symbols, starts, frequencies = lookup(positions)
    positions, starts, frequencies = (
        of_lanes[: stack.num_active].astype(np.uint64)
        for of_lanes in (positions, starts, frequencies)
    )
    active = heads[: len(positions)]
    active = frequencies * (active >> bits) + positions - starts
    empty = active < _LEAST
    words, tail = _below(stack.tail, int(empty.sum()))
    active[empty] = active[empty] << _WORD | words
    heads[: len(positions)] = active
    return Stack(heads, tail, stack.num_active), symbols


def num_bits(stack: Stack) -> float:
    """What the stack holds: log2 of each head, and 32 bits a word of the tail."""
    return float(np.log2(stack.heads).sum()) + 32.0 * len(_flat(stack.tail))


def to_words(stack: Stack) -> Words:
    """The whole stack: two words of each head, low ones first, then the tail."""
    low, high = stack.heads.astype(np.uint32), (stack.heads >> _WORD).astype(np.uint32)
    return np.concatenate([low, high, _flat(stack.tail)])


def from_words(words: Words, *, num_lanes: int) -> Stack:
    """The stack that `to_words` wrote.

    Raises:
        ValueError: if the words are no such stack's.
    """
    if len(words) < 2 * num_lanes:
        raise ValueError(
            f"a stack of {num_lanes} lanes has {2 * num_lanes} words at least, got "
            f"{len(words)}"
        )
    low, high = words[: 2 * num_lanes].astype(np.uint64).reshape(2, num_lanes)
    heads = high << _WORD | low
    if not ((heads >= _LEAST) & (heads < _LEAST << _WORD)).all():
        raise ValueError("a head lies outside [2^31, 2^63): these are no stack's words")
    return Stack(heads, _above((), words[2 * num_lanes :]), num_lanes)


def _above(tail: tuple[Any, ...], words: Words) -> tuple[Any, ...]:
    return (words, tail) if len(words) else tail


def _below(tail: tuple[Any, ...], number: int) -> tuple[Words, tuple[Any, ...]]:
    """The last words of a tail, in the order in which they came, and the rest."""
    pieces = []
    while number:
        if not tail:
            raise Exhausted("the stack is out of bits: start it with more words")
        words, tail = tail
        pieces.append(words[max(0, len(words) - number) :])
        tail = _above(tail, words[: len(words) - len(pieces[-1])])
        number -= len(pieces[-1])
    return _joined(pieces), tail


def _flat(tail: tuple[Any, ...]) -> Words:
    pieces = []
    while tail:
        words, tail = tail
        pieces.append(words)
    return _joined(pieces)


def _joined(from_the_top: list[Words]) -> Words:
    return np.concatenate([np.zeros(0, np.uint32), *from_the_top[::-1]])
