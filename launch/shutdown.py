"""Ending the workers of an attempt: signals to the launcher, and the time that workers get to exit."""

import signal
import time
from collections.abc import Callable
from types import FrameType

TICK_SECONDS = 0.05  # between two looks at running workers

_Handler = Callable[[int, FrameType | None], object] | int | None

# After a failure the other workers exit by themselves, once they notice that they have lost a peer.
_SECONDARY_EXIT_SECONDS = 45.0  # longer than noticing takes
_STARTUP_EXIT_SECONDS = 3.0  # enough for all workers to report an error that they share


class Signals:
    """Collects the signals that the launcher forwards. A context manager; use it in the main thread."""

    FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self) -> None:
        """Collects nothing yet."""
        self._received: list[int] = []
        self._previous: dict[signal.Signals, _Handler] = {}

    def __enter__(self) -> "Signals":
        """Installs the handlers, also for signals that the launcher was started with ignored or blocked."""
        for number in self.FORWARDED:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup
            self._previous[number] = signal.signal(number, lambda number, _: self._received.append(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._previous)
        return self

    def __exit__(self, *_: object) -> None:
        """Restores the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def pending(self) -> bool:
        """Whether `take` would return any."""
        return bool(self._received)

    def take(self) -> list[int]:
        """Returns the signals received since the last call. SIGHUP of a closed terminal is returned as SIGTERM."""
        received = []
        while self._received:  # a handler may append at any moment
            received.append(self._received.pop(0))
        return [signal.SIGTERM if number == signal.SIGHUP else number for number in received]

    def wait(self, seconds: float, idle: Callable[[], None]) -> None:
        """Waits for a signal, at most `seconds`; calls `idle` once per tick meanwhile."""
        deadline = time.monotonic() + seconds
        while not self.pending and time.monotonic() < deadline:
            idle()
            time.sleep(TICK_SECONDS)


class ShutdownPolicy:
    """When to end the workers that are left. Its clock starts with the first worker that fails, or with a signal.

    After a failure the other workers get time to notice and exit (little during start-up, when nothing can be lost),
    then SIGTERM, then SIGKILL `grace_seconds` later. After a signal to the launcher, which is forwarded to all
    workers, SIGKILL follows `grace_seconds` later, or at once with a second signal.
    """

    _DUPLICATE_SECONDS = 0.2  # `timeout` sends one signal twice: to the process and to its group

    def __init__(self, grace_seconds: float, clock: Callable[[], float] = time.monotonic):
        """Args: grace_seconds: from SIGTERM to SIGKILL. clock: in seconds."""
        self.signals: list[int] = []
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._term_at: float | None = None
        self._kill_at: float | None = None
        self._first_end_signal: float | None = None

    def worker_failed(self, *, in_startup: bool = False) -> None:
        """Records the failure of a worker; `in_startup` if training had not started."""
        if self._term_at is None and self._kill_at is None:
            exit_seconds = _STARTUP_EXIT_SECONDS if in_startup else _SECONDARY_EXIT_SECONDS
            self._term_at = self._clock() + min(self._grace_seconds, exit_seconds)

    def signal_received(self, number: int) -> bool:
        """Records a signal to the launcher. Returns whether it is a duplicate, to be ignored."""
        now = self._clock()
        if self._first_end_signal is not None and now - self._first_end_signal < self._DUPLICATE_SECONDS:
            return True
        self.signals.append(number)
        self._term_at = None
        self._kill_at = now + self._grace_seconds
        if number != signal.SIGUSR1:
            if self._first_end_signal is not None:
                self._kill_at = now
            else:
                self._first_end_signal = now
        return False

    @property
    def in_progress(self) -> bool:
        """Whether workers are being shut down."""
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
