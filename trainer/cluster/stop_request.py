"""SIGTERM and SIGUSR1: a scheduler wants the machine back. They only raise a flag; the next step carries it to all.

with StopRequest() as stop:
    strategy = ...      # TensorFlow may set a handler of its own here
    stop.listen()
    stop.is_set, stop.signal_name, stop.seconds
"""

import contextlib
import signal
import time
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self):
        """Not yet."""
        self.is_set = False
        self.signal_name = ""
        self._received = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        """Returns itself; until `listen` the signals do what they did before."""
        return self

    def listen(self) -> None:
        """Takes the signals over; outside the main thread it cannot, and stays unset."""
        with contextlib.suppress(ValueError):
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)

    def __exit__(self, *_: object) -> None:
        """Puts back what listened before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @property
    def seconds(self) -> float:
        """How long ago the first signal came."""
        return time.monotonic() - self._received if self.is_set else 0.0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.is_set:
            self.is_set, self.signal_name, self._received = True, signal.Signals(number).name, time.monotonic()
