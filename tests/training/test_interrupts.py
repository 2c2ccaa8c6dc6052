import os
import signal

import pytest

from vae_jax.training import interrupts, parallel


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_collected_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with interrupts.deferred() as received:
        assert received == []
        os.kill(os.getpid(), number)
        assert received == [number]
        assert interrupts.shared(received) == [number]
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once():
    before = signal.getsignal(signal.SIGINT)
    with interrupts.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_received_stays_nothing():
    assert interrupts.shared([]) == []


def test_a_signal_amid_the_exchange_is_of_the_next_one(monkeypatch):
    # The others were told of none: a process that stops for it leaves them waiting.
    received = []

    def exchange(flag):
        received.append(signal.SIGTERM)
        return flag

    monkeypatch.setattr(parallel, "any_process", exchange)
    assert interrupts.shared(received) == []
    assert interrupts.shared(received)[0] == signal.SIGTERM


def test_a_signal_that_another_process_was_sent_stops_this_one_too(monkeypatch):
    monkeypatch.setattr(parallel, "any_process", lambda flag: True)
    assert interrupts.shared([]) == [signal.SIGTERM]
    assert interrupts.shared([signal.SIGINT]) == [signal.SIGINT]
