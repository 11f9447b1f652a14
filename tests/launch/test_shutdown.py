import signal

import pytest

from convoy.launch.shutdown import ShutdownPolicy


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def shutdown(clock):
    return ShutdownPolicy(60, clock)


def test_nothing_is_due_before_a_failure_or_signal(shutdown, clock):
    clock.now += 1e6
    assert not (shutdown.in_progress or shutdown.term_is_due() or shutdown.kill_is_due())


def test_after_a_failure_sigterm_is_due_after_45_s_and_sigkill_after_the_grace_time(shutdown, clock):
    shutdown.worker_failed()
    clock.now += 44
    shutdown.worker_failed()  # does not extend the time
    assert not shutdown.term_is_due()
    clock.now += 1
    assert (shutdown.term_is_due(), shutdown.term_is_due(), shutdown.kill_is_due()) == (True, False, False)
    clock.now += 60
    assert shutdown.kill_is_due()


def test_after_a_failure_in_startup_sigterm_is_due_after_3_s(shutdown, clock):
    shutdown.worker_failed(in_startup=True)
    clock.now += 3
    assert shutdown.term_is_due()


def test_sigterm_is_due_no_later_than_the_grace_time(clock):
    shutdown = ShutdownPolicy(5, clock)
    shutdown.worker_failed()
    clock.now += 5
    assert shutdown.term_is_due()


def test_after_a_signal_only_sigkill_is_due(shutdown, clock):
    shutdown.worker_failed()
    assert not shutdown.signal_received(signal.SIGTERM)
    clock.now += 59
    assert not (shutdown.term_is_due() or shutdown.kill_is_due())
    clock.now += 1
    assert shutdown.kill_is_due()


def test_second_signal_kills_at_once(shutdown, clock):
    shutdown.signal_received(signal.SIGINT)
    clock.now += 1
    shutdown.signal_received(signal.SIGTERM)
    assert shutdown.kill_is_due()


def test_duplicate_signal_counts_once(shutdown, clock):
    shutdown.signal_received(signal.SIGTERM)
    clock.now += 0.1
    assert shutdown.signal_received(signal.SIGTERM)
    assert not shutdown.kill_is_due()
    assert shutdown.signals == [signal.SIGTERM]


def test_sigterm_after_the_warning_of_a_scheduler_counts_as_the_first_signal(shutdown, clock):
    shutdown.signal_received(signal.SIGUSR1)
    clock.now += 30
    shutdown.signal_received(signal.SIGTERM)
    clock.now += 59
    assert not shutdown.kill_is_due()
