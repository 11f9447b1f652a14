"""When to end a gang: the signals that the launcher gets, and the time that workers are given."""

import signal
import time
from collections.abc import Callable
from typing import Any

_LONGEST_ECHO_SECONDS = 45.0  # longer than a worker takes to notice that it has lost a peer
_STARTUP_ECHO_SECONDS = 3.0  # so that an error that all have can be told by all


class Signals:
    """Collects the signals that the launcher passes on. A context manager; use it in the main thread."""

    PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self):
        """Collects nothing yet."""
        self._received: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        """Begins, also where whoever started the launcher had these signals ignored or blocked."""
        for number in self.PASSED_ON:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup
            self._before[number] = signal.signal(number, lambda number, _: self._received.append(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signals back their meaning."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def are_waiting(self) -> bool:
        """Whether `take` would return any."""
        return bool(self._received)

    def take(self) -> list[int]:
        """Returns the signals since the last call. A terminal that hangs up counts as SIGTERM."""
        received = []
        while self._received:  # a handler may add one at any moment
            received.append(self._received.pop(0))
        return [signal.SIGTERM if number == signal.SIGHUP else number for number in received]


class ShutdownPolicy:
    """When to end what is left of a gang: its clock begins with the first worker that fails or with a signal.

    After a failure the others have some time to notice and end by themselves, little while nothing is trained that
    could be lost; then SIGTERM, then `grace_seconds` later SIGKILL. After a signal to the launcher, which they all got,
    SIGKILL follows `grace_seconds` later, or at once with the second.
    """

    _ONE_SIGNAL_SECONDS = 0.2  # `timeout` sends its signal to the process and to the group it is in: two that are one

    def __init__(self, grace_seconds: float, clock: Callable[[], float] = time.monotonic):
        """Args: grace_seconds: from SIGTERM to SIGKILL. clock: in seconds."""
        self.signals: list[int] = []
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._term_at: float | None = None
        self._kill_at: float | None = None
        self._first_order_to_end: float | None = None

    def worker_failed(self, *, in_startup: bool = False) -> None:
        """Notes that a worker ended badly, `in_startup` where training had not begun."""
        if self._term_at is None and self._kill_at is None:
            echo_seconds = _STARTUP_ECHO_SECONDS if in_startup else _LONGEST_ECHO_SECONDS
            self._term_at = self._clock() + min(self._grace_seconds, echo_seconds)

    def signal_received(self, number: int) -> bool:
        """Notes a signal to the launcher. Returns whether it is one more of the same, to be passed over."""
        now = self._clock()
        if self._first_order_to_end is not None and now - self._first_order_to_end < self._ONE_SIGNAL_SECONDS:
            return True
        self.signals.append(number)
        self._term_at = None
        self._kill_at = now + self._grace_seconds
        if number != signal.SIGUSR1:
            if self._first_order_to_end is not None:
                self._kill_at = now
            else:
                self._first_order_to_end = now
        return False

    @property
    def in_progress(self) -> bool:
        """Whether anything happened after which no worker should run on."""
        return self._term_at is not None or self._kill_at is not None

    def term_is_due(self) -> bool:
        """Returns True once, when SIGTERM is to be sent."""
        if self._term_at is None or self._clock() < self._term_at:
            return False
        self._term_at, self._kill_at = None, self._clock() + self._grace_seconds
        return True

    def kill_is_due(self) -> bool:
        """Returns whether SIGKILL is to be sent."""
        return self._kill_at is not None and self._clock() >= self._kill_at
