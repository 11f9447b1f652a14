"""Signals that ask a process to stop."""

import os
import signal

import pytest

from convoy.trainer.cluster.stop_request import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_signal_is_a_stop_request_until_the_end_of_the_block(number):
    before = signal.getsignal(number)
    with StopRequest(signals=True) as stop:
        stop.listen()
        os.kill(os.getpid(), number)
        assert (stop.is_set, stop.signal_name) == (True, number.name)
    assert signal.getsignal(number) == before


def test_hangup_stays_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(signals=True) as stop:
            stop.listen()
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set
    finally:
        signal.signal(signal.SIGHUP, before)


def test_interrupt_is_received_without_a_reader_of_standard_error(monkeypatch):
    monkeypatch.setattr("os.write", lambda *_: (_ for _ in ()).throw(BrokenPipeError()))
    with StopRequest(signals=True) as stop:
        stop.listen_to_interrupts()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_name == "SIGINT"
