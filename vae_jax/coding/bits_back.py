r"""Bits-back coding: a model with its q(z | x) is a code as long as minus its bound.

Townsend et al. 2019 (arXiv:1901.04866), after Hinton & van Camp 1993. To push x: pop z
by q(z | x), which gives bits back; push x by p(x | z); push z by p(z). In expectation
$-\log_2 p(x | z) - \log_2 p(z) + \log_2 q(z | x)$ bits, minus the ELBO of the same bins
of z in bits, and every nat of KL(q || p(z | x)) is paid for.

The first z is popped of bits that have to be there: seed words, which decoding returns.
Later ones are popped of what was pushed before, which is as random as the model and its
q are right: for poor ones the length is not that of independent z.

**Several layers.** Where q goes up, $q(z_1 | x) q(z_2 | z_1)$, and the prior is a
chain, a code of z_1 by z_2 is the prior of a code of x by z_1: Bit-Swap (Kingma et al.
2019, arXiv:1905.06845), which pushes x before z_2 is popped, so that the first bits are
about those of one layer. Where each factor of q reads x, as in a ladder, that order is
impossible: to undo a pop of q the decoder needs x, and for x every z. So whatever the
order of its layers, q is popped whole before x is pushed, and the first bits are those
of all layers of a row. They come back as before: a file's length without them is the
same. `encode` keeps them few by pushing few rows first, whatever q is.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from vae_jax import numerics
from vae_jax.coding import rans, tables

Watch: TypeAlias = Callable[[Sequence[slice]], Iterable[slice]]


def code(
    prior: tables.Codec,
    posterior: Callable[[tables.Symbols], tables.Codec],
    likelihood: Callable[[tables.Symbols], tables.Codec],
) -> tables.Codec:
    """The code of rows x by latents z, minus log2 p(x, z) / q(z | x) at the z it takes.

    Args:
        prior: of the latents' symbols; it may be such a code itself.
        posterior: symbols of x -> codec of the latents' symbols, by q(z | x).
        likelihood: symbols of the latents -> codec of x's, by p(x | z).

    Raises:
        Exhausted: from `push`, if the stack has too few bits to take z from.
    """

    def push(stack: rans.Stack, x: tables.Symbols) -> tuple[rans.Stack, tables.Bits]:
        stack, z, taken = posterior(x).pop(stack)
        stack, of_x = likelihood(z).push(stack, x)
        stack, of_z = prior.push(stack, z)
        return stack, of_x + of_z - taken

    def pop(stack: rans.Stack) -> tuple[rans.Stack, tables.Symbols, tables.Bits]:
        stack, z, of_z = prior.pop(stack)
        stack, x, of_x = likelihood(z).pop(stack)
        stack, taken = posterior(x).push(stack, z)
        return stack, x, of_x + of_z - taken

    return tables.Codec(push, pop)


def encode(
    codec: tables.Codec,
    stack: rans.Stack,
    rows: tables.Symbols,
    *,
    watch: Watch = iter,
) -> tuple[rans.Stack, tables.Bits]:
    """Pushes any number of rows, and says the bits of each by the bound.

    Args:
        codec: of as many rows as the stack has lanes.
        stack: with bits to take the first z from.
        rows: symbols of x.
        watch: is handed the batches, and hands them on: a bar of progress.

    Raises:
        Exhausted: as `code`.
        ValueError: for no rows.
    """
    if not len(rows):
        raise ValueError("there are no rows to encode")
    bits, num_lanes = [], len(stack.heads)
    for at in watch(_batches(len(rows), num_lanes)):
        batch = np.resize(rows[at], (num_lanes, rows.shape[1]))
        stack = rans.narrowed(stack, at.stop - at.start)
        stack, of_batch = codec.push(stack, batch)
        bits.append(of_batch[: stack.num_active])
    return rans.narrowed(stack, num_lanes), np.concatenate(bits)


def decode(
    codec: tables.Codec,
    stack: rans.Stack,
    *,
    num_rows: int,
    watch: Watch = iter,
) -> tuple[tables.Symbols, rans.Stack]:
    """The rows that `encode` pushed, and the stack that it started from.

    Raises:
        Exhausted: if the stack is of fewer rows.
        ValueError: if num_rows is below one.
    """
    numerics.check_positive(num_rows=num_rows)
    rows, num_lanes = [], len(stack.heads)
    for at in watch(_batches(num_rows, num_lanes)[::-1]):
        stack = rans.narrowed(stack, at.stop - at.start)
        stack, of_batch, _ = codec.pop(stack)
        rows.insert(0, of_batch[: stack.num_active])
    return np.concatenate(rows), rans.narrowed(stack, num_lanes)


def _batches(num_rows: int, num_lanes: int) -> list[slice]:
    """Few rows at first, so that their z are taken from few seed words.

    Each time a quarter more than were pushed before pay for, and at last a row a lane.
    """
    batches, end = [], 0
    while end < num_rows:
        size = min(1 + end // 4, num_lanes, num_rows - end)
        batches.append(slice(end, end + size))
        end += size
    return batches
