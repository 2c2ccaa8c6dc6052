"""SIGTERM and Ctrl-C, held back until a run can save."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vae_jax.training import parallel


def shared(received: list[signal.Signals]) -> list[signal.Signals]:
    """The signals, with one that only other processes of the run were sent.

    All of them must ask, and all then stop after the same step: what arrives while they
    exchange their answers is of the next time.
    """
    if not parallel.any_process(bool(received)):
        return []
    if not received:
        received.append(signal.SIGTERM)
    return received


@contextmanager
def deferred() -> Iterator[list[signal.Signals]]:
    """Collects SIGTERM and SIGINT in the list it yields, instead of dying of them.

    A second Ctrl-C interrupts at once, for a user who will not wait.
    """
    received: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))

    watched = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, note) for number in watched}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
