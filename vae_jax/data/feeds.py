"""What a scan is fed with: rows that lie on the device, or that come from the host.

Both go through the same orders, so that a run is the same bit for bit. Rows from the
host are gathered and sent by a thread, while the device works on those before.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

Draw: TypeAlias = Callable[[int], Int[Array, "*R S B"]]
"""epoch -> the rows of each of its steps"""


class Feed(NamedTuple):
    """Data and order of the steps that come next.

    Attributes:
        at: step -> data [N, *X], order [*R, T, B].
        close: after the last step.
    """

    at: Callable[[int], tuple[Array, Array]]
    close: Callable[[], None]


def resident(draw: Draw, data: Array, *, steps_per_epoch: int, max_steps: int) -> Feed:
    """All rows on the device: at most max_steps of an epoch at a time."""
    order_of = lru_cache(maxsize=1)(draw)

    def at(step: int) -> tuple[Array, Array]:
        epoch, offset = divmod(step, steps_per_epoch)
        return data, order_of(epoch)[..., offset : offset + max_steps, :]

    return Feed(at, lambda: None)


def streamed(
    draw: Draw,
    rows: np.ndarray,
    *,
    steps_per_epoch: int,
    max_steps: int,
    place: Callable[[np.ndarray], Array] = jnp.asarray,
) -> Feed:
    """Rows [N, *X] on the host, and on the device those of max_steps steps, twice.

    `rows` is anything that an array of indices can be taken of: an array, or one that
    `numpy.memmap` reads from the disk as it is asked for. The order that comes with the
    data counts from its start, so that `Batch.index` does not name rows of the data
    set, which algorithms with a state for each row would need.
    """
    order_of = lru_cache(maxsize=2)(lambda epoch: np.asarray(draw(epoch)))
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rows")
    ready: dict[int, Future] = {}

    def fetch(step: int) -> tuple[Array, Array]:
        epoch, offset = divmod(step, steps_per_epoch)
        index = order_of(epoch)[..., offset : offset + max_steps, :]
        order = jnp.arange(index.size, dtype=jnp.int32).reshape(index.shape)
        return place(np.asarray(rows[index.reshape(-1)])), order

    def at(step: int) -> tuple[Array, Array]:
        data, order = (ready.pop(step, None) or pool.submit(fetch, step)).result()
        ready.clear()
        following = step + order.shape[-2]
        ready[following] = pool.submit(fetch, following)
        return data, order

    return Feed(at, lambda: pool.shutdown(wait=False, cancel_futures=True))
