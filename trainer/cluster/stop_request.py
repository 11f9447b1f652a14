"""Stop requests by callbacks, by SIGTERM and SIGUSR1, as schedulers send them, by SIGHUP when the terminal is closed,
and by Ctrl-C. They set a flag that the next step spreads to all.

with StopRequest(signals=True) as stop:
    strategy = ...      # TensorFlow may install its own handler here
    stop.listen()
    stop.listen_to_interrupts()       # once there is something to save
    stop.ask({"reason": "enough"})
    stop.is_set, stop.signal_name, stop.seconds, stop.asked
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class StopRequest:
    """Whether this process was asked to stop, by a signal or by its own code.

    Attributes:
      signal_name: name of the first signal; empty without one.
      asked: what `ask` was first called with; None if it was not.
    """

    def __init__(self, *, signals: bool):
        """Does not listen yet.

        Args:
          signals: whether signals count: not in a program that has its own handlers.
        """
        self.signal_name = ""
        self.asked: Any = None
        self._signals = signals
        self._received = 0.0
        self._previous: dict[int, _Handler] = {}

    def __enter__(self) -> "StopRequest":
        """Returns itself; signals keep their handlers until `listen`."""
        return self

    def listen(self) -> None:
        """Installs the signal handlers; does nothing outside the main thread."""
        with contextlib.suppress(ValueError):
            for number in _SIGNALS if self._signals else ():
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                    self._previous[number] = signal.signal(number, self._receive)

    def listen_to_interrupts(self) -> None:
        """Makes the first Ctrl-C a stop request; the second one does what Ctrl-C did before."""
        with contextlib.suppress(ValueError):
            before = signal.getsignal(signal.SIGINT)
            if self._signals and before is not signal.SIG_IGN:  # a background job
                self._previous[signal.SIGINT] = before
                signal.signal(signal.SIGINT, self._receive)

    def __exit__(self, *_: object) -> None:
        """Restores the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def ask(self, value: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Asks for a stop; only the first value counts."""
        if self.asked is None:
            self.asked = value

    @property
    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return bool(self.signal_name) or self.asked is not None

    @property
    def seconds(self) -> float:
        """Seconds since the first signal; 0 without one."""
        return time.monotonic() - self._received if self.signal_name else 0.0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name and callable(before := self._previous[number]):
            before(number, frame)
        if not self.signal_name:
            if number == signal.SIGINT:
                with contextlib.suppress(OSError):  # nobody reads it
                    os.write(2, b"convoy: interrupted: saving after this step. Press Ctrl-C again to end at once.\n")
            self._received, self.signal_name = time.monotonic(), signal.Signals(number).name
