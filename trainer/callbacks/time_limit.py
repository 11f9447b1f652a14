"""Stops a run after a time: `convoy train --max_hours=2`."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from convoy.trainer.callbacks.callback import Callback, Training

if TYPE_CHECKING:
    from convoy.trainer.step.step import StepResult

_SECONDS_PER_HOUR = 3600.0


class TimeLimit(Callback):
    """Stops the run some time after this object was made. It is saved; the same command trains on."""

    def __init__(self, hours: float, clock: Callable[[], float] = time.monotonic):
        """Args: hours: the limit, above 0. clock: a monotonic clock, in seconds."""
        self._hours = hours
        self._clock = clock
        self._deadline = clock() + _SECONDS_PER_HOUR * hours

    def on_step_end(self, training: Training, result: "StepResult") -> None:
        """Asks for a stop after the limit."""
        if self._clock() >= self._deadline:
            training.request_stop(f"the time limit of {self._hours:g} h is over")
